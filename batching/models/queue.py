"""Queues: their settings, rate limits, and whose turn it is."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Double, ForeignKey, Integer, String, Table, false, text

from batching.dialects import BigNumber, Timestamp, now
from batching.models.base import metadata, one_of
from batching.states import LimitKind

#: A line of batches and its settings. Its row lock orders the changes of positions.
queues = Table(
    "queues",
    metadata,
    Column("name", String(64), primary_key=True),
    # So many batches run at once at least; when they cannot fill the workers, the next is let in.
    Column("max_running", Integer, nullable=False, server_default=text("1")),
    # Nothing is promoted and nothing is dispatched.
    Column("paused", Boolean, nullable=False, server_default=false()),
    # Nothing is promoted; what runs is dispatched to its end.
    Column("draining", Boolean, nullable=False, server_default=false()),
    # So many profiles of its batches are dispatched or running at once, at most.
    Column("max_concurrency", Integer),
    # So many batches are in line or run at once, at most, and so many of their profiles are unsettled: asked at submit.
    Column("intake_batches", Integer),
    Column("intake_profiles", Integer),
    # Whether each group of the queue has that to itself.
    Column("intake_per_group", Boolean, nullable=False, server_default=false()),
    Column("created_at", Timestamp, nullable=False, server_default=now()),
    CheckConstraint("max_running >= 1", name="max_running"),
    CheckConstraint("max_concurrency >= 1", name="max_concurrency"),
    CheckConstraint("coalesce(intake_batches, 1) >= 1 AND coalesce(intake_profiles, 1) >= 1", name="intake"),
)

#: Token buckets, one per rate limit. The leader takes tokens in the transaction that dispatches (`moves/braking.py`).
rate_limits = Table(
    "rate_limits",
    metadata,
    Column("kind", String(8), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("per_second", Double, nullable=False),
    Column("burst", Integer, nullable=False),
    # As they were at `refilled_at`; since then, `per_second` came in every second, up to `burst`.
    Column("tokens", Double, nullable=False),
    Column("refilled_at", Timestamp, nullable=False, server_default=now()),
    CheckConstraint(one_of("kind", LimitKind), name="kind"),
    CheckConstraint("per_second > 0 AND burst >= 1", name="rate"),
    CheckConstraint("tokens >= 0", name="tokens"),
)

#: When each group of a queue had its last turn, inside each priority: the memory of the round robin (`moves/turns.py`).
turns = Table(
    "turns",
    metadata,
    Column("queue", String(64), ForeignKey("queues.name"), primary_key=True),
    Column("priority", Integer, primary_key=True, autoincrement=False),
    Column("group", String(255), primary_key=True),
    # Counts the queue's promotions while groups wait: the smaller, the longer ago.
    Column("served", BigNumber, nullable=False),
)
