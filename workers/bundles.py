"""Several short runs in one job of the pool: handing each over by itself costs more than running it.

Every run keeps a request, a trace, an outcome and its own end. What it shares is the way to the pool and back. A bundle
is planned to be over in milliseconds (`appetite`), and a run that takes longer than planned ends it: those behind come
back unrun. When a child dies, the board tells which run it was at: that one is lost, the others are given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]
from celery.exceptions import TaskRevokedError

from batching.interfaces import Ending, Outcome
from workers import board
from workers.requests import RunRequest, Sink, tell_ended, tell_started
from workers.tracing import trace_runs

if TYPE_CHECKING:
    from collections.abc import Sequence


class BundleSink(Sink, Protocol):
    """Who wants to know how bundles go on. May be called from any thread."""

    def bundle_ended(self, bundle: Bundle, unrun: Sequence[RunRequest]) -> None:
        """The pool has nothing to do with it any more; called once. `unrun` wait for their turn again."""


class Bundle:
    """Runs of one handler and one batch, in the pool's hands together.

    Args:
        requests: Claimed and not over; at least one. More than one only without time limits, which the pool counts for
            a whole job.
        sink: Who is told.
    """

    def __init__(self, requests: Sequence[RunRequest], sink: BundleSink) -> None:
        self.requests = requests
        self.handle: Any = None
        """The pool's job; None before it has one, and afterwards."""
        self.over = False
        self.started = False
        self._sink = sink
        self._cell = board.NOTHING
        for request in requests:
            request.bundle = self

    @property
    def running(self) -> RunRequest | None:
        """The run that its child is at; None when it has ended them all."""
        index = max(0, board.read(self._cell))
        return self.requests[index] if index < len(self.requests) else None

    def execute_using_pool(self, pool: Any, **options: Any) -> Any:
        """Hand it to the pool; called by Celery's worker, which frees the slot on `TaskRevokedError`."""
        del options
        # Celery may have kept it for a slot; meanwhile its runs may have been withdrawn, or given back.
        self.requests = [each for each in self.requests if each.bundle is self and not each.over and not each.revoked()]
        if not self.requests:
            self._leave_pool(())
            raise TaskRevokedError
        first = self.requests[0]
        task = first.task
        self._cell = board.take() if pool.uses_semaphore else board.NOTHING
        self.handle = pool.apply_async(
            trace_runs,
            args=(self._cell, tuple(first.shared), [tuple(each.own) for each in self.requests]),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=task.soft_time_limit,
            timeout=task.time_limit,
            correlation_id=first.id,
        )
        if self.handle is not None and not self.over:
            # Celery's `terminate` finds the pool's job through a weak reference.
            job = ref(self.handle)
            for each in self.requests:
                each._apply_result = job  # type: ignore[attr-defined] # noqa: SLF001 - where Celery keeps it
        return self.handle

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """The pool has begun with it."""
        self.started = True
        for request in self.requests:
            request.on_accepted(pid, time_accepted)
        if len(self.requests) == 1:
            # Of several, each is over within milliseconds, and nobody knows when it really began.
            tell_started(self.requests[0])

    def on_success(self, answers: Any, **options: Any) -> None:
        """The trace function returned; a pool that could not run it returns what went wrong."""
        del options
        if isinstance(answers, ExceptionInfo):
            self.on_failure(answers)
            return
        if not isinstance(answers, list):
            self.give_back()
            return
        self._end(
            [
                (request, outcome)
                for request, answer in zip(self.requests, answers, strict=False)
                if (outcome := request.answered(answer)) is not None
            ],
            [each for each in self.requests[len(answers) :] if not each.over],
        )

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """The pool ended it: a dead child, a time limit, a termination. Never raises.

        Whoever ran when the child died has died with it; those before have lost their answers, those behind never ran.
        """
        del send_failed_event, return_ok
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        victim = self.running
        outcome = victim.lost(error, exc_info) if victim is not None else None
        if victim is not None and outcome is not None:
            tell_ended(self._sink, [(victim, outcome)])
        self.give_back()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit passed."""
        # Bundles with a limit have one run. The pool reports a hard one to `on_failure` too, before this.
        self.requests[0].on_timeout(soft, timeout)

    def give_back(self) -> None:
        """End what is not over yet, uncharged."""
        for request in self.requests:
            request.finish(Outcome(Ending.GIVEN_BACK))
        self._leave_pool(())

    def withdrawn(self) -> None:
        """The pool let go of it before it began: its runs wait for their turn again."""
        self._leave_pool([each for each in self.requests if not each.over])

    def _end(self, ended: list[tuple[RunRequest, Outcome]], unrun: list[RunRequest]) -> None:
        # Before the outcomes are told: who settles them looks at what else can be handed over.
        self._leave_pool(unrun)
        tell_ended(self._sink, ended)

    def _leave_pool(self, unrun: Sequence[RunRequest]) -> None:
        if self.over:
            return
        self.over = True
        self.handle = None  # it refers back to this bundle
        board.give(self._cell)
        self._cell = board.NOTHING
        for request in unrun:
            request.withdrawn()
        self._sink.bundle_ended(self, unrun)
