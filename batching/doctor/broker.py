"""What must agree between SQL and the broker, and what must not lie in the broker's keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from sqlalchemy import case, func, select

from batching.dialects import age
from batching.doctor.findings import QUIET, Finding
from batching.errors import BrokerUnavailableError
from batching.interfaces import Lane
from batching.models import batches, profiles
from batching.moves import leadership
from batching.moves.profile import as_dispatches
from batching.moves.statements import DISPATCHED
from batching.outlook import serves
from batching.settings import get_settings
from batching.states import TERMINAL_BATCH_STATES, BatchState, ProfileState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sqlalchemy import ColumnElement, Connection

    from batching.database import Database
    from batching.interfaces import Dispatch, Publisher

#: Seconds that the sweep leaves a dispatch alone, beside, when it has published it again so many times.
_DELAYS = {times: 3.0 * 2**times for times in range(1, 8)}


class OddKey(NamedTuple):
    """A key of ours in the broker that is not as we write it."""

    name: str
    text: str
    """What is wrong with it."""
    mend: Callable[[], bool]
    """Puts it right; raises BrokerUnavailableError."""


class Keys(Protocol):
    """The broker's keys; `workers.keys.RedisKeys`."""

    def odd(self, lanes: Collection[Lane]) -> list[OddKey]:
        """Keys that are not as we write them.

        Args:
            lanes: Those that a batch may need or a worker serves.

        Raises:
            BrokerUnavailableError: The broker did not answer.
        """


# --- messages


def lost_messages(database: Database, publisher: Publisher) -> Iterator[Finding]:
    """Profiles that were dispatched long ago, without as many messages in their lanes."""
    try:
        with database.read() as connection:
            lanes = list(_silent(connection))
        # The lists first: what is popped and claimed from now on is no longer dispatched in the look that follows.
        lengths = publisher.lengths(lanes)
    except BrokerUnavailableError as error:
        yield Finding(str(error))
        return
    with database.read() as connection:
        silent = _silent(connection)
    for lane, dispatches in silent.items():
        if dispatches > lengths.get(lane, 0):
            text = (
                f"lane {lane.queue}/{lane.handler}: {dispatches:,} profiles were dispatched over {QUIET:g} s ago, and "
                f"{lengths.get(lane, 0):,} messages wait in the broker; a manager publishes the others again"
            )
            # A worker has popped some, and not claimed them yet.
            yield Finding(text, _publish(lane, publisher), passing=True, key=f"lost {lane}")


def _is_silent() -> list[ColumnElement[bool]]:
    delay = case(_DELAYS, value=profiles.c.republished, else_=0.0)
    return [
        profiles.c.dispatched_at.is_not(None),
        profiles.c.state == ProfileState.DISPATCHED,
        batches.c.state == BatchState.RUNNING,
        profiles.c.generation == batches.c.generation,
        age(profiles.c.dispatched_at) > delay + QUIET,
    ]


def _silent(connection: Connection) -> dict[Lane, int]:
    rows = connection.execute(
        select(batches.c.queue, batches.c.handler, func.count().label("dispatches"))
        .join(profiles, profiles.c.batch_id == batches.c.id)
        .where(*_is_silent())
        .group_by(batches.c.queue, batches.c.handler)
    )
    return {Lane(row.queue, row.handler): row.dispatches for row in rows}


def _publish(lane: Lane, publisher: Publisher) -> Callable[[Database], bool]:
    """A claim is granted once, so publishing what was not lost is harmless."""

    def put_right(database: Database) -> bool:
        with database.read() as connection:
            rows = connection.execute(
                select(batches.c.id, *DISPATCHED)
                .join(profiles, profiles.c.batch_id == batches.c.id)
                .where(*_is_silent(), batches.c.queue == lane.queue, batches.c.handler == lane.handler)
            ).all()
        alone_after = get_settings().max_losses
        dispatches: list[Dispatch] = [
            dispatch for row in rows for dispatch in as_dispatches([tuple(row)[1:]], row[0], lane, alone_after)
        ]
        try:
            publisher.publish(dispatches)
        except BrokerUnavailableError:
            return False
        return bool(dispatches)

    return put_right


# --- keys


def odd_keys(database: Database, keys: Keys) -> Iterator[Finding]:
    """Keys of ours that are not as we write them: of another type, with junk inside, of a lane that nobody needs."""
    with database.read() as connection:
        lanes = _needed(connection)
    try:
        odd = keys.odd(lanes)
    except BrokerUnavailableError as error:
        yield Finding(str(error))
        return
    for each in odd:
        # A worker drops what it pops there, and then the key is gone.
        yield Finding(f"key {each.name}: {each.text}", _mend(each), passing=True, key=f"key {each.name}")


def _needed(connection: Connection) -> set[Lane]:
    """The lanes of batches that are not finished, and those that live workers serve: they pop what lies there."""
    unfinished = connection.execute(
        select(batches.c.queue, batches.c.handler).where(batches.c.state.not_in(TERMINAL_BATCH_STATES)).distinct()
    )
    needed = {Lane(*row) for row in unfinished}
    queues = leadership.queue_names(connection)
    for worker in leadership.capabilities(connection, QUIET):
        served = (Lane(queue, handler) for queue in queues for handler in worker.handlers)
        needed.update(lane for lane in served if serves(worker, lane))
    return needed


def _mend(odd: OddKey) -> Callable[[Database], bool]:
    def put_right(_: Database) -> bool:
        try:
            return odd.mend()
        except BrokerUnavailableError:
            return False

    return put_right
