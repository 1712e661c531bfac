"""What was counted and measured."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Double, ForeignKey, Integer, SmallInteger, String, Table, text

from batching.dialects import BigNumber, Identifier, JSONText, Timestamp, now
from batching.models.base import metadata

#: What the leader measured: profiles settled a second, smoothed. Apart from `batches`, so that measuring locks nothing.
rates = Table(
    "rates",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("per_second", Double, nullable=False),
    Column("settled", Integer, nullable=False),
    # What an estimate rests on: so many settled within so many seconds, with the standard error of that rate.
    Column("counted", Integer, nullable=False, server_default=text("0")),
    Column("over_seconds", Double, nullable=False, server_default=text("0")),
    Column("deviation", Double, nullable=False, server_default=text("0")),
    Column("measured_at", Timestamp, nullable=False, server_default=now()),
)

#: What each process has counted since it last said so (`figures.Figures`): a letter box with room for one letter, which
#: the leader empties into the tables below. Only its own process writes a row, so none waits for another.
figure_news = Table(
    "figure_news",
    metadata,
    # Made at boot, by who counts; another one than the id of a worker, which may be declared dead and go on.
    Column("source", Identifier, primary_key=True),
    # Of the last letter. One that is repeated has the same: a COMMIT whose answer was lost counts once.
    Column("number", Integer, nullable=False),
    # Null once the leader has it.
    Column("document", JSONText),
    Column("written_at", Timestamp, nullable=False, server_default=now()),
)

#: All that was ever counted, of all processes: no process has a row of its own, so none takes its counts with it.
figures = Table(
    "figures",
    metadata,
    Column("name", String(64), primary_key=True),
    # A JSON array of values; the empty text for none.
    Column("labels", String(512), primary_key=True),
    # The bucket of a histogram, from 0; -1 is its sum, or the count itself where there are no buckets.
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("amount", Double, nullable=False),
    Column("changed_at", Timestamp, nullable=False, server_default=now()),
)

#: How long the runs of a batch took; buckets as in `figures`.
durations = Table(
    "durations",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("amount", Double, nullable=False),
)


def _ends() -> list[Column[Any]]:
    """What became of the runs that ended in a span of time: so many profiles settled, and so many are tried again."""
    return [
        Column(name, BigNumber, nullable=False, server_default=text("0"))
        for name in ("settled", "succeeded", "failed", "retried")
    ]


#: What all batches together settled, in spans of some lengths; short ones are kept for an hour: see `moves/figures`.
throughput = Table(
    "throughput",
    metadata,
    Column("seconds", Integer, primary_key=True, autoincrement=False),
    # When it begins: seconds since 1970, a multiple of its length.
    Column("at", BigNumber, primary_key=True, autoincrement=False),
    *_ends(),
)

#: What each batch settled; all its spans are of one length, which grows with the time that it takes.
batch_throughput = Table(
    "batch_throughput",
    metadata,
    Column("batch_id", Identifier, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("seconds", Integer, primary_key=True, autoincrement=False),
    Column("at", BigNumber, primary_key=True, autoincrement=False),
    *_ends(),
)

#: What the leader last saw beside SQL, such as the lengths of the lanes' lists.
gauges = Table(
    "gauges",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("document", JSONText, nullable=False),
    Column("written_at", Timestamp, nullable=False, server_default=now()),
)
