"""Triage: what failed in which pass, what became of it, and remedies for those that failed alike."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from batching.cli.main import cli
from batching.doctor import examine
from batching.errors import IllegalMoveError, InvalidInputError
from batching.interfaces import Ending, ErrorInfo, Outcome
from batching.models import history
from batching.moves import batch as batch_moves
from batching.moves.triage import Chosen
from batching.queue_manager import QueueManager
from batching.settings import get_settings
from batching.states import BatchState, ProfileState, Remedy, StopTarget
from batching.statistics import Statistics
from tests.accounting import DONE, Desk, assert_accounted, effective_states, read_batch
from workers.failures import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database

A, B = Chosen("a" * 16), Chosen("b" * 16)
MANY = {"max_passes": 5, "fail_fast": False}


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def queue(desk: Desk) -> QueueManager:
    return QueueManager(desk.database)


def ends(said: str) -> Callable[[int], Outcome]:
    """By number: `a` and `b` fail with that fingerprint, anything else is done."""

    def outcome(number: int) -> Outcome:
        how = said[number - 1]
        if how not in "ab":
            return DONE
        return Outcome(Ending.FAILED, error=ErrorInfo("ValueError", f"no {how}", how * 16))

    return outcome


def again(desk: Desk, batch_id: str, said: str) -> None:
    """The next pass of a batch."""
    desk.rewrite(batch_id)
    assert desk.states.promote("default", desk.term) == batch_id
    desk.work(batch_id, ends(said))


def states(desk: Desk, batch_id: str) -> str:
    """Every profile's effective state, by its first letter."""
    return "".join(state.value[0] for _, state in sorted(effective_states(desk.database, batch_id).items()))


def last_line(desk: Desk, batch_id: str) -> str:
    with desk.database.read() as connection:
        lines = connection.scalars(
            select(history.c.reason).where(history.c.batch_id == batch_id).order_by(history.c.id)
        )
        return str(list(lines)[-1])


def healthy(desk: Desk, batch_id: str) -> None:
    assert_accounted(desk.database, batch_id)
    assert [each for each in examine(desk.database).problems if batch_id in each] == []


# --- the fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("row 7 of 12", "row 8 of 4000"),
        ("no 'Zoe' here", 'no "Ann" here'),
        ("cannot open /srv/a/b.csv: denied", "cannot open /tmp/x: denied"),
        ("cannot open ~/a.csv", "cannot open ~/b/c.csv"),
        ("GET https://example.org/a?b=1 failed", "GET https://example.org/c failed"),
        ("C:\\data\\one.txt missing", "C:\\two.txt missing"),
        ("id 0a1b2c3d4e", "id ffffffff00"),
        ("0192f0c4-0000-7000-8000-000000000001 gone", "0192f0c4-aaaa-7000-8000-00000000000f gone"),
    ],
)
def test_two_occurrences_of_one_error_have_one_fingerprint(one: str, other: str) -> None:
    assert fingerprint("ValueError", one, "f.py:g") == fingerprint("ValueError", other, "f.py:g")


@pytest.mark.parametrize(
    ("name", "message", "place"),
    [("TypeError", "row 7", "f.py:g"), ("ValueError", "line 7", "f.py:g"), ("ValueError", "row 7", "f.py:h"),
     ("ValueError", "row 7 and/or 8", "f.py:g")],
)  # fmt: skip
def test_another_error_has_another_fingerprint(name: str, message: str, place: str) -> None:
    assert fingerprint(name, message, place) != fingerprint("ValueError", "row 7", "f.py:g")


# --- what failed in which pass


def test_each_pass_keeps_its_failures(desk: Desk) -> None:
    batch_id = desk.start(5, **MANY)
    desk.work(batch_id, ends("aaab."))
    again(desk, batch_id, "a.b..")
    stats = queue(desk).statistics
    assert stats.failures(batch_id) == []  # the third pass has not begun
    first, second = stats.failures(batch_id, 1), stats.failures(batch_id, 2)
    assert [(group.fingerprint[0], group.count, group.keys) for group in first] == [
        ("a", 3, ("k1", "k2", "k3")),
        ("b", 1, ("k4",)),
    ]
    assert {group.fingerprint[0]: group.keys for group in second} == {"a": ("k1",), "b": ("k3",)}
    with pytest.raises(InvalidInputError, match="it is in pass 3"):
        stats.failures(batch_id, 4)


