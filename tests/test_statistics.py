"""Every read, against batches that the real state manager moved, on both engines."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, insert, literal, update

from batching.dialects import later, now
from batching.errors import InvalidInputError, UnknownBatchError
from batching.interfaces import Ending, ErrorInfo, LeaderTerm, Outcome, WorkerInfo
from batching.models import batches, leases, queues, rates, workers
from batching.options import BatchOptions, BatchSpec, ProfileInput
from batching.policies import settlement
from batching.registry import WorkerRegistry
from batching.state_manager import BatchStateManager
from batching.states import BatchState, ProfileState, StopTarget
from batching.statistics import BatchView, Statistics
from batching.statistics.reason import Facts, why

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database
    from batching.interfaces import Claimed

HANDLER = "tests.handler"
FAILURE = Outcome(Ending.FAILED, error=ErrorInfo("ValueError", "bad row", "f" * 16, "Traceback …"))
OTHER_FAILURE = Outcome(Ending.FAILED, error=ErrorInfo("KeyError", "'x'", "a" * 16))
WAITING = ("k3", "k4", "k5")
SUCCESS = Outcome(Ending.SUCCEEDED, result='{"sum":3}')


class Line:
    """A queue with a leader and one worker, all of them real, moved by hand."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.states = BatchStateManager(database)
        self.statistics = Statistics(database)
        self.worker = str(uuid.uuid4())
        self._term: LeaderTerm | None = None

    @property
    def term(self) -> LeaderTerm:
        if self._term is None:
            self._term = self.states.lead(str(uuid.uuid4()), 60)
        assert self._term is not None
        return self._term

    def submit(self, count: int, *, queue: str = "default", priority: int = 0, **options: object) -> str:
        terms = BatchOptions.from_dict({"max_attempts": 1, "pass_backoff": 0, **options})
        spec = BatchSpec(HANDLER, f"batch of {count}", queue, priority=priority, options=terms)
        batch_id = self.states.create_batch(spec).id
        for start in range(0, count, 500):
            numbers = range(start + 1, min(start + 500, count) + 1)
            self.states.add_profiles(batch_id, [ProfileInput(f"k{number}", f'{{"n":{number}}}') for number in numbers])
        self.states.seal(batch_id)
        return batch_id

    def start_worker(self, handlers: tuple[str, ...] = (HANDLER,), serves: tuple[str, ...] = ("*",)) -> None:
        info = WorkerInfo(self.worker, "host", 4711, "prefork", 4, handlers, serves, "0.1.0")
        WorkerRegistry(self.database).register(info)

    def promote(self, queue: str = "default") -> str:
        promoted = self.states.promote(queue, self.term)
        assert promoted is not None
        return promoted

    def claim(self, batch_id: str, limit: int) -> list[Claimed]:
        """Dispatch and claim the next profiles."""
        dispatched = self.states.dispatch(batch_id, limit, self.term)
        return self.states.claim(self.worker, [each.run for each in dispatched]).claimed

    def settle(self, claimed: list[Claimed], outcome: Callable[[int], Outcome]) -> None:
        ends = [settlement(each, outcome(each.run.number), 2, 0.5) for each in claimed]
        assert len(self.states.settle(self.worker, ends).applied) == len(claimed)

    def work(self, batch_id: str, limit: int, outcome: Callable[[int], Outcome] = lambda _: SUCCESS) -> None:
        self.settle(self.claim(batch_id, limit), outcome)

    def measure(self, batch_id: str, per_second: float, seconds_ago: float = 0) -> None:
        moment = later(literal(-seconds_ago))
        with self.database.begin() as connection:
            values = {"batch_id": batch_id, "per_second": per_second, "settled": 1, "measured_at": moment}
            values |= {"counted": int(60 * per_second), "over_seconds": 60.0, "deviation": per_second / 10}
            connection.execute(insert(rates).values(values))

    def states_of(self, batch_id: str) -> dict[str, str]:
        return {line.key: line.state for line in self.statistics.results(batch_id)}

    def view(self, batch_id: str) -> BatchView:
        """The batch; its counts must be those of its rows, and add up."""
        view = self.statistics.batch(batch_id)
        rows = Counter(line.state for line in self.statistics.results(batch_id))
        assert {state: getattr(view, state) for state in ProfileState if getattr(view, state)} == rows
        assert view.settled + view.unsettled == view.total
        return view


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


# --- one batch


