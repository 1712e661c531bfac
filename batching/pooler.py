"""PgBouncer between this process and PostgreSQL: how a URL says so, and how an error shows it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batching.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import URL

#: The option of a URL that says so; other libraries know it by this name.
_OPTION: Final = "pgbouncer"


def without_pooler(url: URL) -> tuple[URL, bool]:
    """A URL as the driver takes it, and whether it says that a pooler in transaction mode stands before the server.

    Raises:
        ConfigurationError: It says neither true nor false.
    """
    said = url.query.get(_OPTION, "false")
    if said not in {"true", "false"}:
        raise ConfigurationError(
            f"cannot use the option pgbouncer={said!r} of the database URL: it takes true or false; set "
            "BATCHING_DATABASE_URL"
        )
    return url.difference_update_query([_OPTION]), said == "true"


def what_to_do(said: str) -> str:
    """What to do about a driver's message that the database cannot be reached."""
    if "unsupported startup parameter" in said:  # PgBouncer's words, src/client.c
        return "a PgBouncer stands in between: add pgbouncer=true to the options of BATCHING_DATABASE_URL"
    return "check that it runs and that BATCHING_DATABASE_URL names it"
