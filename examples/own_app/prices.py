"""What the workers of `shop` run for batches."""

from batching import Profile, profile_handler


@profile_handler(name="prices.convert", soft_time_limit=30)
def convert(profile: Profile[dict[str, float]]) -> dict[str, float]:
    """Options of a Celery task pass through the mark, as `soft_time_limit` does here."""
    return {"price": round(profile.payload["price"] * profile.payload["rate"], 2)}