def test_a_fresh_batch_waits_in_line(line: Line) -> None:
    batch_id = line.submit(3, max_passes=5)

    view = line.view(batch_id)

    assert (view.state, view.place, view.pass_number, view.max_passes) == ("queued", 1, 1, 5)
    assert (view.total, view.pending, view.percent) == (3, 3, 0)
    assert (view.rate, view.eta_seconds) == (None, None)
    assert (view.name, view.handler, view.queue, view.key, view.sealed) == (
        "batch of 3",
        HANDLER,
        "default",
        None,
        True,
    )
    assert view.created_at.tzinfo is UTC
    assert view.started_at is None


def test_a_retry_by_a_person_counts_the_passes_anew(line: Line) -> None:
    batch_id = line.submit(1, max_passes=3)
    line.states.stop(batch_id, StopTarget.CANCELLED, "c")
    line.states.retry(batch_id)
    view = line.view(batch_id)
    assert (view.pass_number, view.max_passes) == (2, 4)


def test_json_has_what_the_contract_names(line: Line) -> None:
    document = line.view(line.submit(1)).as_json()

    names = (
        "id name key handler queue state pass place total pending dispatched running succeeded failed skipped "
        "cancelled expired rate eta_seconds eta_low eta_high eta_basis reason created_at started_at finished_at "
        "priority group target sealed "
        "max_passes duplicates late options percent start_at deadline tags properties waits_for"
    )
    assert set(document) == set(names.split())
    assert json.loads(json.dumps(document)) == document
    assert datetime.fromisoformat(document["created_at"]).tzinfo is not None


def test_a_loading_batch_is_invisible(line: Line) -> None:
    batch_id = line.states.create_batch(BatchSpec(HANDLER, "loading")).id
    line.states.add_profiles(batch_id, [ProfileInput("a", "1")])

    assert line.statistics.batches() == []
    for read in (
        line.statistics.batch,
        line.statistics.results,
        line.statistics.place_in_line,
        line.statistics.history,
    ):
        with pytest.raises(UnknownBatchError, match=batch_id):
            read(batch_id)


@pytest.mark.parametrize("unknown", [str(uuid.uuid4()), "x", "", "0123456-zz", "'; DROP TABLE batches; --"])
def test_an_unknown_batch_is_named(line: Line, unknown: str) -> None:
    with pytest.raises(UnknownBatchError, match=re.escape(repr(unknown))):
        line.statistics.batch(unknown)


def test_a_prefix_of_an_id_is_enough_when_it_is_unique(line: Line) -> None:
    first = line.submit(1)
    with line.database.begin() as connection:  # two ids that differ in their last digit only
        twin = first[:-1] + ("0" if first[-1] != "0" else "1")
        row = connection.execute(batches.select().where(batches.c.id == first)).one()
        connection.execute(insert(batches).values(dict(row._mapping) | {"id": twin}))

    assert line.statistics.resolve(first) == first
    assert line.statistics.resolve(first.upper().replace("-", "")) == first
    with pytest.raises(InvalidInputError) as refused:
        line.statistics.resolve(first[:-1])
    assert first in str(refused.value)
    assert twin in str(refused.value)
    with pytest.raises(InvalidInputError, match="at least 8"):
        line.statistics.resolve(first[:7])


def test_percent_is_never_100_before_the_end(line: Line) -> None:
    batch_id = line.submit(300)
    line.promote()
    line.work(batch_id, 299)
    assert line.view(batch_id).percent == 99
    line.work(batch_id, 1)

    assert line.view(batch_id).percent == 99  # all is settled, but it has not finished yet
    line.states.conclude([batch_id])
    assert line.view(batch_id).percent == 100
    assert line.view(batch_id).reason == ""


def test_an_empty_batch_has_no_division_by_zero(line: Line) -> None:
    view = line.view(line.submit(0))
    assert (view.percent, view.total, view.eta_seconds) == (0, 0, None)


# --- the list


