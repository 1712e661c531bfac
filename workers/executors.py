"""The worker's pool, seen from the consumer: who hands over, what can be withdrawn, who can be interrupted."""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from celery.concurrency.base import apply_target
from celery.exceptions import TaskRevokedError

from workers.children import child_of
from workers.requests import RunRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.interfaces import Claimed
    from workers.bundles import Bundle
    from workers.consumer import LaneConsumer

logger = logging.getLogger(__name__)

#: Seconds that the main thread of a solo worker runs profiles before Celery's own loop gets its turn.
_SLICE: Final = 0.05

_REFUSED: Final = "The pool did not take run %s; it is given back"


class PoolExecutor:
    """Hands runs to the pool directly: prefork in its own loop's thread, threads and gevent from ours.

    Args:
        controller: Celery's worker.
        pool: `prefork`, `threads` or `gevent`.
        result_limit: Bytes of one encoded result.
    """

    def __init__(self, controller: Any, pool: str, result_limit: int) -> None:
        self.pool = pool
        self.hostname = str(controller.hostname)
        self._controller = controller
        self._result_limit = result_limit
        self._tasks: dict[str, Any] = {}

    def _task(self, handler: str) -> Any:
        """A handler's task; looking it up in the application takes longer than all else that is done for a run here."""
        if handler not in self._tasks:
            self._tasks[handler] = self._controller.app.tasks[handler]
        return self._tasks[handler]

    def slots(self) -> int:
        """Runs that can go on at once; the pool may grow and shrink."""
        pool = self._controller.pool
        # Before the pool is started, it has no number of its own.
        try:
            return int(pool.num_processes)
        except AttributeError:
            return int(self._controller.concurrency)

    def handover(self, handed: int) -> int:
        """Twice the slots, so that a slot never waits for a turn of our loop.

        But gevent's pool blocks who hands it more than it has room for, and the application's own tasks take room too.
        """
        if self.pool == "gevent":
            return handed + max(0, int(self._controller.pool._pool.free_count()))  # noqa: SLF001 - it has no other way
        return 2 * self.slots()

    def prepare(self, claimed: Claimed, holder: str, consumer: LaneConsumer) -> RunRequest:
        """Make the request of a claimed run."""
        celery_consumer = self._controller.consumer
        request = RunRequest(
            claimed,
            holder,
            task=self._task(claimed.terms.lane.handler),
            consumer=celery_consumer,
            sink=consumer,
            result_limit=self._result_limit,
        )
        request.received(celery_consumer)
        return request

    def one_by_one(self, handler: str) -> bool:
        """Whether runs of a handler must go to the pool one by one: it counts time limits and tasks by the job."""
        task = self._task(handler)
        limits = (task.time_limit, task.soft_time_limit, self._controller.time_limit, self._controller.soft_time_limit)
        return any(limits) or bool(self._controller.max_tasks_per_child)

    def execute(self, bundle: Bundle) -> None:
        """Hand a bundle to the pool through the worker, so that it shares the slots fairly with the app's own tasks."""
        try:
            self._controller.process_task(bundle)
        except Exception:
            logger.exception(_REFUSED, bundle.requests[0].id, extra=bundle.requests[0].log_fields())
            bundle.give_back()

    def flush(self) -> None:
        """Write what was handed over to children that wait for it, now; prefork's loop would in its next turn."""
        if self.pool == "prefork":
            processes = self._controller.pool._pool  # noqa: SLF001 - Celery gives the hub what we give it here
            idle = [fd for fd in processes._all_inqueues if fd not in processes._busy_workers]  # noqa: SLF001
            if idle:
                self._controller.hub.consolidate_callback(idle)

    def withdraw(self, bundle: Bundle) -> bool:
        """Take a bundle that has not begun out of the pool; False when it may begin all the same."""
        job = bundle.handle
        if job is None:
            return True
        return self.pool == "prefork" and self._withdraw_job(job)

    def _withdraw_job(self, job: Any) -> bool:
        # Still in this process's buffer: no byte of it is in a child's pipe yet.
        buffer = self._controller.pool._pool.outbound_buffer  # noqa: SLF001 - billiard has no other way to cancel
        with suppress(ValueError):
            buffer.remove(job)
            job.discard()
            self._controller._quick_release()  # noqa: SLF001 - the slot that it was given
            return True
        return False

    def forgotten(self, bundle: Bundle) -> bool:
        """Whether the pool dropped a bundle, as Celery makes it do with all that wait when its broker is lost."""
        if self.pool != "prefork" or bundle.started or bundle.over:
            return False
        job = bundle.handle
        return job is None or job._job not in self._controller.pool._pool._cache  # noqa: SLF001 - see `withdraw`

    def readopt(self, bundle: Bundle) -> bool:
        """Put a dropped bundle back into the pool's books when a child has its bytes; False when it will not run there.

        Given back, its runs would run a second time elsewhere, and the outcomes of the first would be thrown away.
        """
        job = bundle.handle
        if job is None or job._write_to is None:  # noqa: SLF001 - set when its first byte goes into a child's pipe
            return False
        self._controller.pool._pool._cache[job._job] = job  # noqa: SLF001 - where answers look for their job
        return True

    def interrupt(self, request: RunRequest, *, force: bool) -> None:
        """End one run by a person's wish, as Celery's own `terminate` does; pools that cannot say so and let it run."""
        request.terminate(self._controller.pool, "KILL" if force else None)

    def terminate(self, requests: Sequence[RunRequest], *, force: bool) -> bool:
        """Interrupt what runs; False when this pool cannot."""
        if self.pool != "prefork":
            return False
        # Once each: a child takes the second polite signal for the last one, and runs of one bundle share theirs.
        for pid in {pid for request in requests if (pid := child_of(request)) is not None}:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL if force else signal.SIGTERM)
        return True