def test_the_next_pass_tells_what_is_fixed_the_same_changed_and_new(desk: Desk) -> None:
    batch_id = desk.start(6, failure_budget=3, **MANY)
    desk.work(batch_id, ends("aaab.."))
    desk.rewrite(batch_id)
    desk.states.promote("default", desk.term)
    desk.work(batch_id, ends("ab...."), limit=3)  # the fourth waits
    later, changes = queue(desk).statistics.failure_changes(batch_id)
    assert later == 2
    found = {each.fingerprint[0]: each for each in changes}
    a, b = found["a"], found["b"]
    assert (a.before, a.now, a.fixed, a.same, a.changed, a.waiting, a.new) == (3, 1, 1, 1, 1, 0, 0)
    assert (b.before, b.now, b.fixed, b.same, b.changed, b.waiting, b.new) == (1, 1, 0, 0, 0, 1, 0)
    assert (a.type, a.message) == ("ValueError", "no a")


def test_what_had_not_failed_before_is_new(desk: Desk) -> None:
    batch_id = desk.start(3, max_passes=5)
    desk.work(batch_id, ends("a.."), limit=1)  # stops at once; two never ran
    again(desk, batch_id, ".b.")
    _, changes = queue(desk).statistics.failure_changes(batch_id)
    found = {each.fingerprint[0]: each for each in changes}
    assert (found["a"].before, found["a"].fixed, found["b"].now, found["b"].new) == (1, 1, 1, 1)


def test_the_first_pass_has_nothing_to_be_compared_with(desk: Desk) -> None:
    batch_id = desk.start(2, **MANY)
    with pytest.raises(InvalidInputError, match="no pass before it"):
        queue(desk).statistics.failure_changes(batch_id)


# --- remedies


def test_retry_of_a_finished_batch_runs_the_chosen_alone_and_judges_them_with_the_rest(desk: Desk) -> None:
    batch_id = desk.start(5, max_passes=1, fail_fast=False)
    desk.work(batch_id, ends("aab.b"))
    assert desk.states.remedy(batch_id, Remedy.RETRY, A) == 2
    batch = read_batch(desk.database, batch_id)
    assert (batch.state, batch.pass_number, batch.partial) == (BatchState.QUEUED, 2, True)
    assert states(desk, batch_id) == "ppfsf"
    assert last_line(desk, batch_id) == f"retried 2 profiles with fingerprint {'a' * 16}"
    healthy(desk, batch_id)
    assert desk.states.promote("default", desk.term) == batch_id
    desk.work(batch_id, limit=1)
    assert desk.state(batch_id) is BatchState.RUNNING  # the old failures do not stop it early
    desk.work(batch_id)
    assert (desk.state(batch_id), states(desk, batch_id)) == (BatchState.FAILED, "ssfsf")
    assert "pass 2 failed: 2 profiles failed" in last_line(desk, batch_id)
    assert desk.states.remedy(batch_id, Remedy.RETRY, B) == 2
    desk.states.promote("default", desk.term)
    desk.work(batch_id)
    assert (desk.state(batch_id), states(desk, batch_id)) == (BatchState.SUCCEEDED, "sssss")
    healthy(desk, batch_id)


def test_an_ordinary_retry_after_a_partial_pass_is_a_whole_one(desk: Desk) -> None:
    batch_id = desk.start(3, max_passes=1, fail_fast=False)
    desk.work(batch_id, ends("ab."))
    desk.states.remedy(batch_id, Remedy.RETRY, A)
    desk.states.promote("default", desk.term)
    desk.work(batch_id, ends("a.."))
    desk.states.retry(batch_id)
    batch = read_batch(desk.database, batch_id)
    assert (batch.partial, batch.pass_number, states(desk, batch_id)) == (False, 3, "pps")


def test_retry_of_a_running_batch_gives_the_chosen_their_attempts_again_in_this_pass(desk: Desk) -> None:
    batch_id = desk.start(4, failure_budget=3, fail_fast=False)
    desk.work(batch_id, ends("aab."), limit=3)
    assert desk.states.remedy(batch_id, Remedy.RETRY, A) == 2
    assert (desk.state(batch_id), states(desk, batch_id)) == (BatchState.RUNNING, "ppfp")
    assert [each.attempt for each in desk.claim(batch_id)] == [1, 1, 1]
    assert read_batch(desk.database, batch_id).pass_number == 1
    healthy(desk, batch_id)


@pytest.mark.parametrize("remedy", [Remedy.SKIP, Remedy.CANCEL])
def test_what_failed_alike_is_taken_out_and_its_neighbours_are_not(desk: Desk, remedy: Remedy) -> None:
    batch_id, other = desk.start(4, failure_budget=3, fail_fast=False), desk.start(2, queue="other", failure_budget=2)
    desk.work(batch_id, ends("aab."), limit=3)
    desk.work(other, ends("a."), limit=1)
    assert desk.states.remedy(batch_id, remedy, A) == 2
    letter = _letter(remedy)
    assert states(desk, batch_id) == f"{letter}{letter}fp"
    assert states(desk, other) == "fp"
    healthy(desk, batch_id)