def test_the_list_is_running_then_the_line_then_finished_newest_first(line: Line) -> None:
    ended = [line.submit(1), line.submit(1)]
    for batch_id in ended:
        line.states.stop(batch_id, StopTarget.CANCELLED, "not wanted")
    runs, low, high, parked = line.submit(2), line.submit(1, priority=-1), line.submit(1, priority=5), line.submit(1)
    line.states.stop(parked, StopTarget.PAUSED, "wait")
    waits = line.submit(1)
    line.states.request_promotion(runs)
    assert line.promote() == runs

    listed = line.statistics.batches()

    assert [view.id for view in listed] == [runs, high, waits, low, parked, *reversed(ended)]
    assert [view.place for view in listed] == [0, 1, 2, 3, None, None, None]
    assert [line.statistics.place_in_line(view.id) for view in listed] == [view.place for view in listed]
    assert listed == [line.statistics.batch(view.id) for view in listed]
    assert [view.id for view in line.statistics.batches(limit=2)] == [runs, high]
    assert [view.id for view in line.statistics.batches(states=[BatchState.PAUSED])] == [parked]
    assert line.statistics.batches(states=[]) == []


def test_lines_of_two_queues_are_counted_apart(line: Line) -> None:
    here, there = line.submit(1), line.submit(1, queue="other")

    assert line.view(here).place == line.view(there).place == 1
    assert [view.id for view in line.statistics.batches(queue="other")] == [there]
    assert line.statistics.batches(queue="nowhere") == []
    assert [(queue.name, queue.queued, queue.running) for queue in line.statistics.queues()] == [
        ("default", 1, 0),
        ("other", 1, 0),
    ]


def test_the_list_takes_as_many_queries_for_many_batches_as_for_one(line: Line) -> None:
    def statements() -> int:
        seen: list[str] = []

        def note(*arguments: object) -> None:
            seen.append(str(arguments[2]))

        event.listen(line.database.engine, "before_cursor_execute", note)
        line.statistics.batches()
        event.remove(line.database.engine, "before_cursor_execute", note)
        return len(seen)

    line.submit(1)
    for_one = statements()
    for _ in range(20):
        line.submit(1)

    assert statements() == for_one


# --- rate and ETA


def test_eta_counts_what_is_left_at_the_measured_rate(line: Line) -> None:
    line.start_worker()
    runs, waits, last = line.submit(100), line.submit(50), line.submit(10)
    line.promote()
    line.work(runs, 20)
    line.measure(runs, 10.0)

    assert (line.view(runs).rate, line.view(runs).eta_seconds) == (10.0, 8.0)
    assert (line.view(waits).rate, line.view(waits).eta_seconds) == (None, 13.0)
    assert line.view(last).eta_seconds == 14.0
    assert (line.view(runs).eta_low, line.view(runs).eta_high) == (6.7, 10.0)
    assert line.view(runs).eta_basis == "600 settled in the last 60 s"
    assert line.view(last).eta_basis == "600 settled in the last 60 s by what runs now; 2 batches ahead"


def test_eta_of_what_cannot_move_is_unknown_and_says_why(line: Line) -> None:
    runs, waits = line.submit(10), line.submit(10)
    line.promote()
    line.measure(runs, 10.0)
    line.states.stop(waits, StopTarget.PAUSED, "lunch")

    assert line.view(runs).eta_seconds is None
    assert line.view(runs).eta_basis == f"unknown: no live worker serves handler {HANDLER} in queue default"
    assert line.view(waits).eta_basis == "unknown: lunch"
    line.states.stop(waits, StopTarget.CANCELLED, "no more")
    assert line.view(waits).eta_basis == ""


@pytest.mark.parametrize(("per_second", "seconds_ago"), [(10.0, 31), (0.0, 0)])
def test_eta_is_unknown_without_a_fresh_rate(line: Line, per_second: float, seconds_ago: float) -> None:
    line.start_worker()
    runs, waits = line.submit(10), line.submit(10)
    line.promote()
    line.claim(runs, 1)
    line.measure(runs, per_second, seconds_ago)

    assert line.view(runs).eta_seconds is None
    assert line.view(waits).eta_seconds is None
    assert line.view(runs).eta_basis.startswith("unknown: nothing was measured" if seconds_ago else "unknown: only 0")
    assert line.view(runs).rate == (None if seconds_ago else 0.0)


# --- reasons


def test_a_batch_that_moves_has_no_reason(line: Line) -> None:
    line.start_worker()
    batch_id = line.submit(2)
    line.promote()
    line.claim(batch_id, 1)

    assert line.view(batch_id).reason == ""


