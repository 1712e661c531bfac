"""What workers run: one profile is one article of an order."""

from typing import Any

from batching import Profile, profile_handler


@profile_handler(name="orders.ship")
def ship(profile: Profile[dict[str, int]]) -> dict[str, Any]:
    """Hand the idempotency key to whoever must not act twice: a carrier, a bank."""
    label = f"label-{profile.idempotency_key}"
    return {"label": label, "pieces": profile.payload["pieces"]}