def _letter(remedy: Remedy) -> str:
    return {Remedy.SKIP: "s", Remedy.CANCEL: "c"}[remedy]


def test_what_failed_alike_in_the_last_pass_need_not_run_in_the_next(desk: Desk) -> None:
    batch_id = desk.start(4, **MANY)
    desk.work(batch_id, ends("aab."))  # requeued: they wait, and their rows are not rewritten yet
    assert desk.states.remedy(batch_id, Remedy.SKIP, A) == 2
    assert desk.states.remedy(batch_id, Remedy.CANCEL, Chosen(key="k3")) == 1
    assert [state.value for _, state in sorted(effective_states(desk.database, batch_id).items())] == [
        "skipped", "skipped", "cancelled", "succeeded",
    ]  # fmt: skip
    healthy(desk, batch_id)
    desk.states.promote("default", desk.term)
    desk.states.conclude([batch_id])
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_what_runs_or_is_dispatched_is_left_alone(desk: Desk) -> None:
    batch_id = desk.start(3, **MANY)
    desk.work(batch_id, ends("aaa"))
    desk.rewrite(batch_id)
    desk.states.promote("default", desk.term)
    desk.claim(batch_id, 1)
    desk.dispatch(batch_id, 1)
    assert desk.states.remedy(batch_id, Remedy.SKIP, A) == 1
    assert [state for _, state in sorted(effective_states(desk.database, batch_id).items())] == [
        ProfileState.RUNNING, ProfileState.DISPATCHED, ProfileState.SKIPPED,
    ]  # fmt: skip


def test_skipping_the_last_failure_that_a_pass_may_not_have_finishes_the_batch(desk: Desk) -> None:
    batch_id = desk.start(2, failure_budget=1, fail_fast=False)
    desk.work(batch_id, ends("a."), limit=1)
    desk.work(batch_id, ends(".a"), limit=0)
    desk.states.remedy(batch_id, Remedy.SKIP, A)
    assert desk.states.remedy(batch_id, Remedy.SKIP, Chosen(key="k2")) == 1
    assert desk.state(batch_id) is BatchState.SUCCEEDED


def test_a_finished_batch_stays_finished_when_its_failures_are_skipped(desk: Desk) -> None:
    batch_id = desk.start(2, max_passes=1, fail_fast=False)
    desk.work(batch_id, ends("a."))
    assert desk.states.remedy(batch_id, Remedy.SKIP, A) == 1
    assert (desk.state(batch_id), states(desk, batch_id)) == (BatchState.FAILED, "ss")
    healthy(desk, batch_id)


def test_a_cancelled_profile_is_retried_by_its_key(desk: Desk) -> None:
    batch_id = desk.finish(BatchState.CANCELLED, 3)
    assert desk.states.remedy(batch_id, Remedy.RETRY, Chosen(key="k2")) == 1
    assert states(desk, batch_id) == "cpc"
    healthy(desk, batch_id)


def test_fail_batch_is_forgotten_with_the_profile_that_raised_it(desk: Desk) -> None:
    batch_id = desk.start(2, max_passes=1)
    error = ErrorInfo("FailBatch", "no more", "a" * 16)
    desk.work(batch_id, lambda number: Outcome(Ending.FAILED_BATCH, error=error) if number == 1 else DONE)
    desk.states.remedy(batch_id, Remedy.RETRY, A)
    desk.states.promote("default", desk.term)
    desk.work(batch_id)
    assert desk.state(batch_id) is BatchState.SUCCEEDED
    healthy(desk, batch_id)


def test_a_remedy_goes_in_bounded_steps_and_on_where_it_was_cut_short(desk: Desk) -> None:
    from batching.moves import triage

    batch_id = desk.start(7, max_passes=1, fail_fast=False)
    desk.work(batch_id, ends("aaabaaa"))
    with desk.database.begin() as connection:
        first = triage.step(connection, batch_id, Remedy.RETRY, A, 0, 2)
    assert (first.moved, first.cursor) == (2, 2)
    healthy(desk, batch_id)
    assert desk.states.remedy(batch_id, Remedy.RETRY, A, step=2) == 4
    assert states(desk, batch_id) == "pppfppp"
    assert read_batch(desk.database, batch_id).pass_number == 2
    healthy(desk, batch_id)