def test_a_queued_batch_says_what_it_waits_for(line: Line) -> None:
    first, second, third = line.submit(1), line.submit(1), line.submit(1)
    assert line.view(first).reason == f"no live worker serves handler {HANDLER} in queue default"
    line.start_worker()
    assert line.view(first).reason.startswith("no live manager leads")
    line.promote()

    assert line.view(second).reason == "behind 1 batch"
    assert line.view(third).reason == "behind 2 batches"
    with line.database.begin() as connection:
        connection.execute(update(queues).values(paused=True))
    assert line.view(second).reason == "queue default is paused"


def test_a_batch_between_passes_says_until_when(line: Line) -> None:
    batch_id = line.submit(1, pass_backoff=3600, pass_backoff_max=3600)
    line.promote()
    line.work(batch_id, 1, lambda _: FAILURE)
    line.states.conclude([batch_id])

    assert re.fullmatch(r"backs off until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", line.view(batch_id).reason)


@pytest.mark.parametrize(
    "unfit",
    [{"handlers": ("another",)}, {"serves": ("elsewhere",)}, {"serves": ()}],
    ids=["other handler", "other queue", "no queue"],
)
def test_a_worker_that_serves_another_lane_does_not_count(line: Line, unfit: dict[str, tuple[str, ...]]) -> None:
    line.start_worker(**unfit)
    batch_id = line.submit(1)
    line.promote()

    assert line.view(batch_id).reason == f"no live worker serves handler {HANDLER} in queue default"


@pytest.mark.parametrize("change", [{"draining": True}, {"heartbeat_at": later(literal(-21.0))}])
def test_a_silent_or_draining_worker_does_not_count(line: Line, change: dict[str, object]) -> None:
    line.start_worker()
    batch_id = line.submit(1)
    line.promote()
    assert line.view(batch_id).reason == ""
    with line.database.begin() as connection:
        connection.execute(update(workers).values(change))

    assert line.view(batch_id).reason == f"no live worker serves handler {HANDLER} in queue default"


def test_a_batch_that_waits_for_retries_says_until_when(line: Line) -> None:
    line.start_worker()
    batch_id = line.submit(2, max_attempts=3)
    line.promote()
    line.work(batch_id, 1, lambda _: Outcome(Ending.RETRY, delay=3600))
    assert line.view(batch_id).reason == ""  # the other profile is due
    line.work(batch_id, 1, lambda _: Outcome(Ending.RETRY, delay=7200))

    reason = line.view(batch_id).reason

    match = re.fullmatch(r"waits for retries until (.{19}) UTC", reason)
    assert match
    left = datetime.fromisoformat(match[1]).replace(tzinfo=UTC) - line.view(batch_id).created_at
    assert 3500 < left.total_seconds() < 3700


def test_a_stopping_batch_says_what_it_waits_for(line: Line) -> None:
    batch_id = line.submit(3)
    line.promote()
    line.claim(batch_id, 2)
    line.states.stop(batch_id, StopTarget.CANCELLED, "not wanted")

    view = line.view(batch_id)

    assert (view.state, view.target, view.place) == ("stopping", "cancelled", 0)
    assert view.reason == "stopping: 2 profiles still run, then cancelled"


def test_paused_and_ended_batches_keep_the_reason_they_were_given(line: Line) -> None:
    paused, cancelled = line.submit(1), line.submit(1)
    line.states.stop(paused, StopTarget.PAUSED, "lunch")
    line.states.stop(cancelled, StopTarget.CANCELLED, "not wanted")

    assert line.view(paused).reason == "lunch"
    assert line.view(cancelled).reason == "not wanted"


def test_reasons_are_decided_from_facts_alone() -> None:
    facts = Facts(
        state=BatchState.RUNNING,
        target=None,
        stored="pass 1 begins",
        queue="q",
        handler="h",
        pending=5,
        dispatched=0,
        running=0,
        ahead=0,
        queue_paused=False,
        sealed=True,
        served=True,
        led=True,
        backs_off_until=None,
        retries_at=None,
    )
    assert why(facts) == ""
    assert why(replace(facts, led=False)).startswith("no live manager")
    assert why(replace(facts, led=False, running=1)) == ""
    assert why(replace(facts, served=False, running=1)) == "no live worker serves handler h in queue q"
    assert why(replace(facts, pending=0, sealed=False)).startswith("open:")
    assert why(replace(facts, broker_away=True, dispatched=1)).startswith("the broker cannot be reached")
    assert why(replace(facts, broker_away=True, running=1)) == ""
    assert why(replace(facts, state=BatchState.PAUSED, stored="")) == "paused"
    assert why(replace(facts, state=BatchState.SUCCEEDED, stored="x")) == ""
    stopping = replace(facts, state=BatchState.STOPPING, target=StopTarget.PAUSED, running=1)
    assert why(stopping) == "stopping: 1 profile still runs, then paused"


