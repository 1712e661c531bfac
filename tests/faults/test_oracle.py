"""The oracle finds what it is there for: each kind of wrong is planted once, beside a run that is right."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, insert, update

from batching.interfaces import Ending, Outcome
from batching.models import attempts, batches, history, profiles
from tests.acceptance.journal import Entry
from tests.accounting import BROKEN, Desk, plant
from tests.faults.oracle import Oracle

if TYPE_CHECKING:
    from batching.database import Database
    from batching.interfaces import Claimed

LOST = Outcome(Ending.LOST, error=BROKEN)


class Story:
    """Three profiles: one runs, one is lost once, one fails in its first pass."""

    def __init__(self, database: Database) -> None:
        self.desk = Desk(database)
        self.desk.register()
        self.entries: list[Entry] = []
        self.batch_id = self.desk.start(3, max_passes=2)
        other = self.desk.submit(1)
        first = self._run()
        self.desk.settle(first[:1])
        self.desk.settle(first[1:2], LOST)
        self.desk.settle(first[2:], Outcome(Ending.FAILED, error=BROKEN))
        self.desk.states.conclude([self.batch_id])
        self.desk.rewrite(self.batch_id)
        assert self.desk.states.promote("default", self.desk.term) == other
        self.desk.settle(self._run(other))
        self.desk.states.conclude([other])
        assert self.desk.states.promote("default", self.desk.term) == self.batch_id
        self.desk.settle(self._run())
        self.desk.states.conclude([self.batch_id])
        self.oracle = Oracle(database)
        self.oracle.acknowledge(self.batch_id, ["k1", "k2", "k3"])
        self.oracle.acknowledge(other, ["k1"])

    def _run(self, batch_id: str = "") -> list[Claimed]:
        claimed = self.desk.claim(batch_id or self.batch_id)
        self.entries += [Entry(each.run.profile_id, each.run.run, uuid.uuid4().hex, 1, each.key) for each in claimed]
        return claimed


@pytest.fixture
def story(sqlite_url: str) -> Story:
    from batching.database import Database

    return Story(Database(sqlite_url))


def test_a_sound_story_is_told_in_numbers(story: Story) -> None:
    verdict = story.oracle.judge(story.entries, late=False)
    assert (verdict.attempted, verdict.acknowledged, verdict.done, verdict.executed) == (4, 4, 4, 6)
    assert verdict.repeated == {"lost": 1}
    assert "lost 0, duplicated 0, unexpected 0, recovered 0; runs repeated after: lost 1" in str(verdict)


def test_a_repeated_run_needs_a_reason_that_was_expected(story: Story) -> None:
    with pytest.raises(AssertionError, match="lost 1"):
        story.oracle.judge(story.entries, again=["given back"])


def test_what_nobody_acknowledged_is_recovered(story: Story) -> None:
    story.oracle.acknowledged.discard(story.batch_id)
    verdict = story.oracle.judge(story.entries)
    assert len(verdict.recovered) == 3


def test_an_acknowledged_batch_that_is_gone_is_lost(story: Story) -> None:
    story.oracle.acknowledge("gone", ["a", "b"])
    with pytest.raises(AssertionError, match="gone/a"):
        story.oracle.judge(story.entries)
    story.oracle.pruned.add("gone")
    story.oracle.judge(story.entries)


def test_a_success_that_nobody_executed_is_lost(story: Story) -> None:
    entries = [entry for entry in story.entries if entry.key != "k2" or entry.run != 2]
    with pytest.raises(AssertionError, match="which nobody executed"):
        story.oracle.judge(entries)


def test_a_profile_without_a_final_state_is_lost(story: Story) -> None:
    plant(story.desk.database, story.batch_id, {"state": "pending", "finished_at": None}, 1)
    with pytest.raises(AssertionError, match="it is pending"):
        story.oracle.judge(story.entries)


def test_a_run_that_was_executed_twice_is_duplicated(story: Story) -> None:
    with pytest.raises(AssertionError, match="duplicated 1"):
        story.oracle.judge([*story.entries, story.entries[0]])


def test_a_profile_that_settled_twice_in_one_pass_is_duplicated(story: Story) -> None:
    with story.desk.database.begin() as connection:
        connection.execute(update(attempts).where(attempts.c.outcome == "lost").values(outcome="failed"))
    # The end of its first run and that of its second, in one and the same pass.
    plant(story.desk.database, story.batch_id, {"pass_number": 1}, 2)
    with pytest.raises(AssertionError, match="settled 2 times in pass"):
        story.oracle.judge(story.entries)


def test_a_run_without_an_ending_is_lost(story: Story) -> None:
    with story.desk.database.begin() as connection:
        connection.execute(delete(attempts).where(attempts.c.outcome == "lost"))
    with pytest.raises(AssertionError, match="run 1 has no ending"):
        story.oracle.judge(story.entries)


def test_an_execution_that_was_never_granted_is_unexpected(story: Story) -> None:
    entry = story.entries[0]
    with pytest.raises(AssertionError, match="unexpected 1"):
        story.oracle.judge([*story.entries, entry._replace(run=9)])
    with pytest.raises(AssertionError, match="unexpected 1"):
        story.oracle.judge([*story.entries, entry._replace(profile=f"{uuid.uuid4()}.1")])


def test_counters_that_drifted_are_found(story: Story) -> None:
    plant(story.desk.database, story.batch_id, {"state": "skipped"}, 1)
    with pytest.raises(AssertionError):
        story.oracle.judge(story.entries)


def test_a_batch_that_was_not_moved_behind_the_others_is_found(story: Story) -> None:
    requeued = (history.c.from_state == "stopping") & (history.c.to_state == "queued")
    with story.desk.database.begin() as connection:
        connection.execute(update(history).where(requeued).values(position=1))
    with pytest.raises(AssertionError, match="not behind"):
        story.oracle.judge(story.entries)


def test_a_move_that_is_told_twice_is_found(story: Story) -> None:
    with story.desk.database.begin() as connection:
        told = {"from_state": "stopping", "to_state": "queued", "pass_number": 3, "position": 9, "reason": "again"}
        connection.execute(insert(history).values(batch_id=story.batch_id, generation=9, **told))
    with pytest.raises(AssertionError, match="is followed by"):
        story.oracle.judge(story.entries)


def test_rows_of_a_batch_that_is_gone_are_unexpected(story: Story) -> None:
    with story.desk.database.begin() as connection:
        connection.execute(update(profiles).where(profiles.c.key == "k3").values(batch_id=str(uuid.uuid4())))
        connection.execute(update(batches).where(batches.c.id == story.batch_id).values(total=2))
    with pytest.raises(AssertionError, match="no batch"):
        story.oracle.judge(story.entries)
