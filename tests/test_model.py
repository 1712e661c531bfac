"""A batch as Hypothesis drives it, against an independent model of it: same states, same counts, after every step.

The model knows nothing of generations, tickets or counters: it moves every profile at once, as the design tells it.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batching.errors import IllegalMoveError
from batching.interfaces import Ending, Outcome, RunId
from batching.registry import WorkerRegistry
from batching.states import BatchState, StopTarget
from tests.accounting import BROKEN, MAX_LOSSES, Desk, assert_accounted, effective_states, end, read_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database
    from batching.interfaces import Claimed

ENDINGS = {
    Ending.SUCCEEDED: "succeeded",
    Ending.SKIPPED: "skipped",
    Ending.REVOKED: "cancelled",
    Ending.GIVEN_BACK: "pending",
}
STRENGTH = ("paused", "requeue", "failed", "expired", "cancelled")
FINISHED = {"succeeded", "failed", "cancelled", "expired"}
WORKERS = [str(uuid.UUID(int=number)) for number in (1, 2, 3)]


@dataclass
class ModelProfile:
    state: str = "pending"
    run: int = 0
    attempts: int = 0
    tried_in: int = 0
    losses: int = 0
    worker: str = ""


@dataclass
class ModelBatch:
    """What the design says about one batch, in plain Python."""

    size: int
    max_attempts: int
    max_passes: int
    budget: int
    fail_fast: bool
    state: str = "queued"
    target: str = ""
    pass_number: int = 1
    last_pass: int = 0
    aborts: int = 0
    unwritten: bool = False
    profiles: dict[int, ModelProfile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.last_pass = self.max_passes
        self.profiles = {number: ModelProfile() for number in range(1, self.size + 1)}

    def counts(self) -> Counter[str]:
        return Counter(each.state for each in self.profiles.values())

    def move_all(self, sources: set[str], to: str) -> None:
        for each in self.profiles.values():
            if each.state in sources:
                each.state = to

    def dispatch(self, limit: int) -> list[tuple[int, int]]:
        waiting = [number for number, each in self.profiles.items() if each.state == "pending"]
        chosen = waiting[:limit] if self.state == "running" and not self.unwritten else []
        for number in chosen:
            each = self.profiles[number]
            if each.tried_in != self.pass_number:
                each.attempts, each.tried_in = 0, self.pass_number
            each.state = "dispatched"
        return [(number, self.profiles[number].run + 1) for number in chosen]

    def claim(self, worker: str, number: int, run: int) -> bool:
        each = self.profiles[number]
        if self.state != "running" or each.state != "dispatched" or each.run + 1 != run:
            return False
        each.state, each.run, each.worker = "running", run, worker
        return True

    def settle(self, worker: str, number: int, run: int, ending: Ending) -> bool:
        each = self.profiles[number]
        if (each.state, each.run, each.worker) != ("running", run, worker):
            return False
        each.state = ENDINGS.get(ending, "pending")
        if ending is Ending.LOST:
            each.state = "failed" if each.losses >= MAX_LOSSES else "pending"
            each.losses += 1
        elif ending is not Ending.GIVEN_BACK:
            each.losses, each.attempts = 0, each.attempts + 1
        if ending in {Ending.FAILED, Ending.RETRY} and each.attempts >= self.max_attempts:
            each.state = "failed"
        if ending is Ending.FAILED_BATCH:
            each.state, self.aborts = "failed", self.aborts + 1
        if each.state == "pending" and self.target in {"cancelled", "expired"}:
            each.state = self.target
        return True

    def held_by(self, worker: str) -> list[tuple[int, int]]:
        rows = self.profiles.items()
        return [(number, each.run) for number, each in rows if (each.state, each.worker) == ("running", worker)]

    def pass_failed(self) -> bool:
        return self.aborts > 0 or self.counts()["failed"] > self.budget

    def unsettled(self) -> int:
        counts = self.counts()
        return counts["pending"] + counts["dispatched"] + counts["running"]

    def conclude(self) -> None:
        failed = self.pass_failed()
        if self.state == "running" and (not self.unsettled() or (self.fail_fast and failed)):
            if not failed:
                self.state = "succeeded"
                return
            self.head_for(self.after_failure())
        if self.state == "stopping":
            self.reach()

    def after_failure(self) -> str:
        return "requeue" if self.pass_number < self.last_pass else "failed"

    def head_for(self, target: str) -> None:
        self.state, self.target = "stopping", target
        if target in {"cancelled", "expired"}:
            self.move_all({"pending", "dispatched"}, target)
        else:
            self.move_all({"dispatched"}, "pending")

    def reach(self) -> None:
        if self.counts()["running"]:
            return
        if self.target == "paused" and not self.unsettled():
            self.target = self.after_failure() if self.pass_failed() else "succeeded"
        if self.target == "expired" and not self.counts()["expired"] and not self.pass_failed():
            self.target = "succeeded"  # the last of it was done while the stop was on its way
        if self.target == "requeue":
            self.move_all({"failed"}, "pending")
            self.state, self.pass_number, self.aborts = "queued", self.pass_number + 1, 0
        else:
            if self.target == "failed":
                self.move_all({"pending"}, "cancelled")
            self.state = self.target
        self.target = ""

    def stop(self, target: str) -> bool:
        if self.state in FINISHED:
            return False
        if self.state in {"queued", "paused"}:
            if target != "paused":
                self.move_all({"pending"}, target)
            self.state = target
        else:
            if self.state == "running" or STRENGTH.index(target) > STRENGTH.index(self.target):
                self.head_for(target)
            self.reach()
        return True

    def retry(self) -> bool:
        counts = self.counts()
        if self.state not in FINISHED or not counts["failed"] + counts["cancelled"] + counts["expired"]:
            return False
        self.move_all({"failed", "cancelled", "expired"}, "pending")
        self.state, self.pass_number, self.aborts = "queued", self.pass_number + 1, 0
        self.last_pass = self.pass_number + self.max_passes - 1
        return True


class BatchMachine(RuleBasedStateMachine):
    """Steps that may come in any order; what may not happen must be refused by both."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(self.database)
        self.offers: list[tuple[int, int]] = []
        self.held: list[tuple[str, Claimed]] = []

    @initialize(
        size=st.integers(1, 6),
        attempts=st.integers(1, 2),
        passes=st.integers(1, 3),
        budget=st.integers(0, 2),
        fast=st.booleans(),
    )
    def submit(self, size: int, attempts: int, passes: int, budget: int, fast: bool) -> None:
        terms: dict[str, Any] = {
            "max_attempts": attempts,
            "max_passes": passes,
            "failure_budget": budget,
            "fail_fast": fast,
        }
        self.batch_id = self.desk.submit(size, queue=f"q{uuid.uuid4().hex}", retry_backoff=0, **terms)
        self.queue = read_batch(self.database, self.batch_id).queue
        self.model = ModelBatch(size, attempts, passes, budget, fast)

    @rule()
    def promote(self) -> None:
        promoted = self.desk.states.promote(self.queue, self.desk.term)
        assert (promoted == self.batch_id) is (self.model.state == "queued")
        if promoted:
            self.model.state = "running"

    @rule(limit=st.integers(1, 6))
    def dispatch(self, limit: int) -> None:
        sent = [(run.number, run.run) for run in self.desk.dispatch(self.batch_id, limit)]
        assert sent == self.model.dispatch(limit)
        self.offers += sent

    @precondition(lambda self: self.offers)
    @rule(data=st.data(), worker=st.sampled_from(WORKERS))
    def claim(self, data: st.DataObject, worker: str) -> None:
        """Any offers there ever were: duplicates, and those of runs long over."""
        chosen = data.draw(st.lists(st.sampled_from(self.offers), max_size=6, unique=True))
        won = self.desk.states.claim(worker, [RunId(self.batch_id, *each) for each in chosen]).claimed
        expected = [each for each in sorted(chosen) if self.model.claim(worker, *each)]
        assert [(each.run.number, each.run.run) for each in won] == expected
        for each in won:
            assert each.attempt == self.model.profiles[each.run.number].attempts + 1
            assert each.losses == self.model.profiles[each.run.number].losses
        self.held += [(worker, each) for each in won]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ending=st.sampled_from(Ending), conclude=st.booleans())
    def settle(self, data: st.DataObject, ending: Ending, conclude: bool) -> None:
        """Any runs that were ever won: late results and results sent twice."""
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.held))), min_size=1, max_size=4, unique=True))
        for index in chosen:
            worker, claimed = self.held[index]
            outcome = Outcome(ending, error=BROKEN, delay=0.0)
            result = self.desk.states.settle(worker, [end(claimed, outcome)])
            applied = self.model.settle(worker, claimed.run.number, claimed.run.run, ending)
            assert bool(result.applied) is applied
        if conclude:
            self.conclude()

    @rule(worker=st.sampled_from(WORKERS))
    def set_going(self, worker: str) -> None:
        """The ordinary way in one step, or chance would seldom get far along it: promoted, written, sent, claimed."""
        self.promote()
        self.desk.rewrite(self.batch_id)
        self.same()
        offered = len(self.offers)
        self.dispatch(3)
        for number, run in self.offers[offered:]:
            (won,) = self.desk.states.claim(worker, [RunId(self.batch_id, number, run)]).claimed
            assert self.model.claim(worker, number, run)
            self.held.append((worker, won))

    @precondition(lambda self: self.model.counts()["running"])
    @rule(ending=st.sampled_from([Ending.FAILED_BATCH, Ending.FAILED, Ending.SUCCEEDED, Ending.LOST]))
    def end_all(self, ending: Ending) -> None:
        """Whatever runs ends alike, and the batch is concluded."""
        for worker, claimed in self.held:
            self.desk.states.settle(worker, [end(claimed, Outcome(ending, error=BROKEN, delay=0.0))])
            self.model.settle(worker, claimed.run.number, claimed.run.run, ending)
        self.conclude()

    @rule()
    def conclude(self) -> None:
        self.desk.states.conclude([self.batch_id])
        self.model.conclude()

    @rule(wanted=st.sampled_from([StopTarget.PAUSED, StopTarget.CANCELLED, StopTarget.EXPIRED]))
    def stop(self, wanted: StopTarget) -> None:
        self._verb(self.model.stop(wanted.value), lambda: self.desk.states.stop(self.batch_id, wanted, "s"))

    @rule()
    def resume(self) -> None:
        paused = self.model.state == "paused"
        if paused:
            self.model.state = "queued"
        self._verb(paused, lambda: self.desk.states.resume(self.batch_id))

    @rule()
    def retry(self) -> None:
        self._verb(self.model.retry(), lambda: self.desk.states.retry(self.batch_id))

    def _verb(self, allowed: bool, act: Callable[[], object]) -> None:
        if allowed:
            act()
        else:
            with pytest.raises(IllegalMoveError):
                act()

    @rule(worker=st.sampled_from(WORKERS))
    def take_back(self, worker: str) -> None:
        taken = self.desk.states.take_back(worker, None, self.desk.term)
        held = self.model.held_by(worker)
        assert [(run.number, run.run) for run in taken or []] == held
        for number, run in held:
            self.model.settle(worker, number, run, Ending.LOST)

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def give_back(self, worker: str, data: st.DataObject) -> None:
        held = self.model.held_by(worker)
        chosen = data.draw(st.lists(st.sampled_from(held), unique=True)) if held else []
        assert self.desk.states.give_back(worker, [RunId(self.batch_id, *each) for each in chosen]) == len(chosen)
        for number, run in chosen:
            self.model.settle(worker, number, run, Ending.GIVEN_BACK)

    @rule(limit=st.integers(1, 8))
    def rewrite(self, limit: int) -> None:
        self.desk.states.rewrite(self.batch_id, limit)

    @invariant()
    def same(self) -> None:
        batch = read_batch(self.database, self.batch_id)
        model = self.model
        model.unwritten = batch.rewritten != batch.generation
        assert (batch.state, batch.target or "") == (model.state, model.target)
        assert (batch.pass_number, batch.last_pass) == (model.pass_number, model.last_pass)
        stored = effective_states(self.database, self.batch_id)
        assert stored == {number: each.state for number, each in model.profiles.items()}
        counts = assert_accounted(self.database, self.batch_id)
        assert counts.aborts == model.aborts
        assert min(counts) >= 0
        if batch.state is BatchState.SUCCEEDED:
            assert counts.unsettled == 0

    def teardown(self) -> None:
        if hasattr(self, "batch_id"):  # the term of this example must not be in the way of the next
            self.desk.states.resign(self.desk.term)
            for worker in WORKERS:  # what is left running would be taken back by the next example's sweep
                WorkerRegistry(self.database).leave(worker)


def test_a_batch_behaves_like_its_model(database: Database) -> None:
    machine = type("Machine", (BatchMachine,), {"database": database})
    examples = 60 if database.dialect == "sqlite" else 40
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