# --- results, failures, attempts


def test_results_are_in_order_with_decoded_results_and_errors(line: Line) -> None:
    batch_id = line.submit(4, failure_budget=1)
    line.promote()
    outcomes = {1: SUCCESS, 2: FAILURE, 3: Outcome(Ending.SKIPPED, error=ErrorInfo("SkipProfile", "empty", "b" * 16))}
    line.work(batch_id, 3, outcomes.__getitem__)

    lines = [each.as_json() for each in line.statistics.results(batch_id)]

    assert lines == [
        {"key": "k1", "state": "succeeded", "attempts": 1, "result": {"sum": 3}, "error": None},
        {
            "key": "k2",
            "state": "failed",
            "attempts": 1,
            "result": None,
            "error": {"type": "ValueError", "message": "bad row", "fingerprint": "f" * 16},
        },
        {
            "key": "k3",
            "state": "skipped",
            "attempts": 1,
            "result": None,
            "error": {"type": "SkipProfile", "message": "empty", "fingerprint": "b" * 16},
        },
        {"key": "k4", "state": "pending", "attempts": 0, "result": None, "error": None},
    ]


def test_results_stream_over_page_ends(line: Line) -> None:
    batch_id = line.submit(2000)

    keys = [each.key for each in line.statistics.results(batch_id)]

    assert keys == [f"k{number}" for number in range(1, 2001)]


def test_results_of_a_batch_that_is_deleted_meanwhile_end_with_an_error(line: Line) -> None:
    batch_id = line.submit(1500)
    stream = line.statistics.results(batch_id)
    next(stream)
    with line.database.begin() as connection:
        connection.execute(batches.delete().where(batches.c.id == batch_id))

    with pytest.raises(UnknownBatchError, match="deleted meanwhile"):
        list(stream)


def test_after_a_failed_pass_failures_read_as_pending_before_and_after_they_are_rewritten(line: Line) -> None:
    batch_id = line.submit(3, failure_budget=0, fail_fast=False)
    line.promote()
    line.work(batch_id, 3, lambda number: FAILURE if number == 2 else SUCCESS)
    assert [group.count for group in line.statistics.failures(batch_id)] == [1]
    line.states.conclude([batch_id])

    def read() -> list[dict[str, object]]:
        view = line.view(batch_id)
        assert (view.state, view.pass_number, view.pending, view.succeeded, view.failed) == ("queued", 2, 1, 2, 0)
        assert line.statistics.failures(batch_id) == []
        return [each.as_json() for each in line.statistics.results(batch_id)]

    as_moved = read()
    assert as_moved[1] == {"key": "k2", "state": "pending", "attempts": 0, "result": None, "error": None}
    while line.states.rewrite(batch_id):
        pass
    assert read() == as_moved


def test_bulk_moves_add_up_in_their_order(line: Line) -> None:
    batch_id = line.submit(5)
    line.promote()
    line.work(batch_id, 1)
    held = line.claim(batch_id, 1)
    line.states.dispatch(batch_id, 1, line.term)

    line.states.stop(batch_id, StopTarget.PAUSED, "hold")
    assert line.states_of(batch_id) == dict.fromkeys(WAITING, "pending") | {
        "k1": "succeeded",
        "k2": "running",
    }
    assert line.view(batch_id).state == "stopping"
    line.settle(held, lambda _: SUCCESS)
    line.states.conclude([batch_id])
    line.states.stop(batch_id, StopTarget.CANCELLED, "no")
    assert set(line.states_of(batch_id).values()) == {"succeeded", "cancelled"}
    assert line.view(batch_id).cancelled == 3
    line.states.retry(batch_id)
    assert line.view(batch_id).pending == 3
    assert line.states_of(batch_id) == dict.fromkeys(WAITING, "pending") | {
        "k1": "succeeded",
        "k2": "succeeded",
    }


