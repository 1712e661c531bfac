"""Who works and who leads."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Integer, String, Table, Text, false, text

from batching.dialects import BigNumber, Identifier, JSONText, Timestamp, now
from batching.models.base import metadata

#: Worker processes. The identity is made at boot, not taken from the host name.
workers = Table(
    "workers",
    metadata,
    Column("id", Identifier, primary_key=True),
    Column("hostname", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pool", String(32), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("handlers", JSONText, nullable=False),
    Column("queues", JSONText, nullable=False),
    Column("version", String(32), nullable=False),
    Column("draining", Boolean, nullable=False, server_default=false()),
    # A person wants it to drain; the worker reads it with each heartbeat, and `draining` is what it does.
    Column("drain_asked", Boolean, nullable=False, server_default=false()),
    # Why it makes no progress, in its own words; null while it does.
    Column("stuck", Text),
    Column("started_at", Timestamp, nullable=False, server_default=now()),
    Column("heartbeat_at", Timestamp, nullable=False, server_default=now()),
    # What it held, and its connections, at its last heartbeat.
    Column("gauges", JSONText),
)

#: What payloads a handler takes, as its workers advertise it, for producers that do not have its code.
handler_schemas = Table(
    "handler_schemas",
    metadata,
    Column("handler", String(255), primary_key=True),
    Column("schema", JSONText, nullable=False),
    Column("advertised_at", Timestamp, nullable=False, server_default=now()),
)

#: The right to lead, one row per name; `epoch` grows with every change of hands and stands in the leader's writes.
leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", Identifier),
    Column("epoch", BigNumber, nullable=False, server_default=text("0")),
    Column("expires_at", Timestamp, nullable=False),
)
