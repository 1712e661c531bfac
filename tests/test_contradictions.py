"""Two operators do contradictory things at once, from every state: the outcome is that of one after the other.

The first holds its locks in an open transaction while the second, on a connection of its own, comes and waits for them.
Every ordered pair of verbs is tried from every state, and compared with what the same two do one after the other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import select

from batching.database import Database
from batching.errors import BatchingError
from batching.models import batches, history
from batching.moves import batch as batch_moves
from batching.moves import queue_order
from batching.moves.turns import places
from batching.options import BatchOptions, BatchSpec, ProfileInput
from batching.states import BatchState, StopTarget
from tests.accounting import DONE, FAILED, HANDLER, Desk, assert_accounted
from tests.support import eventually
from tests.test_races import waits_for_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from batching.interfaces import Claimed

VERBS: dict[str, Callable[[Connection, str], Any]] = {
    "pause": lambda connection, batch: batch_moves.stop(connection, batch, StopTarget.PAUSED, "pause"),
    "resume": batch_moves.resume,
    "cancel": lambda connection, batch: batch_moves.stop(connection, batch, StopTarget.CANCELLED, "cancel"),
    "retry": lambda connection, batch: batch_moves.reopen(connection, batch, "retry"),
    "move to the front": lambda connection, batch: bool(queue_order.move(connection, batch, "front")),
    "move to a place": lambda connection, batch: bool(queue_order.move(connection, batch, 2)),
    "execute": batch_moves.request_promotion,
    "complete": batch_moves.mark_completed,
}
OPTIONS = BatchOptions(max_attempts=1, max_passes=1, pass_backoff=0)


class Outcome(NamedTuple):
    """What two verbs came to, and what became of the batch."""

    answers: dict[str, str]
    state: str
    target: str | None
    urgent: bool
    pass_number: int
    line: tuple[str, ...]
    counts: tuple[int, ...]
    history: tuple[tuple[str | None, str, str], ...]


class Scene:
    """A batch in some state, with a batch before it and one behind it in a queue of their own."""

    number = 0

    def __init__(self, desk: Desk, prepare: Callable[[Scene], None]) -> None:
        Scene.number += 1
        self.desk = desk
        self.queue = f"q{Scene.number}"
        self.claimed: list[Claimed] = []
        self.before, self.batch, self.behind = [self._submit(name) for name in ("before", "batch", "behind")]
        prepare(self)

    def _submit(self, name: str) -> str:
        profiles = [ProfileInput(f"k{number}", "1") for number in range(3)]
        return self.desk.states.submit_whole(BatchSpec(HANDLER, name, self.queue, options=OPTIONS), profiles).id

    def run(self, claim: int = 1) -> None:
        """It runs, with so many profiles claimed."""
        self.desk.states.request_promotion(self.batch)
        assert self.desk.states.promote(self.queue, self.desk.term) == self.batch
        self.claimed = self.desk.claim(self.batch, claim)

    def stop(self, target: StopTarget) -> None:
        self.desk.states.stop(self.batch, target, "before")

    def finish(self, outcome: Any) -> None:
        self.run(3)
        self.desk.settle(self.claimed, outcome)
        self.desk.states.conclude([self.batch])

    def outcome(self, answers: dict[str, str]) -> Outcome:
        named = {self.before: "before", self.batch: "batch", self.behind: "behind"}
        shown = places(batches.c.queue == self.queue)
        with self.desk.database.read() as connection:
            row = connection.execute(select(batches).where(batches.c.id == self.batch)).one()
            line = connection.scalars(select(shown.c.id).order_by(shown.c.place)).all()
            lived = connection.execute(
                select(history.c.from_state, history.c.to_state, history.c.reason)
                .where(history.c.batch_id == self.batch)
                .order_by(history.c.id)
            ).all()
        counts = assert_accounted(self.desk.database, self.batch)
        told = {verb: answer.replace(self.batch, "it") for verb, answer in answers.items()}
        return Outcome(
            told,
            row.state,
            row.target,
            bool(row.urgent),
            row.pass_number,
            tuple(named[each] for each in line),
            tuple(counts[:8]),
            tuple((each.from_state, each.to_state, each.reason) for each in lived),
        )


STATES: dict[str, Callable[[Scene], None]] = {
    "queued": lambda scene: None,
    "running": lambda scene: scene.run(),
    "about to be paused": lambda scene: (scene.run(), scene.stop(StopTarget.PAUSED))[0],  # type: ignore[func-returns-value]
    "about to be cancelled": lambda scene: (scene.run(), scene.stop(StopTarget.CANCELLED))[0],  # type: ignore[func-returns-value]
    "paused": lambda scene: scene.stop(StopTarget.PAUSED),
    "succeeded": lambda scene: scene.finish(DONE),
    "failed": lambda scene: scene.finish(FAILED),
    "cancelled": lambda scene: scene.stop(StopTarget.CANCELLED),
}


@pytest.fixture
def desk(postgresql_url: str) -> Iterator[Desk]:
    """SQLite has one writer: there, one after the other is all there is."""
    database = Database(postgresql_url)
    yield Desk(database)
    database.close()


def answer(scene: Scene, verb: str) -> str:
    """What one operator is told, in a transaction of its own."""
    try:
        with scene.desk.database.begin() as connection:
            return str(VERBS[verb](connection, scene.batch))
    except BatchingError as error:
        return f"{type(error).__name__}: {error}"


def one_after_the_other(desk: Desk, state: str, first: str, second: str) -> Outcome:
    scene = Scene(desk, STATES[state])
    return scene.outcome({f"1 {first}": answer(scene, first), f"2 {second}": answer(scene, second)})


def at_once(desk: Desk, pool: ThreadPoolExecutor, state: str, first: str, second: str) -> Outcome:
    scene = Scene(desk, STATES[state])
    later = None
    try:
        with desk.database.begin() as connection:
            told = str(VERBS[first](connection, scene.batch))
            later = pool.submit(answer, scene, second)
            eventually(lambda: later.done() or waits_for_lock(desk.database), interval=0.002)
            assert not later.done(), f"{second} did not wait for {first} of a batch that is {state}"
    except BatchingError as error:
        told = f"{type(error).__name__}: {error}"
    return scene.outcome({f"1 {first}": told, f"2 {second}": later.result() if later else answer(scene, second)})


def swapped(outcome: Outcome) -> Outcome:
    """The same, with the operators' numbers changed: who came second in the series was the first of the race."""
    swap = {"1": "2", "2": "1"}
    return outcome._replace(answers={swap[key[0]] + key[1:]: told for key, told in outcome.answers.items()})


@pytest.mark.parametrize("state", STATES)
def test_two_contradictory_verbs_at_once_come_to_what_one_after_the_other_comes_to(desk: Desk, state: str) -> None:
    serial = {(first, second): one_after_the_other(desk, state, first, second) for first in VERBS for second in VERBS}
    waited = 0
    with ThreadPoolExecutor(1) as pool:
        for first in VERBS:
            for second in VERBS:
                raced = at_once(desk, pool, state, first, second)
                possible = [serial[first, second], swapped(serial[second, first])]
                assert raced in possible, f"{first} and {second} of a batch that is {state}: {raced}\nnot {possible}"
                waited += "Error" not in raced.answers[f"1 {first}"]
    assert waited, "no verb applied, so nobody had to wait"


def test_the_comparison_can_fail(desk: Desk) -> None:
    """Outcomes of different orders differ: a pause of a batch that was cancelled is refused."""
    first = one_after_the_other(desk, "queued", "pause", "cancel")
    second = one_after_the_other(desk, "queued", "cancel", "pause")
    assert first.state == second.state == BatchState.CANCELLED
    assert first != swapped(second)
    assert "IllegalMoveError: cannot pause batch it" in second.answers["2 pause"]
