"""Several short runs in one job of the pool: handing each over by itself costs more than running it.

Every run keeps a request, a trace, an outcome and its own end. What it shares is the way to the pool and back. A bundle
is planned to be over in milliseconds (`appetite`). When a run takes longer than that, those before it are settled and
those behind it taken back while it goes on; when a child dies, those before it are settled, the one that it was at is
lost, and those behind are given back. The board tells what came of which.
"""

from __future__ import annotations

import logging
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import ref

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]
from celery.exceptions import TaskRevokedError

from batching.logs import about
from workers import board
from workers.requests import RunRequest, Sink, tell_ended, tell_started
from workers.tracing import trace_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batching.interfaces import Outcome
    from workers.tracing import Answer

#: Seconds that a bundle gets before it counts as slow; and until a child has surely seen that it shall stop.
_PATIENCE: Final = 0.05
_SEEN: Final = 0.02


def _hide_payloads(record: logging.LogRecord) -> bool:
    """At DEBUG, the pool logs the arguments of whatever it is handed (celery/concurrency/base.py `apply_async`)."""
    if isinstance(record.args, tuple) and record.args[:1] == (trace_runs,):
        record.args = (trace_runs.__name__, "not shown", "not shown")
    return True


logging.getLogger("celery.pool").addFilter(_hide_payloads)


class BundleSink(Sink, Protocol):
    """Who wants to know how bundles go on. May be called from any thread."""

    def bundle_ended(self, bundle: Bundle, unrun: Sequence[RunRequest]) -> None:
        """The pool has nothing to do with it any more; called once. `unrun` wait for their turn again."""

    def runs_returned(self, unrun: Sequence[RunRequest]) -> None:
        """They wait for their turn again, while their bundle goes on without them."""


class Bundle:
    """Runs of one handler and one batch, in the pool's hands together.

    Args:
        requests: Claimed and not over; at least one. More than one only without time limits, which the pool counts for
            a whole job.
        sink: Who is told.
    """

    def __init__(self, requests: Sequence[RunRequest], sink: BundleSink) -> None:
        self.requests = list(requests)
        self.handle: Any = None
        """The pool's job; None before it has one, and afterwards."""
        self.over = False
        self.started = False
        self._sink = sink
        self._cell = board.NOTHING
        self.began = 0.0
        """By the monotonic clock; 0 before the pool has begun with it."""
        self._halted: float | None = None
        # Pools of threads tell the end in their threads, while the sink's takes back what is held up.
        self._lock = Lock()
        for request in requests:
            request.bundle = self

    @property
    def running(self) -> RunRequest | None:
        """The run that its child is at, or was at last."""
        index = max(0, board.begun(self._cell))
        return self.requests[index] if index < len(self.requests) else None

    def execute_using_pool(self, pool: Any, **options: Any) -> Any:
        """Hand it to the pool; called by Celery's worker, which frees the slot on `TaskRevokedError`."""
        del options
        # Celery may have kept it for a slot; meanwhile its runs may have been withdrawn, or given back.
        self.requests = [each for each in self.requests if each.bundle is self and not each.over and not each.revoked()]
        if not self.requests:
            self._leave_pool(())
            raise TaskRevokedError
        self.handle = self._apply(pool)
        if self.over:
            self.handle = None
        elif self.handle is not None:
            # Celery's `terminate` finds the pool's job through a weak reference.
            job = ref(self.handle)
            for each in self.requests:
                each._apply_result = job  # noqa: SLF001 - where Celery keeps it
        return self.handle

    def _apply(self, pool: Any) -> Any:
        first, several = self.requests[0], len(self.requests) > 1
        # None for one run alone: a child that is killed for its time limit still works when its bundle is over.
        self._cell = board.take() if several else board.NOTHING
        if self._halted is not None:
            # In a thread of the pool, while the loop's recalled it: whoever comes second of the two sees the other.
            board.halt(self._cell)
        soft, hard = (None, None) if several else first.limits
        return pool.apply_async(
            trace_runs,
            args=(self._cell, tuple(first.shared), [each.own for each in self.requests]),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=soft,
            timeout=hard,
            correlation_id=first.id,
        )

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """The pool has begun with it."""
        self.began = monotonic()
        self.started = True
        for request in self.requests:
            request.on_accepted(pid, time_accepted)
        if len(self.requests) == 1:
            # Of several, each is over within milliseconds: its end is told, and that alone.
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
        with self._lock:
            ended = self._answered(answers)
            # Before the outcomes are told: who settles them looks at what else can be handed over.
            self._leave_pool([each for each in self.requests[len(answers) :] if not each.over])
        tell_ended(self._sink, ended)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """The pool ended it: a dead child, a time limit, a termination. Never raises.

        Whoever ran when the child died has died with it. Those before have ended, those behind never ran.
        """
        del send_failed_event, return_ok
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        with self._lock:
            answers = board.answers(self._cell)
            ended = self._answered(answers)
            victim = self._victim(len(answers))
            outcome = victim.lost(error, exc_info) if victim is not None else None
            if victim is not None and outcome is not None:
                ended.append((victim, outcome))
        tell_ended(self._sink, ended)
        self.give_back()

    def _victim(self, answered: int) -> RunRequest | None:
        """Whom the child was at; None between two runs. Before the first it is the first: nobody may die for ever."""
        if answered and board.begun(self._cell) < answered:
            return None
        return self.requests[answered] if answered < len(self.requests) else None

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit passed."""
        # Bundles with a limit have one run. The pool reports a hard one to `on_failure` too, before this.
        with about(self.requests[0]):
            self.requests[0].on_timeout(soft, timeout)

    def halt(self) -> None:
        """Let the child begin no more than what it has begun; the others come back, by `relieve` or at the end."""
        if self._halted is None:
            self._halted = monotonic()
            board.halt(self._cell)

    def relieve(self) -> bool:
        """Let those go that a slow run holds up; the bundle shrinks to what its child is at. Call it repeatedly.

        Returns:
            Whether it has to be called again.
        """
        now = monotonic()
        unrun: list[RunRequest] = []
        with self._lock:
            if self.over or self._cell < 0:
                # Without a cell it may still wait for its slot.
                return not self.over and len(self.requests) > 1 and not self.started
            if not self.started or now - self.began < _PATIENCE:
                return True
            if cut := self._halted is not None and now - max(self._halted, self.began) > _SEEN:
                last = max(0, board.begun(self._cell)) + 1
                unrun = [each for each in self.requests[last:] if not each.over]
                self.requests = self.requests[:last]
                for request in unrun:
                    request.withdrawn()
            self.halt()
        self.salvage()
        if cut:
            tell_started(self.requests[-1])  # it takes so long that people may want to see it
        if unrun:
            self._sink.runs_returned(unrun)
        return not cut

    def salvage(self) -> None:
        """Settle what its child has ended, and could not tell yet."""
        with self._lock:
            ended = self._answered(board.answers(self._cell))
        tell_ended(self._sink, ended)

    def give_back(self) -> None:
        """End what is not over yet, uncharged."""
        for request in self.requests:
            request.give_back()
        with self._lock:
            self._leave_pool(())

    def withdrawn(self) -> None:
        """The pool let go of it before it began: its runs wait for their turn again."""
        with self._lock:
            self._leave_pool([each for each in self.requests if not each.over])

    def _answered(self, answers: Sequence[Answer]) -> list[tuple[RunRequest, Outcome]]:
        return [
            (request, outcome)
            for request, answer in zip(self.requests, answers, strict=False)
            if not request.over and (outcome := request.answered(answer)) is not None
        ]

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