class ThreadsExecutor(PoolExecutor):
    """Hands bundles to the threads of the pool by way of *runners*: jobs of the pool that run bundle after bundle.

    A job for each would take a future and a walk through the pool's queue, in an interpreter that all threads share.
    After each bundle a runner looks whether anything else waits for the pool, such as the application's own tasks; then
    it goes to the end of their queue.
    """

    def __init__(self, controller: Any, pool: str, result_limit: int) -> None:
        super().__init__(controller, pool, result_limit)
        self._waiting: deque[Bundle] = deque()
        self._runners = 0
        self._lock = Lock()

    def execute(self, bundle: Bundle) -> None:
        """Queue a bundle for the runners, and start one more while there are fewer than slots."""
        self._waiting.append(bundle)
        # After the append: a runner that finds nothing more looks again under the lock before it leaves its place.
        with self._lock:
            if self._runners >= self.slots():
                return
            self._runners += 1
        if not self._start_runner() and self.withdraw(bundle):
            logger.error(_REFUSED, bundle.requests[0].id, extra=bundle.requests[0].log_fields())
            bundle.give_back()

    def withdraw(self, bundle: Bundle) -> bool:
        """Take a bundle out that no runner has taken."""
        with suppress(ValueError):
            self._waiting.remove(bundle)
            return True
        return False

    def _start_runner(self) -> bool:
        """Give the pool a runner for a place that is taken; False when it takes nothing more, and the place is free."""
        try:
            self._controller.pool.apply_async(self._run, callback=_ignore)
        except RuntimeError:
            # Said too when no further thread can be started: then it waits for one that there is
            # (concurrent/futures/thread.py `submit`).
            if self._controller.pool.executor._shutdown:  # noqa: SLF001 - it has no other way to say so
                with self._lock:
                    self._runners -= 1
                return False
        return True

    def _run(self) -> None:
        """What a runner does, in a thread of the pool."""
        others = self._controller.pool.executor._work_queue  # noqa: SLF001 - it has no other way to say who waits
        while (bundle := self._next()) is not None:
            self._run_bundle(bundle)
            if others.qsize():
                self._start_runner()  # at the end of their queue; a pool that closes begins with nothing more
                return

    def _next(self) -> Bundle | None:
        """The next bundle; with none, this runner's place is free."""
        with suppress(IndexError):
            return self._waiting.popleft()
        with self._lock:
            with suppress(IndexError):
                return self._waiting.popleft()
            self._runners -= 1
        return None

    @staticmethod
    def _run_bundle(bundle: Bundle) -> None:
        """Run one. Never raises: nobody else would take this runner's place."""
        try:
            bundle.execute_using_pool(_ThisThread)
        except TaskRevokedError:
            pass  # it told so itself
        except BaseException:
            logger.exception("The bundle of run %s failed; it is given back", bundle.requests[0].id)
            try:
                bundle.give_back()
            except Exception:
                logger.exception("The bundle of run %s could not be given back", bundle.requests[0].id)


class SoloExecutor(PoolExecutor):
    """Runs profiles in the main thread, where users of the solo pool expect them; the consumer is in another.

    The main thread is Celery's loop: a pipe wakes it, and it runs what is ready in short slices.
    """

    def __init__(self, controller: Any, pool: str, result_limit: int) -> None:
        super().__init__(controller, pool, result_limit)
        self._ready: deque[Bundle] = deque()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def attach(self, hub: Any) -> None:
        """Watch the pipe; again after each reset of Celery's loop."""
        hub.add_reader(self._reader, self.run_ready)

    def execute(self, bundle: Bundle) -> None:
        """Queue a bundle for the main thread."""
        self._ready.append(bundle)
        self._wake()

    def withdraw(self, bundle: Bundle) -> bool:
        """Take a bundle out that the main thread has not taken."""
        with suppress(ValueError):
            self._ready.remove(bundle)
            return True
        return False

    def run_ready(self) -> None:
        """Run what is ready, for one slice; called in the main thread."""
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)
        until = monotonic() + _SLICE
        while self._ready and monotonic() < until:
            with suppress(IndexError):
                super().execute(self._ready.popleft())
        if self._ready:
            self._wake()

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._reader)
        os.close(self._writer)

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._writer, b"\0")


class _ThisThread:
    """A pool that runs what it is given in the very thread that gives it, as a thread of Celery's pool would."""

    uses_semaphore = False

    @staticmethod
    def apply_async(target: Any, args: tuple[Any, ...], accept_callback: Any, callback: Any, **options: Any) -> None:
        """Run it to its end."""
        del options
        apply_target(target, args, None, callback, accept_callback)


def _ignore(result: object) -> None:
    """What comes of a runner."""
