"""Pages for people. Each module has `router(context) -> APIRouter`; `routers` gathers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import APIRouter

    from batching.web.context import Context


def routers(context: Context) -> list[APIRouter]:
    """Every page's routes."""
    del context
    return []
