"""A handler that logs as people do: with the standard library, with structlog, and by printing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import structlog

from batching import profile_handler

if TYPE_CHECKING:
    from batching import Profile

logger = logging.getLogger("talkative")


@profile_handler(name="acceptance.talk")
def talk(profile: Profile) -> Any:
    """Say something in three ways; fail once where the payload says so."""
    logger.info("said with %s", "logging")
    structlog.get_logger("talkative.structlog").info("said with structlog", mine=len(profile.payload["secret"]))
    print("said by printing")  # noqa: T201 - what handlers do
    if profile.payload.get("fail") and profile.attempt == 1:
        raise ValueError("not the first time")
    return {"echo": profile.payload["secret"]}