def test_failures_are_grouped_with_their_first_keys(line: Line) -> None:
    batch_id = line.submit(20, fail_fast=False)
    line.promote()
    line.work(batch_id, 15, lambda number: OTHER_FAILURE if number in {1, 4} else FAILURE if number > 5 else SUCCESS)

    groups = line.statistics.failures(batch_id)

    assert [group.as_json() for group in groups] == [
        {
            "fingerprint": "f" * 16,
            "type": "ValueError",
            "message": "bad row",
            "count": 10,
            "keys": ("k6", "k7", "k8", "k9", "k10"),
        },
        {"fingerprint": "a" * 16, "type": "KeyError", "message": "'x'", "count": 2, "keys": ("k1", "k4")},
    ]


def test_attempts_tell_every_run_of_a_profile(line: Line) -> None:
    batch_id = line.submit(1, max_attempts=3)
    line.promote()
    line.work(batch_id, 1, lambda _: Outcome(Ending.GIVEN_BACK))
    line.work(batch_id, 1, lambda _: Outcome(Ending.RETRY, FAILURE.result, FAILURE.error, delay=0))
    claimed = line.claim(batch_id, 1)

    running = line.statistics.attempts(batch_id, "k1")
    line.settle(claimed, lambda _: SUCCESS)
    done = line.statistics.attempts(batch_id, "k1")

    assert [(run.run, run.attempt, run.pass_number, run.outcome) for run in running] == [
        (1, 1, 1, "given back"),
        (2, 1, 1, "retried"),
        (3, 2, 1, "running"),
    ]
    assert done[:2] == running[:2]
    assert (done[2].outcome, done[2].attempt, done[2].worker_id, done[2].error) == ("succeeded", 2, line.worker, None)
    assert done[2].ended_at is not None
    assert done[1].error == {"type": "ValueError", "message": "bad row", "fingerprint": "f" * 16}
    with pytest.raises(InvalidInputError, match="'k2'"):
        line.statistics.attempts(batch_id, "k2")


def test_history_tells_every_transition(line: Line) -> None:
    batch_id = line.submit(1)
    line.promote()
    line.work(batch_id, 1)
    line.states.conclude([batch_id])

    told = [(entry.from_state, entry.to_state) for entry in line.statistics.history(batch_id)]

    assert told[-2:] == [("queued", "running"), ("running", "succeeded")]


# --- workers, counts, leaders


def test_workers_tell_what_they_run_and_whether_they_live(line: Line) -> None:
    line.start_worker()
    batch_id = line.submit(3)
    line.promote()
    line.claim(batch_id, 2)

    (worker,) = line.statistics.workers()

    assert (worker.id, worker.running, worker.live, worker.slots) == (line.worker, 2, True, 4)
    assert worker.handlers == (HANDLER,)
    assert worker.silent_seconds < 5
    assert json.dumps(worker.as_json())
    with line.database.begin() as connection:
        connection.execute(update(workers).values(heartbeat_at=later(literal(-3600.0))))
    assert not line.statistics.workers()[0].live


def test_counts_are_those_of_the_view_with_what_came_twice_and_late(line: Line) -> None:
    batch_id = line.submit(3)
    line.promote()
    claimed = line.claim(batch_id, 2)
    line.states.claim(line.worker, [each.run for each in claimed])  # offered twice
    line.settle(claimed, lambda _: SUCCESS)
    line.states.settle(line.worker, [settlement(claimed[0], SUCCESS, 2, 0.5)])  # told twice

    counts, view = line.statistics.counts(batch_id), line.view(batch_id)

    assert (counts.pending, counts.succeeded, counts.unsettled) == (1, 2, 1)
    assert (view.duplicates, view.late) == (counts.duplicates, counts.late) == (2, 1)


def test_a_lease_that_lapsed_leads_nobody(line: Line) -> None:
    assert not line.statistics.led()
    assert line.term
    assert line.statistics.led()
    with line.database.begin() as connection:
        connection.execute(update(leases).values(expires_at=now()))
    assert not line.statistics.led()


def test_reading_writes_nothing(line: Line) -> None:
    batch_id = line.submit(1)
    written: list[str] = []

    def note(*arguments: object) -> None:
        written.append(str(arguments[2]))

    event.listen(line.database.engine, "before_cursor_execute", note)
    line.statistics.batches()
    line.statistics.failures(batch_id)
    list(line.statistics.results(batch_id))
    line.statistics.workers()
    line.statistics.queues()
    event.remove(line.database.engine, "before_cursor_execute", note)

    assert written
    assert all(re.match(r"SELECT|WITH|BEGIN|PRAGMA|SET|SHOW", statement.strip()) for statement in written)
