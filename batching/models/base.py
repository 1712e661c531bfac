"""What all tables share."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import MetaData

#: The worker id of writes that no worker makes: submission and verbs.
NOBODY: Final = "00000000-0000-0000-0000-000000000000"

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def one_of(name: str, members: Any) -> str:
    """A check that a column has the value of one of these members."""
    values = ", ".join(f"'{member.value}'" for member in members)
    return f"{name} IN ({values})"
