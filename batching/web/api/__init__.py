"""The JSON API, `/api/v1`. Each module has `router(context) -> APIRouter`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batching.web.api import (
    batches,
    events,
    failures,
    feeding,
    measures,
    profiles,
    queues,
    steering,
    submitting,
    system,
)
from batching.web.api.description import describe

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context

__all__ = ["describe", "routers"]

_MODULES = (submitting, batches, feeding, profiles, failures, measures, steering, queues, system, events)


def routers(context: Context) -> list[APIRouter]:
    """Every route of the API."""
    return [module.router(context) for module in _MODULES]