@pytest.mark.parametrize("remedy", list(Remedy))
def test_nobody_is_meant_is_said(desk: Desk, remedy: Remedy) -> None:
    batch_id = desk.start(2, max_passes=1)
    desk.work(batch_id)
    with pytest.raises(IllegalMoveError, match="there is none that has failed or waits"):
        desk.states.remedy(batch_id, remedy, A)
    assert states(desk, batch_id) == "ss"


def test_a_batch_that_stops_is_left_alone(desk: Desk) -> None:
    batch_id = desk.start(2, failure_budget=2)
    desk.work(batch_id, ends("a."), limit=1)
    desk.claim(batch_id)
    desk.states.stop(batch_id, StopTarget.CANCELLED, "c")
    with pytest.raises(IllegalMoveError, match="it is stopping; try again"):
        desk.states.remedy(batch_id, Remedy.RETRY, A)


# --- two at once


def test_of_two_operators_each_profile_goes_to_one(desk: Desk) -> None:
    batch_id = desk.start(30, max_passes=1, fail_fast=False, failure_budget=30)
    desk.work(batch_id, lambda _: ends("a")(1))

    def act(remedy: Remedy) -> int:
        try:
            return desk.states.remedy(batch_id, remedy, A, step=3)
        except IllegalMoveError:
            return 0

    with ThreadPoolExecutor(3) as pool:
        moved = [each.result() for each in [pool.submit(act, remedy) for remedy in (Remedy.SKIP, Remedy.CANCEL)]]
    assert sum(moved) == 30
    counts = assert_accounted(desk.database, batch_id)
    assert (counts.skipped, counts.cancelled, counts.failed) == (moved[0], moved[1], 0)


def test_a_remedy_that_waits_for_a_whole_retry_finds_nothing_left(desk: Desk) -> None:
    batch_id = desk.start(2, max_passes=1, fail_fast=False)
    desk.work(batch_id, ends("aa"))
    with ThreadPoolExecutor(1) as pool, desk.database.begin() as connection:
        batch_moves.reopen(connection, batch_id, "r")
        waiting = pool.submit(desk.states.remedy, batch_id, Remedy.RETRY, A)
        connection.commit()
        with pytest.raises(IllegalMoveError, match="there is none"):
            waiting.result(20)
    assert (read_batch(desk.database, batch_id).pass_number, states(desk, batch_id)) == (2, "pp")


# --- the command line


def call(desk: Desk, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setenv("BATCHING_DATABASE_URL", desk.database.url)
    get_settings.cache_clear()
    return CliRunner().invoke(cli, arguments)


def test_the_command_line_shows_and_remedies(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = desk.start(4, max_passes=2, fail_fast=False)
    desk.work(batch_id, ends("aab."))
    again(desk, batch_id, "a.b.")
    said = call(desk, monkeypatch, "failures", batch_id, "--diff", "--json")
    document = json.loads(said.stdout)
    assert (document["from"], document["to"]) == (1, 2)
    assert [(each["fingerprint"][0], each["fixed"], each["same"]) for each in document["failures"]] == [
        ("a", 1, 1),
        ("b", 0, 1),
    ]
    assert "pass 1 -> pass 2" in call(desk, monkeypatch, "failures", batch_id, "--diff").output
    assert json.loads(call(desk, monkeypatch, "failures", batch_id, "--pass", "1", "--json").stdout)[0]["count"] == 2
    skipped = call(desk, monkeypatch, "skip", batch_id, "--fingerprint", "b" * 16)
    assert "1 profile of batch" in skipped.output
    retried = json.loads(call(desk, monkeypatch, "retry", batch_id, "--fingerprint", "a" * 16, "--json").stdout)
    assert (retried["state"], retried["pass"], retried["profiles"]) == ("queued", 3, 1)
    cancelled = call(desk, monkeypatch, "cancel", batch_id, "--profile", "k1")
    assert cancelled.exit_code == 0, cancelled.output
    assert states(desk, batch_id) == "csss"
    assert call(desk, monkeypatch, "skip", batch_id).exit_code == 2


def test_failures_are_grouped_alike_however_many_groups_there_are(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = desk.start(20, failure_budget=20)
    desk.work(batch_id, ends("ab" * 4 + "a" * 7 + "." * 5))
    one_by_one = Statistics(desk.database).failures(batch_id)
    assert [(group.fingerprint[0], group.count, len(group.keys)) for group in one_by_one] == [("a", 11, 5), ("b", 4, 4)]
    assert one_by_one[0].keys == ("k1", "k3", "k5", "k7", "k9")
    monkeypatch.setattr("batching.statistics.failures._FEW_GROUPS", 1)
    assert Statistics(desk.database).failures(batch_id) == one_by_one
