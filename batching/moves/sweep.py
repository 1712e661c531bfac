"""Finding what went quiet: dispatches whose message is lost, runs whose worker is gone. Feeds the ordinary moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Integer, case, func, literal, select, update

from batching.dialects import age
from batching.interfaces import Claimed, Dispatch, Ending, Lane, LeaderTerm, Outcome, RunId, Terms
from batching.models import batches, profiles, workers
from batching.moves import leadership
from batching.moves.profile import as_dispatches, running_of, settle
from batching.moves.rows import leads, read_batches
from batching.moves.statements import AT_ONCE, DISPATCHED
from batching.options import BatchOptions
from batching.parameters import is_among
from batching.policies import settlement, worker_lost
from batching.states import BatchState, ProfileState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

#: A dispatch is published again after 3 s, 6 s, 12 s, … of silence, and this many doublings at most.
_MAX_DOUBLINGS = 7


@dataclass(frozen=True, slots=True)
class LostEvidence:
    """What speaks for a lost message.

    Args:
        suspect_after: Seconds of silence before a dispatch is looked at; doubles with each publication.
        empty_lanes: Lanes whose list is empty: what they carried was popped, or is gone.
        everything: The broker restarted or was flushed: every unclaimed dispatch is lost, whatever its age.
    """

    suspect_after: float
    empty_lanes: frozenset[Lane] = field(default_factory=frozenset)
    everything: bool = False


def take_suspects(
    connection: Connection, term: LeaderTerm, lost: LostEvidence, max_losses: int, limit: int = 5_000
) -> list[Dispatch]:
    """Dispatched rows that look lost, marked as published once more; a claim is granted once, so a false alarm is free.

    A row is suspect when it has been silent for its delay and its lane's list is empty, or a later dispatch of its lane
    has been claimed (lists are first in, first out), or the broker lost everything. Settles the race with a claim: the
    row must still be `dispatched` when the mark is written.
    """
    by_batch: dict[str, list[int]] = {}
    for lane, overtaken in _lanes_in_flight(connection).items():
        certain = lost.everything or lane in lost.empty_lanes
        if certain or overtaken is not None:
            before = None if certain else overtaken
            for batch_id, number in _silent_dispatches(connection, lane, before, lost, limit):
                by_batch.setdefault(batch_id, []).append(number)
    return [
        dispatch
        for batch_id, numbers in sorted(by_batch.items())
        for dispatch in _mark_republished(connection, batch_id, numbers, term, max_losses)
    ]


def _lanes_in_flight(connection: Connection) -> dict[Lane, datetime | None]:
    """The lanes of everything in flight, each with its newest dispatch that was claimed and runs."""
    claimed = case((profiles.c.state == ProfileState.RUNNING, profiles.c.dispatched_at))
    rows = connection.execute(
        select(batches.c.queue, batches.c.handler, func.max(claimed).label("overtaken"))
        .join(batches, batches.c.id == profiles.c.batch_id)
        .where(profiles.c.dispatched_at.is_not(None))
        .group_by(batches.c.queue, batches.c.handler)
    )
    return {Lane(row.queue, row.handler): row.overtaken for row in rows}


def _silent_dispatches(
    connection: Connection, lane: Lane, before: datetime | None, lost: LostEvidence, limit: int
) -> list[tuple[str, int]]:
    """Unclaimed dispatches of one lane that have been silent for their delay.

    Lane by lane, so that one with many that merely wait cannot hide those that another has lost.

    Args:
        connection: In a write transaction.
        lane: The lane.
        before: Only those that were dispatched before; None for all.
        lost: How long silence lasts.
        limit: Rows.
    """
    delay = literal(lost.suspect_after) * literal(1, Integer()).bitwise_lshift(profiles.c.republished)
    conditions = [] if lost.everything else [age(profiles.c.dispatched_at) >= delay]
    if before is not None:
        conditions.append(profiles.c.dispatched_at < before)
    rows = connection.execute(
        select(profiles.c.batch_id, profiles.c.number)
        .join(batches, batches.c.id == profiles.c.batch_id)
        .where(
            profiles.c.dispatched_at.is_not(None),
            profiles.c.state == ProfileState.DISPATCHED,
            profiles.c.generation == batches.c.generation,
            batches.c.state == BatchState.RUNNING,
            batches.c.queue == lane.queue,
            batches.c.handler == lane.handler,
            *conditions,
        )
        .order_by(profiles.c.batch_id, profiles.c.number)
        .limit(limit)
    )
    return [(row.batch_id, row.number) for row in rows]


def _mark_republished(
    connection: Connection, batch_id: str, numbers: list[int], term: LeaderTerm, max_losses: int
) -> list[Dispatch]:
    """Dispatched -> dispatched, published once more; no counter moves, so no ticket is needed."""
    batch = read_batches(connection, [batch_id])[batch_id]
    marked = connection.execute(
        update(profiles)
        .where(
            profiles.c.batch_id == batch_id,
            is_among(connection.dialect.name, profiles.c.number, "numbers"),
            profiles.c.state == ProfileState.DISPATCHED,
            profiles.c.generation == batch.generation,
            leads(term),
        )
        .values(
            dispatched_at=AT_ONCE,
            republished=case(
                (profiles.c.republished < _MAX_DOUBLINGS, profiles.c.republished + 1), else_=_MAX_DOUBLINGS
            ),
        )
        .returning(*DISPATCHED),
        {"numbers": numbers},
    )
    return as_dispatches(marked, batch_id, batch.terms.lane, max_losses)


def take_back(
    connection: Connection, worker_id: str, last_seen: datetime | None, term: LeaderTerm, max_losses: int
) -> list[RunId] | None:
    """Running -> pending, or failed when it ran alone, for everything that a dead worker held; its row goes first.

    Settles the race with the worker's next heartbeat: the row is deleted only while its last sign of life is the one
    that the sweep has watched, and a worker without a row knows that it was declared dead.

    Args:
        connection: In a write transaction.
        worker_id: The silent worker.
        last_seen: Its last sign of life; None for a worker that has no row but still holds runs.
        term: Proof of leadership; also the writer whose counters move.
        max_losses: Losses after which a profile has run alone.

    Returns:
        The runs taken back, or None when the worker came back to life.
    """
    if not connection.scalar(select(leads(term))):
        return None
    if last_seen is not None and not leadership.unregister(connection, worker_id, last_seen):
        return None
    error = worker_lost("the worker that ran this profile is gone: killed, out of memory, or cut off")
    settlements = [
        settlement(claimed, Outcome(Ending.LOST, error=error), max_losses, 0.0)
        for claimed in _held(connection, worker_id)
    ]
    return settle(connection, term.holder, worker_id, settlements).applied


def give_back(connection: Connection, worker_id: str, runs: Sequence[RunId]) -> int:
    """Running -> pending for runs that their own worker will not finish; nothing is charged."""
    wanted = set(runs)
    settlements = [
        settlement(claimed, Outcome(Ending.GIVEN_BACK), 0, 0.0)
        for claimed in _held(connection, worker_id)
        if claimed.run in wanted
    ]
    return len(settle(connection, worker_id, worker_id, settlements).applied)


def _held(connection: Connection, worker_id: str) -> list[Claimed]:
    """What a worker holds, as far as taking it back needs to know."""
    held = running_of(connection, worker_id)
    known = read_batches(connection, {run.batch_id for run, *_ in held})
    return [
        Claimed(run, "", "", used + 1, losses, Terms(*known[run.batch_id].terms[:1], pass_number, BatchOptions()))
        for run, used, losses, pass_number in held
        if run.batch_id in known
    ]


def orphaned_workers(connection: Connection) -> list[str]:
    """Worker ids that hold runs but have no row: their process was declared dead, or left without giving back."""
    known = select(workers.c.id)
    return list(
        connection.scalars(
            select(profiles.c.worker_id)
            .where(
                profiles.c.dispatched_at.is_not(None),
                profiles.c.state == ProfileState.RUNNING,
                profiles.c.worker_id.not_in(known),
            )
            .distinct()
        )
    )
