"""BatchStateManager: every write, one guarded move per method, one transaction per call."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sqlalchemy.exc import IntegrityError

from batching import faults
from batching.brakes import Brakes
from batching.database import is_unique_violation
from batching.errors import IllegalMoveError, NotPermittedError
from batching.moves import (
    amending,
    appending,
    braking,
    bulk,
    callbacks,
    counters,
    leadership,
    loading,
    profile,
    promotion,
    queue_order,
    rehearsal,
    retention,
    rows,
    submission,
    sweep,
    triage,
    turns,
    whole,
)
from batching.moves import batch as batch_moves
from batching.options import BatchReceipt, Difference
from batching.policies import brakes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from batching.callbacks import Callback
    from batching.database import Database
    from batching.interfaces import ClaimResult, Dispatch, LeaderTerm, RunId, Settlement, SettleResult
    from batching.options import Amended, BatchSpec, ProfileInput
    from batching.states import BatchState, Remedy, StopTarget


#: Seconds that one call may spend on deleting what producers left behind: the leader has more to do.
_SLICE = 0.2


class BatchStateManager:
    """Implements `IBatchStateManager` over SQL; see there for what each method promises.

    Args:
        database: Where the state lives.
        max_losses: Losses after which a profile is dispatched to run alone.
    """

    def __init__(self, database: Database, *, max_losses: int = 2) -> None:
        self.database = database
        self._max_losses = max_losses

    # --- submission

    def create_batch(self, spec: BatchSpec, connection: Connection | None = None) -> BatchReceipt:
        with self._writing(connection) as writing:
            return submission.create_batch(writing, spec)

    def traceparent(self, batch_id: str) -> str | None:
        with self.database.read() as reading:
            return rows.read_traceparent(reading, batch_id)

    def find_key(self, queue: str, key: str) -> BatchReceipt | None:
        with self.database.read() as reading:
            return submission.find_key(reading, queue, key)

    def submit_whole(
        self, spec: BatchSpec, chunk: list[ProfileInput], announce: Callable[[], object] | None = None
    ) -> BatchReceipt:
        while True:
            try:
                made, count = self._write_whole(spec, chunk, announce), len(chunk)
                return BatchReceipt(made, count, created=True, difference=Difference(count), open=not spec.sealed)
            except IntegrityError as error:
                if not is_unique_violation(error):
                    raise
                if spec.key is not None and (held := self.find_key(spec.queue, spec.key)) is not None:
                    return held
                loading.numbers_by_key((each.key for each in chunk), 1)  # raises when one stands twice
                if spec.key is None:
                    raise
            # The key's holder gave it up, or was deleted, between the two statements: it is free.

    def _write_whole(self, spec: BatchSpec, chunk: list[ProfileInput], announce: Callable[[], object] | None) -> str:
        if self.database.dialect == "postgresql" and not spec.replace_key and not spec.after:
            try:
                return self._write_at_once(spec, chunk, announce)
            except IntegrityError as error:
                if not whole.must_ask(error):
                    raise
        with self.database.begin() as writing:
            batch_id = whole.write_whole(writing, spec, chunk)
        faults.reach("submit.written")
        if announce is not None:
            announce()
        return batch_id

    def _write_at_once(self, spec: BatchSpec, chunk: list[ProfileInput], announce: Callable[[], object] | None) -> str:
        with self.database.direct() as direct:
            batch_id = whole.write_at_once(direct, spec, chunk, flushed=announce is None)
            faults.reach("submit.written")
            if announce is not None:
                # The leader begins while the disk is waited for: no profile runs before, since a claim is flushed.
                announce()
                faults.reach("submit.announced")
                direct.execute(whole.FLUSH, {})
            return batch_id

    def add_profiles(self, batch_id: str, chunk: Iterable[ProfileInput], connection: Connection | None = None) -> int:
        if not self.database.streams:
            chunk = list(chunk)
        with self._writing(connection) as writing:
            return loading.add_profiles(writing, batch_id, chunk)

    def seal(self, batch_id: str, connection: Connection | None = None, *, sealed: bool = True) -> int:
        with self._writing(connection) as writing:
            return submission.seal(writing, batch_id, sealed=sealed)

    def compare(
        self, batch_id: str, chunk: Sequence[ProfileInput], first: int = 1, connection: Connection | None = None
    ) -> Difference:
        if connection is not None:
            return appending.compare(connection, batch_id, chunk, first)
        with self.database.read() as reading:
            return appending.compare(reading, batch_id, chunk, first)

    def append(
        self, batch_id: str, chunk: Sequence[ProfileInput], first: int = 1, connection: Connection | None = None
    ) -> Difference:
        with self._writing(connection) as writing:
            return appending.append(writing, batch_id, chunk, first)

    def seal_open(self, batch_id: str, expect: int | None = None) -> int:
        with self.database.begin() as writing:
            total = appending.seal(writing, batch_id, expect)
        # As after a settlement: what was settled before is over with this commit. The sweep repeats it, and does it for
        # a producer whose role in the database may end nothing.
        with suppress(NotPermittedError):
            self.conclude([batch_id])
        return total

    def amend(self, batch_id: str, chunks: Iterable[Sequence[ProfileInput]]) -> Amended:
        with self.database.begin() as writing:
            return amending.amend(writing, batch_id, chunks)

    def abandon(self, batch_id: str) -> bool:
        with self.database.begin() as writing:
            was_loading = submission.lapse(writing, batch_id, overdue_only=False)
        if was_loading:
            faults.reach("delete.marked")
            self._delete(batch_id)
        return was_loading

    def sweep_abandoned(self, limit: int = 10) -> list[str]:
        """Delete loading batches whose producer is gone, for a moment; the next call goes on. Returns those deleted."""
        until = time.monotonic() + _SLICE
        with self.database.read() as reading:
            found = submission.abandoned(reading, limit)
        swept = []
        for batch_id in found:
            with self.database.begin() as writing:
                gone = submission.lapse(writing, batch_id, overdue_only=True) or submission.is_lapsed(writing, batch_id)
            if gone:
                if not self._delete(batch_id, until=until):
                    break
                swept.append(batch_id)
        return swept

    def prune(
        self,
        older_than_days: float,
        limit: int = 100,
        step: int = 5_000,
        *,
        states: Iterable[BatchState | str] | None = None,
        queue: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> int:
        """Delete up to `limit` batches that are old enough, in bounded steps; returns how many.

        One that is stopped on its way has lost nothing: what it was at is deleted by the sweep, and the next goes on.
        `step` is profiles in one transaction; the rest is as for `QueueManager.prune`.
        """
        wanted = retention.Stale.of(older_than_days, states, queue)
        with self.database.read() as reading:
            old = retention.stale(reading, wanted, limit)
        pruned = 0
        for done, batch_id in enumerate(old, 1):
            with self.database.begin() as writing:
                condemned = retention.condemn(writing, batch_id)
            if condemned:
                faults.reach("delete.marked")
                self._delete(batch_id, step)
                pruned += 1
            if progress is not None:
                progress(done, len(old))
        return pruned

    def _delete(self, batch_id: str, step: int = 5_000, until: float = math.inf) -> bool:
        more = True
        while more and time.monotonic() < until:
            with self.database.begin() as writing:
                more = submission.delete_some(writing, batch_id, step)
            faults.reach("delete.step")
        return not more

    # --- the leader's moves

    def promote(self, queue: str, term: LeaderTerm, handlers: Collection[str] | None = None) -> str | None:
        with self.database.begin() as writing:
            in_turns = turns.take_turns(writing, queue)
            turn = turns.next_turn(writing, queue, handlers) if in_turns else None
            promoted = promotion.promote(writing, queue, term, handlers, turn and turn.batch_id)
            if promoted is not None and turn is not None:
                turns.take(writing, turn)
            return None if promoted is None else promoted.id

    def start(self, queue: str, term: LeaderTerm, plan: promotion.Plan) -> promotion.Start | None:
        """Promote the next batch in line and dispatch the first of its profiles, in one transaction."""
        if plan.in_turns or plan.spent:
            with self.database.begin() as writing:
                turn = turns.next_turn(writing, queue, plan.handlers, plan.spent)
                if turn is None:
                    return None
                started = promotion.start(writing, queue, term, plan, self._max_losses, turn.batch_id)
                if started is not None and plan.in_turns:
                    turns.take(writing, turn)
                return started
        if self.database.dialect == "postgresql":
            with self.database.direct() as direct:
                return promotion.start_at_once(direct, queue, term, plan, self._max_losses)
        with self.database.begin() as writing:
            return promotion.start(writing, queue, term, plan, self._max_losses)

    def rehearse(self, term: LeaderTerm) -> None:
        """Prepare a leader's way to the database, so that the first batch need not wait for it."""
        with self.database.begin() as writing:
            rehearsal.rehearse_leader(writing, term)
        if self.database.dialect == "postgresql":
            with self.database.direct() as direct:
                rehearsal.rehearse_starts(direct, term)

    def dispatch(
        self, batch_id: str, limit: int, term: LeaderTerm, behind: int = 0, brakes: Brakes | None = None
    ) -> list[Dispatch]:
        with self.database.begin() as writing:
            if brakes is None:
                known = rows.read_constants(writing, [batch_id]).get(batch_id)
                brakes = brakes_of(batch_id, known.options) if known else Brakes()
            if brakes.hold:
                return braking.dispatch(writing, batch_id, limit, term, self._max_losses, brakes, behind)
            return profile.dispatch(writing, batch_id, limit, term, self._max_losses, behind)

    def forget_limits(self) -> int:
        """Delete the full buckets of single batches; a dispatch makes one when it needs one."""
        with self.database.begin() as writing:
            return braking.forget_limits(writing)

    def rewrite(self, batch_id: str, limit: int = 5_000) -> bool:
        """Write one bounded step of a bulk move into the rows; returns whether rows may be left."""
        with self.database.begin() as writing:
            more = bulk.rewrite(writing, batch_id, limit)
        faults.reach("rewrite.step")
        return more

    def suspects(self, term: LeaderTerm, lost: sweep.LostEvidence) -> list[Dispatch]:
        """Take the dispatches that look lost, to be published again; each is taken once per delay."""
        with self.database.begin() as writing:
            return sweep.take_suspects(writing, term, lost, self._max_losses)

    def take_back(self, worker_id: str, last_seen: datetime | None, term: LeaderTerm) -> list[RunId] | None:
        """Declare a silent worker dead and make its runs pending again, each with a loss.

        Returns:
            The runs taken back, or None when the worker showed a sign of life after all.
        """
        with self.database.begin() as writing:
            return sweep.take_back(writing, worker_id, last_seen, term, self._max_losses)

    # --- the workers' moves

    def claim(self, worker_id: str, runs: Sequence[RunId]) -> ClaimResult:
        batch_ids = {run.batch_id for run in runs}
        if self.database.dialect == "postgresql" and len(batch_ids) == 1:
            [batch_id] = batch_ids
            if counters.is_new(worker_id, batch_id):
                with self.database.direct() as direct:
                    return profile.claim_first(direct, worker_id, batch_id, runs)
        with self.database.begin() as writing:
            return profile.claim(writing, worker_id, runs)

    def settle(self, worker_id: str, settlements: Sequence[Settlement]) -> SettleResult:
        with self.database.begin() as writing:
            return profile.settle(writing, worker_id, worker_id, settlements)

    def give_back(self, worker_id: str, runs: Sequence[RunId]) -> int:
        """Running -> pending for runs that this worker holds and will not finish; nothing is charged."""
        with self.database.begin() as writing:
            return sweep.give_back(writing, worker_id, runs)

    def conclude(self, batch_ids: Iterable[str]) -> list[str]:
        """Also after a lost race: what is concluded already is not concluded twice."""
        wanted = sorted(set(batch_ids))
        if not wanted:
            return []
        with self.database.read() as reading:
            counted = rows.read_counted(reading, wanted)
            due = [batch.id for batch, counts in counted if batch_moves.is_due(reading, batch, counts)]
        moved = []
        for batch_id in due:
            faults.reach("conclude")
            with self.database.begin() as writing:
                if batch_moves.conclude(writing, batch_id):
                    moved.append(batch_id)
        return moved

    # --- verbs

    def stop(self, batch_id: str, target: StopTarget, reason: str, *, interrupt: bool = False) -> BatchState:
        with self.database.begin() as writing:
            state = batch_moves.stop(writing, batch_id, target, reason, interrupt=interrupt)
        faults.reach("stop.committed")
        return state

    def expire(self, batch_id: str) -> bool:
        """Stop a batch whose deadline has passed; returns whether it was for this call to do so."""
        with self.database.begin() as writing:
            return batch_moves.expire(writing, batch_id)

    def release(self, batch_id: str) -> bool:
        """Look again at what a batch waits for; whether that is less than before."""
        with self.database.begin() as writing:
            return batch_moves.release(writing, batch_id)

    def resume(self, batch_id: str) -> BatchState:
        with self.database.begin() as writing:
            return batch_moves.resume(writing, batch_id)

    def retry(self, batch_id: str, reason: str = "retried by a person") -> int:
        with self.database.begin() as writing:
            return batch_moves.reopen(writing, batch_id, reason)

    def move(self, batch_id: str, place: int | str) -> int:
        with self.database.begin() as writing:
            return queue_order.move(writing, batch_id, place)

    def mark_completed(self, batch_id: str) -> BatchState:
        with self.database.begin() as writing:
            return batch_moves.mark_completed(writing, batch_id)

    def request_promotion(self, batch_id: str) -> BatchState:
        with self.database.begin() as writing:
            return batch_moves.request_promotion(writing, batch_id)

    def remedy(self, batch_id: str, remedy: Remedy, chosen: triage.Chosen, step: int = 5_000) -> int:
        """Retry, skip or cancel some profiles of a batch, in bounded steps; returns how many.

        Raises:
            IllegalMoveError: The batch is stopping, or none of its profiles is meant.
        """
        moved, cursor = 0, 0
        while True:
            with self.database.begin() as writing:
                done = triage.step(writing, batch_id, remedy, chosen, cursor, step)
            moved += done.moved
            if done.cursor is None:
                break
            cursor = done.cursor
            while done.unwritten and self.rewrite(batch_id):
                pass
        if not moved:
            raise IllegalMoveError(
                f"cannot {remedy} profiles {chosen} of batch {batch_id}: there is none that has failed or waits; "
                "`batching failures` shows what failed, and how"
            )
        self.conclude([batch_id])
        return moved

    # --- callbacks

    def take_callbacks(self, limit: int, lease: float) -> list[Callback]:
        """Take callbacks that are due, each for one delivery; they are due again when the lease is over."""
        with self.database.read() as reading:
            if not callbacks.are_due(reading):
                return []
        with self.database.begin() as writing:
            return callbacks.take(writing, limit, lease)

    def callback_delivered(self, taken: Callback) -> bool:
        """Waiting -> delivered; False when somebody else has taken it since."""
        with self.database.begin() as writing:
            return callbacks.delivered(writing, taken)

    def callback_failed(self, taken: Callback, error: str, delay: float | None) -> bool:
        """Due again after some seconds, or dead without; False when somebody else has taken it since."""
        with self.database.begin() as writing:
            return callbacks.failed(writing, taken, error, delay)

    def retry_callback(self, callback_id: str) -> None:
        """Dead -> waiting, with all its attempts."""
        with self.database.begin() as writing:
            callbacks.revive(writing, callback_id)

    # --- leadership

    def lead(self, holder: str, lease: float) -> LeaderTerm | None:
        """Become the leader when there is none; returns the term."""
        with self.database.begin() as writing:
            return leadership.acquire(writing, holder, lease)

    def renew(self, term: LeaderTerm, lease: float) -> bool:
        """Renew a term; False when it is over."""
        with self.database.begin() as writing:
            return leadership.renew(writing, term, lease)

    def resign(self, term: LeaderTerm) -> None:
        """Hand the lease back."""
        with self.database.begin() as writing:
            leadership.resign(writing, term)

    def note_broker_away(self, term: LeaderTerm, seconds: float) -> None:
        """Let people know, for so many seconds, that the leader cannot reach the broker."""
        with self.database.begin() as writing:
            leadership.note_broker_away(writing, term, seconds)

    @contextmanager
    def _writing(self, connection: Connection | None) -> Iterator[Connection]:
        if connection is not None:
            yield connection
        else:
            with self.database.begin() as own:
                yield own
