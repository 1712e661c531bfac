"""The accounting equation as an assertion, and a desk from which a test plays the leader and the workers by hand."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, select, update

from batching.direct import Direct
from batching.interfaces import Ending, ErrorInfo, Outcome, RunId, WorkerInfo
from batching.models import batches, profiles
from batching.moves import bulk, counters
from batching.moves.rows import read_batches
from batching.options import BatchOptions, BatchSpec, ProfileInput
from batching.policies import settlement
from batching.registry import WorkerRegistry
from batching.state_manager import BatchStateManager
from batching.states import BatchState, ProfileState, StopTarget, effective_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from batching.database import Database
    from batching.interfaces import Claimed, Dispatch, LeaderTerm, Settlement
    from batching.moves.counters import Counts
    from batching.moves.rows import BatchRow

HANDLER = "tests.handler"
BROKEN = ErrorInfo("ValueError", "bad row", "f" * 16)
DONE = Outcome(Ending.SUCCEEDED, result='{"ok":true}')
FAILED = Outcome(Ending.FAILED, error=BROKEN)
GIVEN_BACK = Outcome(Ending.GIVEN_BACK)
MAX_LOSSES = 2
_TARGETS = {BatchState.CANCELLED: StopTarget.CANCELLED, BatchState.EXPIRED: StopTarget.EXPIRED}


def read_counts(database: Database, batch_id: str) -> Counts:
    with database.read() as connection:
        return counters.read(connection, batch_id)


def read_batch(database: Database, batch_id: str) -> BatchRow:
    with database.read() as connection:
        return read_batches(connection, [batch_id])[batch_id]


def effective_states(database: Database, batch_id: str) -> dict[int, ProfileState]:
    """What every row is read as, one by one, through the moves that are younger than it."""
    with database.read() as connection:
        moves = bulk.younger_moves(connection, batch_id)
        rows = connection.execute(
            select(profiles.c.number, profiles.c.state, profiles.c.generation).where(profiles.c.batch_id == batch_id)
        ).all()
    return {
        row.number: effective_state(
            ProfileState(row.state), tuple(move for number, move in moves.items() if number > row.generation)
        )
        for row in rows
    }


def assert_accounted(database: Database, batch_id: str) -> Counts:
    """Counters are what the rows say over effective states, and add up to the total; returns the counts."""
    with database.read() as connection:  # one snapshot: rows and counters agree at every commit
        batch = read_batches(connection, [batch_id])[batch_id]
        counts = counters.read(connection, batch_id)
        moves = bulk.younger_moves(connection, batch_id)
        rows = connection.execute(
            select(profiles.c.state, profiles.c.generation).where(profiles.c.batch_id == batch_id)
        ).all()
    recount = dict.fromkeys(ProfileState, 0)
    for row in rows:
        younger = tuple(move for number, move in moves.items() if number > row.generation)
        recount[effective_state(ProfileState(row.state), younger)] += 1
    assert {state: counts.of(state) for state in ProfileState} == recount
    assert sum(recount.values()) == batch.total
    return counts


def plant(database: Database, batch_id: str, values: Mapping[str, Any], *numbers: int) -> None:
    """Write something into profile rows (all of them without numbers) that no move writes: an age, a corruption."""
    chosen = [profiles.c.number.in_(numbers)] if numbers else []
    with database.begin() as connection:
        connection.execute(update(profiles).where(profiles.c.batch_id == batch_id, *chosen).values(**values))


def plant_batch(database: Database, batch_id: str, **values: object) -> None:
    """Write something into a batch's row that no move writes."""
    with database.begin() as connection:
        connection.execute(update(batches).where(batches.c.id == batch_id).values(**values))


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collects the SQL that is executed inside, in every thread; with many parameter sets still one statement."""
    seen: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    execute = Direct.execute

    def noted(direct: Direct, statement: Any, parameters: Any) -> Any:
        seen.append(str(statement))
        return execute(direct, statement, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Direct, "execute", noted)
        yield seen
    event.remove(database.engine, "before_cursor_execute", note)


class Desk:
    """A leader and a worker, both real, moved by hand; further workers are just other ids."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.states = BatchStateManager(database, max_losses=MAX_LOSSES)
        self.worker = str(uuid.uuid4())
        self._term: LeaderTerm | None = None

    @property
    def term(self) -> LeaderTerm:
        if self._term is None:
            self._term = self.states.lead(str(uuid.uuid4()), 600)
        assert self._term is not None
        return self._term

    def register(self, worker_id: str | None = None, handlers: tuple[str, ...] = (HANDLER,), slots: int = 4) -> str:
        """Announce a worker; by default the desk's own."""
        info = WorkerInfo(worker_id or self.worker, "host", 1, "prefork", slots, handlers, ("*",), "0")
        WorkerRegistry(self.database).register(info)
        return info.id

    def submit(
        self, count: int, *, queue: str = "default", priority: int = 0, handler: str = HANDLER, **options: object
    ) -> str:
        """A sealed batch of `count` profiles: one attempt, no back-off between passes, unless options say otherwise."""
        terms = BatchOptions.from_dict({"max_attempts": 1, "pass_backoff": 0, **options})
        batch_id = self.states.create_batch(BatchSpec(handler, "b", queue, priority=priority, options=terms)).id
        for first in range(1, count + 1, 5_000):
            numbers = range(first, min(first + 5_000, count + 1))
            self.states.add_profiles(batch_id, [ProfileInput(f"k{number}", f"{number}") for number in numbers])
        self.states.seal(batch_id)
        return batch_id

    def start(self, count: int, **more: Any) -> str:
        """A batch that runs."""
        batch_id = self.submit(count, **more)
        assert self.states.promote(more.get("queue", "default"), self.term) == batch_id
        return batch_id

    def dispatch(self, batch_id: str, limit: int = 1_000) -> list[RunId]:
        return [each.run for each in self.dispatches(batch_id, limit)]

    def dispatches(self, batch_id: str, limit: int = 1_000) -> list[Dispatch]:
        return self.states.dispatch(batch_id, limit, self.term)

    def claim(self, batch_id: str, limit: int = 1_000, worker: str | None = None) -> list[Claimed]:
        """Dispatch and claim the next profiles."""
        return self.states.claim(worker or self.worker, self.dispatch(batch_id, limit)).claimed

    def settle(self, claimed: list[Claimed], outcome: Outcome = DONE, worker: str | None = None) -> None:
        """End all of these runs alike."""
        ends = [end(each, outcome) for each in claimed]
        assert len(self.states.settle(worker or self.worker, ends).applied) == len(ends)

    def work(self, batch_id: str, outcome: Callable[[int], Outcome] = lambda _: DONE, limit: int = 1_000) -> list[str]:
        """Run what is due, and conclude; returns whether the batch moved, as `conclude` does."""
        claimed = self.claim(batch_id, limit)
        self.states.settle(self.worker, [end(each, outcome(each.run.number)) for each in claimed])
        return self.states.conclude([batch_id])

    def rewrite(self, batch_id: str, limit: int = 5_000) -> int:
        """Write all bulk moves into the rows; returns the steps that it took."""
        steps = 1
        while self.states.rewrite(batch_id, limit):
            steps += 1
        return steps

    def state(self, batch_id: str) -> BatchState:
        return read_batch(self.database, batch_id).state

    def finish(self, state: BatchState, count: int = 2) -> str:
        """A batch in a terminal state."""
        if state is BatchState.SUCCEEDED:
            batch_id = self.start(count)
            self.work(batch_id)
        elif state is BatchState.FAILED:
            batch_id = self.start(count, max_passes=1)
            self.work(batch_id, lambda _: FAILED)
        else:
            batch_id = self.submit(count)
            self.states.stop(batch_id, _TARGETS[state], "for the test")
        assert self.state(batch_id) is state
        self.rewrite(batch_id)
        return batch_id


def end(claimed: Claimed, outcome: Outcome = DONE) -> Settlement:
    """The settlement of a run, with a fixed jitter."""
    return settlement(claimed, outcome, MAX_LOSSES, 0.0)
