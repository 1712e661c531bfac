"""What workers say about the payloads of their handlers, for producers that do not have the code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from batching.dialects import now
from batching.models import handler_schemas

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection


def advertise(connection: Connection, schemas: Mapping[str, Any]) -> None:
    """Write each handler's schema, if it is another; take away that of a handler which takes any payload now.

    Two workers of different versions overwrite each other: the last that started is believed, as in a rolling deploy.
    """
    known = {
        row.handler: row.schema
        for row in connection.execute(
            select(handler_schemas.c.handler, handler_schemas.c.schema).where(
                handler_schemas.c.handler.in_(list(schemas))
            )
        )
    }
    build = postgresql if connection.dialect.name == "postgresql" else sqlite
    for name in sorted(schemas):
        schema = schemas[name]
        if schema is None and name in known:
            connection.execute(delete(handler_schemas).where(handler_schemas.c.handler == name))
        elif schema is not None and json.dumps(schema) != json.dumps(known.get(name)):
            row = build.insert(handler_schemas).values(handler=name, schema=schema)
            connection.execute(
                row.on_conflict_do_update(
                    index_elements=[handler_schemas.c.handler],
                    set_={"schema": row.excluded.schema, "advertised_at": now()},
                )
            )


def schema_of(connection: Connection, handler: str) -> Any:
    """The JSON schema of a handler's payloads, as its workers advertise it; None when they do not."""
    return connection.scalar(select(handler_schemas.c.schema).where(handler_schemas.c.handler == handler))
