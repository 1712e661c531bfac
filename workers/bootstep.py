"""The lanes as a part of Celery's worker: a bootstep between its pool and its consumer."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import click
from celery import bootsteps
from celery.signals import worker_before_create_process, worker_process_init, worker_process_shutdown
from celery.worker import state as celery_state

from batching import traces
from batching.errors import BatchingError
from batching.settings import get_settings
from workers import board, children, printing
from workers.drain import Drain
from workers.heap import spare_what_is_loaded
from workers.hubs import HubBridge, Turning, attentive, patient
from workers.remote import ATTRIBUTE
from workers.sharing import share_interpreter

if TYPE_CHECKING:
    from workers.wiring import Assembly

logger = logging.getLogger(__name__)

#: Seconds beyond the drain's own bounds after which a thread that does not answer is left behind.
_THREAD_GRACE: Final = 15.0
#: Seconds between two notes for probes.
_NOTE: Final = 1.0
#: Seconds between two looks for a second, harder signal.
_LOOK: Final = 0.2


class Lanes(bootsteps.StartStopStep):
    """Serves the lanes. After the pool at boot, before it at the stop: handlers need the pool to finish."""

    requires = ("celery.worker.components:Pool",)
    label = "Lanes"

    def __init__(self, controller: Any, **options: Any) -> None:
        super().__init__(controller, **options)
        board.open_board()
        # Connected before the pool forks. Celery has set up a child's streams when it sends the first, and what a child
        # has traced leaves it with the second.
        worker_process_init.connect(_meter, weak=False, dispatch_uid="batching-printing")
        worker_process_shutdown.connect(_export, weak=False, dispatch_uid="batching-traces")
        from workers.wiring import assemble  # noqa: PLC0415 - it makes this step, and this step makes it do its work

        try:
            self._assembly: Assembly = assemble(controller)
        except BatchingError as error:
            raise _for_people(error) from error
        setattr(controller, ATTRIBUTE, self._assembly)
        self._stopped = self._through = self._hurried = False
        self._closed_at: float | None = None
        self._drained = threading.Event()
        self._thread: threading.Thread | None = None
        self._bridge = HubBridge(self._assembly.loop)
        spare_what_is_loaded()  # before the pool forks: its children gain as much

    def include_if(self, controller: Any) -> bool:
        """Always."""
        del controller
        return True

    def create(self, controller: Any) -> None:
        """Nothing: the parts were made when this step was."""

    def start(self, controller: Any) -> None:
        """Begin to consume; Celery's own consumer starts next, and may wait for its broker as long as it takes."""
        assembly = self._assembly
        logger.info(
            "Serving handlers %s as worker %s", ", ".join(sorted(assembly.handlers)), assembly.consumer.worker_id
        )
        self._wait_patiently(controller)
        traces.boot(forks=not assembly.threaded)  # after the pool: a thread is not there yet when it forks
        if assembly.threaded:
            _meter()  # Celery has set up the streams of this process when its steps start
            if assembly.kind == "threads":
                share_interpreter(int(controller.concurrency))
            assembly.loop.call_soon(assembly.consumer.start)
            self._thread = threading.Thread(target=assembly.loop.run_forever, name="lanes", daemon=True)
            self._thread.start()
        else:
            worker_before_create_process.connect(self._before_fork, weak=False, dispatch_uid=f"lanes-{id(self)}")
            attentive(controller.hub)
            children.hear_out(controller.pool._pool)  # noqa: SLF001 - Celery's pool keeps billiard's there
            assembly.consumer.start()
        self._take_notes()
        self._stop_the_pool_last(controller.pool)
        assembly.loop.call_soon(spare_what_is_loaded)  # after the first heartbeat, which has made the way to SQL
        if assembly.companion is not None:
            assembly.companion.start()

    def register_with_event_loop(self, controller: Any, hub: Any) -> None:
        """Called whenever Celery's loop (re)starts, which forgot every reader.

        Celery calls its steps in reverse order here (celery/bootsteps.py `send_all`), so the pool's turn is after ours,
        and before it the pool has no way to its children: a run that was claimed now would be refused, and the slot
        that it was given would be lost. So we wait for the loop's first turn.
        """
        del controller
        hub.call_soon(self._attach_again, hub)

    def _attach_again(self, hub: Any) -> None:
        if not self._stopped:
            self._attach(hub)

    def close(self, controller: Any) -> None:
        """The stop begins. Celery stops its own consumer next, which takes a while when its broker does not answer."""
        del controller
        self._closed_at = monotonic()

    def stop(self, controller: Any) -> None:
        """Drain, then stop the manager: while we drain, it still hands our profiles to others. Repeatable."""
        spent = 0.0 if self._closed_at is None else monotonic() - self._closed_at
        self._finish(controller, max(0.0, self._assembly.settings.drain_timeout - spent))

    def terminate(self, controller: Any) -> None:
        """Give everything back at once."""
        self._finish(controller, 0.0)

    def info(self, controller: Any) -> dict[str, Any]:  # type: ignore[override] # the stub says None
        """What `inspect stats` shows of the lanes."""
        del controller
        consumer = self._assembly.consumer
        return {
            "lanes": {
                "worker": consumer.worker_id,
                "handlers": sorted(self._assembly.handlers),
                "active": len(consumer.active),
                "pending": len(consumer.intake.pending),
                "outcomes": len(consumer.outcomes),
                "late": consumer.outcomes.late,
                "refused": consumer.intake.refused,
                "duplicates": consumer.intake.duplicates,
                "junk": dict(consumer.intake.reader.junk),
            }
        }

    def _take_notes(self) -> None:
        """Leave a note for probes in every turn of the clock; whoever asks sees by its age that the loop stands still.

        The probe's thread is started after the pool has forked. Children that are forked later have none of it: it
        holds no lock, and they close its socket.
        """
        assembly = self._assembly

        def note() -> None:
            assembly.notes.note(assembly.consumer)

        def begin() -> None:
            assembly.loop.call_repeatedly(_NOTE, note)
            note()

        assembly.loop.call_soon(begin)
        if assembly.probe is not None:
            assembly.probe.start()

    def _attach(self, hub: Any) -> None:
        if self._assembly.solo is not None:
            self._assembly.solo.attach(hub)
        if not self._assembly.threaded:
            self._bridge.attach(hub)

    def _wait_patiently(self, controller: Any) -> None:
        """Keep our part turning while Celery's consumer waits for its broker in this thread."""
        consumer = controller.consumer
        if controller.hub is None or self._assembly.kind not in {"prefork", "solo"}:
            return
        connect = consumer.ensure_connected

        def ensure_connected(connection: Any) -> Any:
            if consumer.connection is None:
                self._recover_forgotten()
            return connect(patient(lambda: self._turning(controller), connection))

        consumer.ensure_connected = ensure_connected

    def _turning(self, controller: Any) -> Turning:
        return Turning(controller.hub, controller.pool, self._attach)

    def _stop_the_pool_last(self, pool: Any) -> None:
        """Let nobody stop the pool before the drain.

        Celery's handler of SIGQUIT does (celery/apps/worker.py `on_cold_shutdown`): inside of the signal, in the middle
        of whatever this process was at, it waits for what the children run, for ever.
        """
        stop = pool.stop

        def stop_last() -> None:
            if self._through:
                stop()

        pool.stop = stop_last

    def _recover_forgotten(self) -> None:
        """When its broker is lost, and when its consumer stops, Celery makes the pool forget what it has not begun.

        Those would never call back (celery/worker/consumer/consumer.py `on_close`).
        """
        executor = self._assembly.executor
        for bundle in list(self._assembly.consumer.bundles):
            if executor.forgotten(bundle) and not executor.readopt(bundle):
                bundle.give_back()

    def _before_fork(self, **_: Any) -> None:
        # A forked child must not share a connection: SQLite forbids it, and libpq's would be shut by either side.
        self._assembly.database.close()

    def _finish(self, controller: Any, timeout: float) -> None:
        if self._stopped:
            return
        self._stopped = True
        assembly = self._assembly
        drain = Drain(assembly.consumer, timeout, self._drained.set)
        # Celery's own consumer was stopped before us, and let the pool forget what it had not begun: no end of those
        # would ever be told, and the drain would wait for them.
        assembly.loop.call_soon(self._recover_forgotten)
        assembly.loop.call_soon(drain.begin)
        try:
            if self._thread is None:
                self._turn_until_drained(controller, drain)
            else:
                self._await_thread(timeout, drain)
            if assembly.companion is not None:
                assembly.companion.stop(at_once=drain.abandoned)
            worker_before_create_process.disconnect(dispatch_uid=f"lanes-{id(self)}")
            self._bridge.detach()
            printing.unmeter()
            assembly.close()
        finally:
            self._through = True

    def _turn_until_drained(self, controller: Any, drain: Drain) -> None:
        processes = controller.pool._pool  # noqa: SLF001 - Celery's pool keeps billiard's there
        with self._turning(controller) as turn:
            while not self._drained.is_set():
                turn()
                children.bury(processes)
                self._hurry_when_asked(drain)
        children.let_go(processes)
        children.insist(processes, _terminates)

    def _await_thread(self, timeout: float, drain: Drain) -> None:
        started = monotonic()
        while not self._drained.wait(_LOOK):
            self._hurry_when_asked(drain)
            if monotonic() - started > timeout + _THREAD_GRACE:
                logger.warning("The lanes' thread did not end within %.0f s; leaving it behind", monotonic() - started)
                break
        self._assembly.loop.stop()
        if self._thread is not None:
            self._thread.join(5.0)

    def _hurry_when_asked(self, drain: Drain) -> None:
        """A second, harder signal may come while we drain."""
        if not self._hurried and _terminates():
            self._hurried = True
            self._assembly.loop.call_soon(drain.hurry)


def _terminates() -> bool:
    """Whether the worker shall stop at once."""
    asked: Any = celery_state.should_terminate  # its stub knows None only; an exit code may be 0
    return asked is not None and asked is not False


def _meter(**_: Any) -> None:
    printing.meter(get_settings().output_limit)


def _export(**_: Any) -> None:
    traces.shutdown()


def _for_people(error: BatchingError) -> Exception:
    """Under Celery's command line, a message and exit code 1 in place of a traceback through its internals."""
    if click.get_current_context(silent=True) is None:
        return error
    return click.ClickException(str(error))
