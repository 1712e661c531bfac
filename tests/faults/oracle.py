"""The oracle of the fault tests: what was handed over against what the journal and the database say at the end.

It reports in the words of Jepsen's total-queue checker (jepsen/checker.clj, `total-queue`), where to enqueue is to
submit a batch, and to dequeue is to bring a profile to its final state:

- *lost*: acknowledged by `submit`, and without a final state, or without the execution that its state claims;
- *duplicated*: one run executed twice, or a profile settled twice in one pass;
- *unexpected*: executed, or stored, and never handed over;
- *recovered*: `submit` did not acknowledge it (its producer died, or got an error), and it was done all the same.

A further execution of a profile is no duplicate when an earlier run of it ended without effect, and the history says
so: those are *repeated*, by how the earlier runs ended. The journal is written by handlers, outside of the system.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from batching.doctor import examine
from batching.models import attempts, batches, history, profiles
from batching.states import (
    BATCH_MOVES,
    TERMINAL_BATCH_STATES,
    TERMINAL_PROFILE_STATES,
    BatchState,
    ProfileState,
)
from tests.accounting import assert_accounted, effective_states, read_counts
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from batching.database import Database
    from tests.acceptance.journal import Entry
    from workers.publisher import RedisPublisher

#: Endings of a run that a further run of the same profile in the same pass may follow.
_GOES_ON = frozenset({"lost", "given back", "retried"})


class Verdict(NamedTuple):
    """What the oracle found. `print` it: a test's log then says what its faults have done."""

    attempted: int
    """Profiles that producers tried to hand over."""
    acknowledged: int
    """Of these, in batches of which `submit` returned."""
    done: int
    """Profiles with a final state."""
    executed: int
    """Entries of the journal."""
    lost: list[str]
    duplicated: list[str]
    unexpected: list[str]
    recovered: list[str]
    """Profiles of batches that nobody acknowledged."""
    repeated: dict[str, int]
    """Runs that began and were followed by another run of the same profile, by how they ended."""
    late: int
    """Outcomes that came when their run was over, and changed nothing."""

    @property
    def sound(self) -> bool:
        """Whether every profile is accounted for exactly once."""
        return not (self.lost or self.duplicated or self.unexpected)

    def __str__(self) -> str:
        repeated = ", ".join(f"{ending} {number}" for ending, number in sorted(self.repeated.items())) or "none"
        return (
            f"attempted {self.attempted}, acknowledged {self.acknowledged}, done {self.done}, executed {self.executed}:"
            f" lost {len(self.lost)}, duplicated {len(self.duplicated)}, unexpected {len(self.unexpected)},"
            f" recovered {len(self.recovered)}; runs repeated after: {repeated}; late outcomes {self.late}"
        )


class _Stored(NamedTuple):
    """A batch as the database has it at the end."""

    batch: Any
    rows: dict[int, Any]
    states: dict[int, ProfileState]
    """What each row is read as."""
    endings: dict[tuple[int, int], Any]
    """Of every run that did not succeed, by (number, run)."""
    lines: list[Any]
    """Its history, the oldest first."""


