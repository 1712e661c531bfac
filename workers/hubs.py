"""Our loop inside Celery's, for pools that fork; and how both keep turning while Celery's own loop does not."""

from __future__ import annotations

import logging
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import OperationalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from workers.loops import Loop

logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach the application's broker: kombu's own numbers.
_FIRST_PAUSE: Final = 2
_LONGEST_PAUSE: Final = 30


class HubBridge:
    """Turns our loop from within kombu's hub: one reader for its descriptor, one timer for its next deadline.

    Args:
        loop: Ours. Its timers and readers are its own, so that they survive `Hub.reset()`.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._hub: Any = None
        self._alarm: Any = None
        self._alarm_at = 0.0

    def attach(self, hub: Any) -> None:
        """Register; again after each reset of the hub, which forgets readers and cancels timers."""
        self._hub = hub
        hub.add_reader(self._loop.fileno(), self.turn)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self.turn()

    def detach(self) -> None:
        """Leave the hub for good; our loop may be closed then."""
        if self._hub is not None:
            _quietly(self._hub.remove, self._loop.fileno())
        if self._alarm is not None:
            self._alarm.cancel()

    def turn(self) -> None:
        """Run what is ready in our loop, and set the hub's timer to what comes next."""
        self._loop.run_once(0)
        delay = self._loop.delay()
        if delay is None:
            return
        due = monotonic() + delay
        if self._alarm is not None and not self._alarm.canceled and self._alarm_at <= due:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = due
        self._alarm = self._hub.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.turn()


