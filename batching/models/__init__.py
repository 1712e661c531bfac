"""Tables, checks and indexes, a file for each noun. Queries are in `moves/` (writes) and `statistics/` (for people)."""

from __future__ import annotations

from batching.models.base import NOBODY, metadata
from batching.models.batch import (
    ACTIVE,
    DEAD,
    ENDED,
    GROUPED,
    HAS_DEADLINE,
    IN_LINE,
    LINE_ORDER,
    SCHEDULED,
    UNDELIVERED,
    UNENDED,
    UNMET,
    batches,
    bulk_moves,
    callbacks,
    dependencies,
    history,
    labels,
)
from batching.models.figure import batch_throughput, durations, figure_news, figures, gauges, rates, throughput
from batching.models.fleet import handler_schemas, leases, workers
from batching.models.profile import IN_FLIGHT, attempts, counters, profiles
from batching.models.queue import queues, rate_limits, turns

__all__ = [
    "ACTIVE",
    "DEAD",
    "ENDED",
    "GROUPED",
    "HAS_DEADLINE",
    "IN_FLIGHT",
    "IN_LINE",
    "LINE_ORDER",
    "NOBODY",
    "SCHEDULED",
    "UNDELIVERED",
    "UNENDED",
    "UNMET",
    "attempts",
    "batch_throughput",
    "batches",
    "bulk_moves",
    "callbacks",
    "counters",
    "dependencies",
    "durations",
    "figure_news",
    "figures",
    "gauges",
    "handler_schemas",
    "history",
    "labels",
    "leases",
    "metadata",
    "profiles",
    "queues",
    "rate_limits",
    "rates",
    "throughput",
    "turns",
    "workers",
]