@dataclass
class Oracle:
    """Knows what producers handed over, and judges what became of it.

    Tell it `attempt` before each submit and `acknowledge` after it. Batches are known by their batch key; one without a
    key by its id, once it is acknowledged.
    """

    database: Database
    publisher: RedisPublisher | None = None
    attempted: dict[str, frozenset[str]] = field(default_factory=dict)
    """The profile keys that a producer tried to hand over, by batch key or id."""
    acknowledged: set[str] = field(default_factory=set)
    pruned: set[str] = field(default_factory=set)
    """Batch keys of which nothing may be left."""

    def attempt(self, name: str, keys: Iterable[str]) -> None:
        """A producer is about to submit a batch under this key."""
        self.attempted[name] = frozenset(keys)

    def acknowledge(self, name: str, keys: Iterable[str] | None = None) -> None:
        """`submit` returned; `keys` for a batch that was not announced by `attempt`."""
        if keys is not None:
            self.attempt(name, keys)
        self.acknowledged.add(name)

    def judge(
        self,
        entries: Sequence[Entry],
        *,
        again: Collection[str] = ("lost", "given back", "retried"),
        late: bool = True,
        doctor: bool = True,
    ) -> Verdict:
        """Everything that must hold once all batches have ended; call it when nothing moves any more.

        Args:
            entries: The journal.
            again: How a run that began may have ended before another run of the same profile in the same pass.
            late: Whether outcomes may have come after their run was over.
            doctor: Whether `batching doctor` has to find nothing.
        """
        stored = self._stored()
        verdict = self._verdict(stored, entries)
        assert verdict.sound, f"{verdict}\n{verdict.lost=}\n{verdict.duplicated=}\n{verdict.unexpected=}"
        assert set(verdict.repeated) <= set(again), str(verdict)
        assert late or not verdict.late, str(verdict)
        for each in stored.values():
            assert_accounted(self.database, each.batch.id)
            assert_moved_legally(each.batch, each.lines)
        self._moved_to_the_end(stored)
        if doctor:
            report = examine(self.database, self.publisher)
            assert report.ok, report.problems
        if self.publisher is not None:
            eventually(self.no_orphan_keys)
        return verdict

    def no_orphan_keys(self) -> None:
        """Assert that nothing of ours is left in the broker but the canary and a hint that nobody heard."""
        assert self.publisher is not None
        prefix = self.publisher.key_prefix
        found = {key.decode().removeprefix(prefix) for key in self.publisher.client.scan_iter(f"{prefix}*")}
        # Celery's own are its default queue, its bindings, its mutex, and the mailboxes of remote control.
        theirs = ("kombu", "celery", "unacked")
        left = [key for key in found - {"canary", "hint"} if not any(word in key for word in theirs)]
        assert not left, f"left in the broker: {left}"

    # --- reading

    def _stored(self) -> dict[str, _Stored]:
        """What the database has, by batch key, or by id without one."""
        with self.database.read() as reading:
            found = reading.execute(select(batches)).all()
            rows: dict[str, dict[int, Any]] = defaultdict(dict)
            for row in reading.execute(select(profiles)):
                rows[row.batch_id][row.number] = row
            endings: dict[str, dict[tuple[int, int], Any]] = defaultdict(dict)
            for row in reading.execute(select(attempts)):
                endings[row.batch_id][row.number, row.run] = row
            lines: dict[str, list[Any]] = defaultdict(list)
            for row in reading.execute(select(history).order_by(history.c.id)):
                lines[row.batch_id].append(row)
        return {
            batch.key if batch.key in self.attempted else batch.id: _Stored(
                batch,
                rows.pop(batch.id, {}),
                effective_states(self.database, batch.id),
                endings.pop(batch.id, {}),
                lines.pop(batch.id, []),
            )
            for batch in found
        } | {f"no batch {orphan}": _Stored(None, theirs, {}, {}, []) for orphan, theirs in rows.items()}

    # --- judging

    def _verdict(self, stored: dict[str, _Stored], entries: Sequence[Entry]) -> Verdict:
        lost: list[str] = []
        executed = _executions(entries).items()
        duplicated = [f"{profile}: run {run} executed {times} times" for (profile, run), times in executed if times > 1]
        unexpected: list[str] = []
        repeated: Counter[str] = Counter()
        journal: dict[str, list[Entry]] = defaultdict(list)  # by batch: a soak has hundreds, and many thousand entries
        for entry in entries:
            journal[entry.profile.rpartition(".")[0]].append(entry)
        for name, keys in self.attempted.items():
            if name not in stored and name not in self.pruned and name in self.acknowledged:
                lost += [f"{name}/{key}" for key in sorted(keys)]
        for name, each in stored.items():
            if name not in self.attempted or name in self.pruned:
                unexpected += [f"{name}/{row.key}" for row in each.rows.values()] or [name]
            else:
                own = journal[each.batch.id]
                self._compare(name, each, own, lost, duplicated)
                unexpected += self._never_granted(name, each, own)
                repeated += _repeats(each, own)
        unexpected += self._of_nobody(stored, entries)
        known = [each for name, each in stored.items() if name in self.attempted]
        return Verdict(
            attempted=sum(map(len, self.attempted.values())),
            acknowledged=sum(len(keys) for name, keys in self.attempted.items() if name in self.acknowledged),
            done=sum(state in TERMINAL_PROFILE_STATES for each in known for state in each.states.values()),
            executed=len(entries),
            lost=lost,
            duplicated=duplicated,
            unexpected=unexpected,
            recovered=[
                f"{name}/{row.key}"
                for name, each in stored.items()
                if name in self.attempted and name not in self.acknowledged
                for row in each.rows.values()
            ],
            repeated=dict(repeated),
            late=sum(read_counts(self.database, each.batch.id).late for each in known),
        )

    def _compare(
        self, name: str, each: _Stored, entries: Sequence[Entry], lost: list[str], duplicated: list[str]
    ) -> None:
        """A batch with what was handed over, and each of its profiles with its own history and the journal."""
        keys = Counter(row.key for row in each.rows.values())
        lost += [f"{name}/{key}: no row" for key in self.attempted[name] - set(keys)]
        duplicated += [f"{name}/{key}: {number} rows" for key, number in keys.items() if number > 1]
        if each.batch.state not in TERMINAL_BATCH_STATES:
            lost.append(f"{name}: it is {each.batch.state}")
        done = _executions(entries)
        for number, row in each.rows.items():
            label = f"{name}/{row.key}"
            if each.states[number] not in TERMINAL_PROFILE_STATES:
                lost.append(f"{label}: it is {each.states[number]}")
            succeeded = row.state == ProfileState.SUCCEEDED
            if succeeded and not done[f"{each.batch.id}.{number}", row.run]:
                lost.append(f"{label}: it succeeded in run {row.run}, which nobody executed")
            endings = {run: end for (of, run), end in each.endings.items() if of == number}
            # Every run has one ending: in `attempts`, or, for a success, in the profile's row.
            expected = set(range(1, row.run + (not succeeded)))
            lost += [f"{label}: run {run} has no ending" for run in expected - set(endings)]
            duplicated += [f"{label}: run {run} ended twice" for run in set(endings) - expected]
            settled = Counter(end.pass_number for end in endings.values() if end.outcome not in _GOES_ON)
            settled[row.pass_number] += succeeded
            duplicated += [f"{label}: settled {times} times in pass {of}" for of, times in settled.items() if times > 1]

    @staticmethod
    def _never_granted(name: str, each: _Stored, entries: Sequence[Entry]) -> list[str]:
        runs = {f"{each.batch.id}.{number}": row.run for number, row in each.rows.items()}
        return [
            f"{name}/{entry.key}: run {entry.run} was executed, and {runs[entry.profile]} were granted"
            for entry in entries
            if entry.run > runs.get(entry.profile, entry.run)
        ]

    def _of_nobody(self, stored: dict[str, _Stored], entries: Sequence[Entry]) -> list[str]:
        """Executions of profiles that are not there, unless they were pruned."""
        known = {f"{each.batch.id}.{number}" for each in stored.values() if each.batch for number in each.rows}
        gone = [entry for entry in entries if entry.profile not in known]
        pruned = {key for name in self.pruned for key in self.attempted.get(name, ())}
        return [f"{entry.profile} ({entry.key})" for entry in gone if entry.key not in pruned]

    @staticmethod
    def _moved_to_the_end(stored: dict[str, _Stored]) -> None:
        """A pass that failed moved its batch once, behind everything that was in line at that moment."""
        told = sorted((line for each in stored.values() for line in each.lines), key=lambda line: line.id)
        queue_of = {each.batch.id: each.batch.queue for each in stored.values()}
        policies = {each.batch.id: each.batch.options.get("requeue", "tail") for each in stored.values()}
        positions: dict[str, dict[str, int]] = defaultdict(dict)
        for line in told:
            others = positions[queue_of[line.batch_id]]
            requeued = (line.from_state, line.to_state) == (BatchState.STOPPING, BatchState.QUEUED)
            if requeued and policies[line.batch_id] == "tail":
                ahead = {batch: at for batch, at in others.items() if batch != line.batch_id and at > line.position}
                assert not ahead, f"{line.batch_id} was put at {line.position}, not behind {ahead}"
            others[line.batch_id] = line.position


