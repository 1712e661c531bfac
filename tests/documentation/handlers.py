"""The handlers that the pages speak of, as small as they can be; served by the worker of the tests of the pages."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from batching import Profile, profile_handler


class Text(BaseModel):
    """What is counted."""

    text: str


@profile_handler(name="words.count")
def count(profile: Profile[Text]) -> dict[str, int]:
    """Fails without a text."""
    return {"words": len(profile.payload.text.split())}


def _nothing(profile: Profile) -> dict[str, Any]:
    return {"key": profile.key}


for _name in ("profiles.enrich", "rows.load", "reports.make", "mail.send"):
    profile_handler(name=_name)(_nothing)
