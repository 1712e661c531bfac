"""Fault points: named places at which a test lets a process crash, err or hang. Unarmed, each is one look at a dict.

`reach("claim.committed")` stands where a real process may really die: between a COMMIT and what follows from it, in the
middle of a publication, between two steps of a long verb. A test arms a point, by `arm` in its own process or by
`BATCHING_FAULTS` in one that it starts, and then looks whether the rest of the system heals what was left behind:

    BATCHING_FAULTS="claim.committed=crash@2,publish.done=raise" celery -A workers worker

makes the worker kill itself when it has claimed for the second time, and lose the broker's answer to its first
publication. What an armed process reaches is also written to the file that `BATCHING_FAULT_LOG` names, so that a test
can wait for it.
"""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy.exc import OperationalError

from batching.errors import BrokerUnavailableError, ConfigurationError, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Every point that there is, and what has and has not happened when it is reached.
POINTS: Final[dict[str, str]] = {
    "read.before": "A look at the database is about to begin.",
    "commit.before": "A transaction has done its work, and is not committed.",
    "commit.after": "A transaction is committed, and nobody was told.",
    "submit.written": "A small batch is in line; its producer knows nothing of it, and nobody was woken.",
    "submit.announced": "The leader was woken for a small batch whose commit is not on the disk.",
    "submit.chunk": "A chunk of a large batch is written; others, or the seal, are missing.",
    "submit.sealed": "A large batch is in line; its producer knows nothing of it.",
    "start.committed": "A batch was promoted and its first profiles dispatched; nothing of them is published.",
    "dispatch.committed": "Profiles are dispatched; nothing of them is published.",
    "publish.part": "Some of a group of messages are published, and some may not be.",
    "publish.done": "A group of messages is published; whoever published it does not know.",
    "claim.begun": "A worker has popped messages, and claimed nothing of them.",
    "claim.committed": "Runs are this worker's, and it does not know.",
    "settle.decided": "Runs ended, and it is decided how; nothing of it is in the database.",
    "settle.committed": "Runs are settled; nobody looked whether that ended their batch.",
    "conclude": "A batch was found to be at its end; it has not moved.",
    "stop.committed": "A batch was told to stop, and nothing followed from it yet.",
    "suspects.marked": "Dispatches that look lost are marked as published again; they are not.",
    "lost.taken": "The runs of a dead worker wait again; what follows from it is to come.",
    "rewrite.step": "A step of a bulk move is written into its rows.",
    "delete.marked": "A batch is marked for deletion; all its rows are there.",
    "delete.step": "Some rows of a batch that is deleted are gone.",
    "lease.taken": "This process leads, and has done nothing with it.",
}

#: Reached inside of what turns a driver's errors into ours, so the driver's is what the surroundings meet there.
_DRIVER: Final = frozenset({"read.before", "commit.before", "commit.after"})
#: What comes next there, or came last, is a word with the broker.
_BROKER: Final = frozenset({"start.committed", "dispatch.committed", "suspects.marked", "publish.part", "publish.done"})
#: Stands for every point.
EVERY: Final = "*"
_WORD: Final = re.compile(r"([a-z.*]+)=([a-z]+)(?:@([1-9]\d*))?")


def error_at(point: str) -> Exception:
    """What the surroundings of a point meet there when the database, or the broker, is lost at that moment."""
    told = f"the fault point {point} says that the connection is lost"
    if point in _DRIVER:
        return OperationalError("(none)", None, ConnectionError(told), connection_invalidated=True)
    return BrokerUnavailableError(told) if point in _BROKER else DatabaseUnavailableError(told)


def crash(point: str) -> None:
    """End this process at once, as `kill -9` does."""
    del point
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def fail(point: str) -> None:
    """Raise what the surroundings would meet; after a COMMIT or a publication it was carried out all the same."""
    raise error_at(point)


def hang(point: str) -> None:
    """Freeze this process, all of its threads: until it is killed, or continued by SIGCONT."""
    del point
    os.kill(os.getpid(), signal.SIGSTOP)


def note(point: str) -> None:
    """Do nothing: that the point was reached is written to the log."""
    del point


ACTIONS: Final[dict[str, Callable[[str], None]]] = {"crash": crash, "raise": fail, "hang": hang, "note": note}


class _Trap(NamedTuple):
    """What happens at a point."""

    act: Callable[[str], None]
    at: int | None
    """At which time of being reached, counted from 1; None: at each."""


#: Empty, but in a test.
_armed: dict[str, _Trap] = {}
#: How often each point was reached since it was armed.
_reached: dict[str, int] = {}


def reach(point: str) -> None:
    """Say that a point is reached; whatever is armed there happens."""
    if _armed:
        _spring(point)


def _spring(point: str) -> None:
    count = _reached[point] = _reached.get(point, 0) + 1
    trap = _armed.get(point) or _armed.get(EVERY)
    if trap is None:
        return
    due = trap.at is None or trap.at == count
    if due and (log := os.environ.get("BATCHING_FAULT_LOG")):
        line = f"{point} {count} {os.getpid()}\n".encode()
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(file, line)
        os.close(file)
    if due:
        trap.act(point)


def arm(point: str, action: str | Callable[[str], None], at: int | None = 1) -> None:
    """Let something happen at a point of this process.

    Args:
        point: One of `POINTS`, or `EVERY`; what is armed for the point itself comes first.
        action: One of `ACTIONS`, or what is called with the point's name.
        at: At which time of being reached from now on, counted from 1; None: at each.

    Raises:
        ConfigurationError: There is no such point or action.
    """
    if point != EVERY and point not in POINTS:
        raise ConfigurationError(f"cannot arm the fault point {point!r}: there are {', '.join(sorted(POINTS))}")
    if isinstance(action, str):
        if action not in ACTIONS:
            raise ConfigurationError(f"cannot arm {point} with {action!r}: there are {', '.join(ACTIONS)}")
        action = ACTIONS[action]
    _reached.pop(point, None)
    _armed[point] = _Trap(action, at)


def disarm() -> None:
    """Let nothing happen any more."""
    _armed.clear()
    _reached.clear()


def arm_all(plan: str) -> None:
    """Arm what a text asks for: `point=action@n`, separated by commas; without `@n`, at the first time.

    Raises:
        ConfigurationError: It cannot be read, or names a point or an action that there is not.
    """
    for word in filter(None, (part.strip() for part in plan.split(","))):
        read = _WORD.fullmatch(word)
        if read is None:
            raise ConfigurationError(
                f"cannot read {word!r} in BATCHING_FAULTS: expected point=action or point=action@n"
            )
        point, action, at = read.groups()
        # Of every point each time: there is no first one.
        arm(point, action, (None if point == EVERY else 1) if at is None else int(at))


arm_all(os.environ.get("BATCHING_FAULTS", ""))
