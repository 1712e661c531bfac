"""What workers run: one profile is one reader. A handler that needs models calls `django.setup()` first."""

from batching import Profile, profile_handler


@profile_handler(name="newsletter.mail")
def mail(profile: Profile[dict[str, str]]) -> dict[str, str]:
    """A mail server that knows the message's id takes it once, however often it is handed over."""
    return {"to": profile.key, "message_id": f"<{profile.idempotency_key}@example.org>"}
