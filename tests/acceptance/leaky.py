"""Handlers that hold something secret in every place that might be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batching import RetryProfile, profile_handler

if TYPE_CHECKING:
    from batching import Profile


@profile_handler(name="leaky.answer")
def answer(profile: Profile) -> Any:
    """Give the payload back."""
    return {"answer": profile.payload}


@profile_handler(name="leaky.fail")
def fail(profile: Profile) -> Any:
    """Fail beside the payload, without saying it."""
    secret = profile.payload
    raise LookupError(f"no entry of {len(secret)} characters")


@profile_handler(name="leaky.end")
def end(profile: Profile) -> Any:
    """End otherwise, holding the payload."""
    kept = {"text": profile.payload}
    if profile.key == "unfit":
        return {"answer": kept, "set": {profile.payload}}
    if profile.key == "huge":
        return profile.payload * 10_000
    if profile.key == "retry" and profile.attempt == 1:
        raise RetryProfile(delay=0)
    return kept