def assert_moved_legally(batch: Any, lines: Sequence[Any]) -> None:
    """The history of a batch is one chain of legal moves from its submission to its state, one new pass per failure."""
    assert lines, f"batch {batch.id} has no history"
    assert lines[0].from_state == BatchState.LOADING
    for before, after in pairwise(lines):
        assert before.to_state == after.from_state, f"batch {batch.id}: {before} is followed by {after}"
        was, to = BatchState(after.from_state), BatchState(after.to_state)
        assert to is was or to in BATCH_MOVES[was], f"batch {batch.id}: {after}"
        new_pass = to is BatchState.QUEUED and was not in {BatchState.PAUSED, BatchState.QUEUED}
        parked = (was, to) == (BatchState.STOPPING, BatchState.PAUSED) and after.pass_number > before.pass_number
        opened = after.pass_number - before.pass_number
        assert opened == (new_pass or parked), f"batch {batch.id}: {before}, then {after}"
    assert (lines[-1].to_state, lines[-1].pass_number) == (batch.state, batch.pass_number)


def _executions(entries: Sequence[Entry]) -> Counter[tuple[str, int]]:
    return Counter((entry.profile, entry.run) for entry in entries)


def _repeats(each: _Stored, entries: Sequence[Entry]) -> Counter[str]:
    """How the executed runs ended after which their profile was executed again within the same pass."""
    found: Counter[str] = Counter()
    done = _executions(entries)
    for (number, run), end in each.endings.items():
        row = each.rows.get(number)
        executed = done[f"{each.batch.id}.{number}", run] > 0
        if executed and row is not None and row.run > run and end.outcome in _GOES_ON:
            found[end.outcome] += 1
    return found
