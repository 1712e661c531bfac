"""What workers run: one profile is one customer."""

from pydantic import BaseModel

from batching import Profile, SkipProfile, profile_handler


class Customer(BaseModel):
    """What a payload has to be: one that is not fails its profile, naming the field."""

    number: str
    email: str


@profile_handler(name="customers.import")
def take(profile: Profile[Customer]) -> dict[str, str]:
    """A customer without a mailbox is skipped; one without an address is a failure."""
    mailbox, at, host = profile.payload.email.partition("@")
    if not at:
        raise ValueError("this is no address")
    if not mailbox:
        raise SkipProfile("nobody reads mail there")
    return {"number": profile.payload.number, "host": host.lower()}
