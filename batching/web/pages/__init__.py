"""Pages for people. Each module has `router(context) -> APIRouter`; `routers` gathers them.

A page is a template; its live parts are templates in `parts/`, which the page includes and which can be asked for on
their own (`?parts=…`): a script of ours puts them in the place of what is there. Each page hands its parts an object
that reads what it is asked for, when it is asked: a part costs what it shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batching.web.pages import batch, keeping, profiles, queue, steering, system, workers
from batching.web.pages.frame import prepare

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context


def routers(context: Context) -> list[APIRouter]:
    """Every page's routes."""
    prepare(context)
    context.templates.globals.update(verbs=steering.VERBS, verbs_of=steering.verbs_of)
    return [each.router(context) for each in (queue, steering, batch, profiles, workers, system, keeping)]
