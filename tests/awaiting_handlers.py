"""Handlers that are coroutine functions."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from batching import profile_handler

if TYPE_CHECKING:
    from batching import Profile

_loops: set[int] = set()


@profile_handler(name="tests.awaits")
async def awaits(profile: Profile) -> dict[str, Any]:
    """Tell which process ran it, and how many loops that has had."""
    _loops.add(id(asyncio.get_running_loop()))
    await asyncio.sleep(0.001)
    if profile.payload == "raise":
        raise ValueError("raised in a coroutine")
    return {"process": os.getpid(), "loops": len(_loops)}


@profile_handler(name="tests.awaits_long", soft_time_limit=1)
async def awaits_long(profile: Profile) -> None:
    """Sleep for ever."""
    del profile
    await asyncio.Event().wait()