class Turning:
    """Turns the hub for the pool and for us alone, while Celery's own loop stands still.

    Celery's loop stands still while it waits for its broker, and while it stops. Results must be read and settled all
    the same, and heartbeats sent, or this worker would be declared dead with its children at work. What belongs to the
    broker is put aside meanwhile: its descriptors may be broken, and its messages must not reach a pool that closes.

    Args:
        hub: Celery's.
        pool: The worker's pool.
        attach: Registers our part in the hub.
    """

    def __init__(self, hub: Any, pool: Any, attach: Callable[[Any], None]) -> None:
        self._hub = hub
        # Only prefork's pool needs turning: it has pipes.
        self._processes = getattr(pool, "_pool", None) if pool.uses_semaphore else None
        self._attach = attach
        self._aside: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
        self._kept: tuple[Any, Any] = (set(), ())
        self._timers: set[Any] = set()
        self._turns: Iterator[Any] | None = None

    def __enter__(self) -> Self:
        hub = self._hub
        self._kept = (hub.on_tick, hub.propagate_errors)
        self._put_aside()
        hub.on_tick = set() if self._processes is None else self._register_pool(self._processes)
        hub.propagate_errors = ()
        self._attach(hub)
        return self

    def _register_pool(self, processes: Any) -> set[Any]:
        hub = self._hub
        reading = {fd: hub.readers[fd] for fd in processes._fileno_to_outq if fd in hub.readers}  # noqa: SLF001
        before = _entries(hub)
        processes.register_with_event_loop(hub)
        self._timers = _entries(hub) - before
        # A result that was half read goes on where it was.
        for fd, (callback, arguments) in reading.items():
            hub.add_reader(fd, callback, *arguments)
        return {processes.on_poll_start}

    def __call__(self) -> None:
        """One turn: at most a second."""
        if self._turns is None:
            self._turns = self._hub.create_loop()
        try:
            next(self._turns)
        except Exception as error:  # noqa: BLE001 - whatever a callback of Celery's raised
            # The generator is dead, whatever it was; the next turn makes another.
            self._turns = None
            if not isinstance(error, StopIteration):
                logger.warning("Celery's loop failed while the lanes turned it: %r", error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hub = self._hub
        for entry in self._timers:
            hub.timer.cancel(entry)
        if self._processes is not None:
            self._finish_reading(self._processes)
        hub.on_tick, hub.propagate_errors = self._kept
        for known, aside in zip((hub.readers, hub.writers), self._aside, strict=True):
            for fd, (callback, arguments) in aside.items():
                if fd not in known:
                    add = hub.add_reader if known is hub.readers else hub.add_writer
                    _quietly(add, fd, callback, *arguments)

    def _put_aside(self) -> None:
        hub, processes = self._hub, self._processes
        own: set[Any] = set()
        if processes is not None:
            own |= {*processes._fileno_to_outq, *processes._all_inqueues}  # noqa: SLF001 - the pool's pipes
            own |= {getattr(process, "_sentinel_poll", None) for process in processes._pool}  # noqa: SLF001 - and ends
        for known, aside in zip((hub.readers, hub.writers), self._aside, strict=True):
            for fd in [fd for fd in known if fd not in own]:
                if known[fd] is not None:
                    aside[fd] = known[fd]
        for fd in {*self._aside[0], *self._aside[1]}:
            _quietly(hub.remove, fd)

    @staticmethod
    def _finish_reading(processes: Any) -> None:
        # Celery registers the pipes anew, and would take the middle of a result for its beginning.
        for fd, process in list(processes._fileno_to_outq.items()):  # noqa: SLF001 - see billiard
            _quietly(processes._result_handler._finish_partial_read, fd, process)  # noqa: SLF001


def attentive(hub: Any) -> None:
    """Make a hub look at its descriptors after each timer, not after ten of them.

    While Redis is frozen, several of Celery's timers wait for it, each until its time-out, and by then they are due
    again (kombu/asynchronous/hub.py `fire_timers`): what the pool's children answer would not be read all that time.

    Args:
        hub: Celery's, before its loop runs.
    """
    fire = hub.fire_timers

    def fire_timers(min_delay: int = 1, max_delay: int = 10, max_timers: int = 10, propagate: Any = ()) -> Any:
        del max_timers
        delay = fire(min_delay=0, max_delay=max_delay, max_timers=1, propagate=propagate)
        return delay if hub.timer._queue else min_delay  # noqa: SLF001 - `queue` sorts a copy

    hub.fire_timers = fire_timers


def patient(turning: Callable[[], Turning], connection: Any) -> Any:
    """Make a kombu connection that keeps turning while it waits for its server, instead of sleeping.

    kombu's own loop of attempts sleeps (kombu/utils/functional.py `retry_over_time`); the attempts, their pauses, their
    messages and their limit stay as they are. What is published over this connection is tried once: Celery's own sign
    of life would otherwise be tried until its server is back (celery/worker/heartbeat.py `Heart._send`), inside a timer
    of the loop; its dispatcher keeps what could not be sent.

    Args:
        turning: Makes what turns.
        connection: kombu's connection, not established; returned.
    """
    attempt = connection.ensure_connection

    def ensure_connection(errback: Any = None, max_retries: int | None = None, callback: Any = None, **_: Any) -> Any:
        pauses = (min(_LONGEST_PAUSE, _FIRST_PAUSE * step) for step in count(1))
        for retries in count():
            try:
                # No retry of kombu's own: with 0 it raises after the first attempt.
                return attempt(max_retries=0)
            except (*connection.recoverable_connection_errors, OperationalError) as error:
                if max_retries is not None and retries >= max_retries:
                    raise
                pause = next(pauses)
                if errback is not None:
                    errback(error, pause)
                connection.maybe_switch_next()
            _wait(turning, pause, callback)
        raise AssertionError  # unreachable: the loop above has no end

    publish = connection.ensure

    def ensure(target: Any, function: Any, **policy: Any) -> Any:
        return publish(target, function, **(policy | {"max_retries": 0}))

    connection.ensure_connection = ensure_connection
    connection.ensure = ensure
    return connection


def _wait(turning: Callable[[], Turning], pause: float, callback: Any) -> None:
    until = monotonic() + pause
    with turning() as turn:
        while monotonic() < until:
            if callback is not None:
                callback()  # raises when the worker shall stop
            turn()


def _entries(hub: Any) -> set[Any]:
    return {scheduled.entry for scheduled in hub.timer.queue}


def _quietly(function: Callable[..., object], *arguments: Any) -> None:
    try:
        function(*arguments)
    except (OSError, ValueError, KeyError) as error:
        logger.debug("%r%r: %r", function, arguments, error)
