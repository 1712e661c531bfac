"""Spans of OpenTelemetry: submit, start, dispatch, claim, process, settle. Imported only where traces are wanted.

Attributes, names and kinds are those of the semantic conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/), in development there; what is ours begins with
`batching.`. Ids, keys and classes of errors, never a payload, a result or an error's message.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

import batching
from batching import traces
from batching.errors import BatchingError
from batching.exporting import provide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from batching.exporting import ChosenIds
    from batching.interfaces import Claimed, Dispatch, Lane, RunId, Settlement
    from batching.options import BatchSpec

#: Batches of which this process remembers the trace.
_REMEMBERED: Final = 1_000
_SYSTEM: Final = "celery"


def make(*, forks: bool) -> Spans:
    """What makes spans in this process: with the provider that the program has set up, else with one of our own.

    Args:
        forks: See `traces.boot`.
    """
    return Spans(*provide(forks=forks))


class Spans:
    """Makes spans.

    Args:
        provider: Whose tracer.
        ids: Where ids can be chosen; None where they cannot, as with a provider that somebody else has set up.
    """

    def __init__(self, provider: Any, ids: ChosenIds | None = None) -> None:
        self._provider = provider
        self._ids = ids
        self._tracer = provider.get_tracer("batching", batching.__version__)
        self._sampler = getattr(provider, "sampler", None)
        self._parents: OrderedDict[str, str | None] = OrderedDict()

    def close(self, seconds: float) -> None:
        """Export what there is. A provider that somebody else has set up is theirs to end."""
        if self._ids is None:
            return
        # In a thread that may be left behind: the exporter tries for as long as it likes.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(seconds)

    # --- which batches are traced

    def parent_of(self, batch_id: str, read: Callable[[str], str | None]) -> str | None:
        """The trace that a batch was submitted in, read once in this process.

        Args:
            batch_id: The batch.
            read: Asks the database.

        Returns:
            Its traceparent, empty for none; None when its profiles are not traced.
        """
        if batch_id not in self._parents:
            try:
                found = read(batch_id)
            except BatchingError:
                return None  # another time: what is traced must not fail for it
            if len(self._parents) >= _REMEMBERED:
                self._parents.popitem(last=False)
            parsed = traces.parse(found)
            self._parents[batch_id] = None if parsed is not None and not parsed[2] else found or ""
        return self._parents[batch_id]

    def known(self, batch_id: str) -> str | None:
        """What `parent_of` said of a batch; None also when it was never asked."""
        return self._parents.get(batch_id)

    def _sampled(self, profile_id: str) -> bool:
        """What the sampler says of a profile's trace. It is asked in every process, and decides by the id alone."""
        if self._sampler is None:
            return True
        decision = self._sampler.should_sample(None, traces.trace_id(profile_id), "profile", SpanKind.PRODUCER)
        return bool(decision.decision.is_sampled())

    # --- spans

    @contextmanager
    def submitting(self, spec: BatchSpec) -> Iterator[tuple[str | None, Callable[[str, int], None]]]:
        """The span of a submission.

        Yields:
            The traceparent to store with the batch, and a function that takes its id and total.
        """
        destination = _destination(spec.queue, spec.handler)
        attributes = _messaging("submit", "send", destination)
        with self._tracer.start_as_current_span(
            f"submit {destination}", kind=SpanKind.PRODUCER, attributes=attributes, record_exception=False
        ) as span:

            def submitted(batch_id: str, total: int) -> None:
                span.set_attribute("messaging.message.conversation_id", batch_id)
                span.set_attribute("batching.batch.id", batch_id)
                span.set_attribute("messaging.batch.message_count", total)

            yield _traceparent(span.get_span_context()), submitted

    def started(self, batch_id: str, pass_number: int | None, lane: Lane, parent: str) -> None:
        """A batch was promoted. Of one that was submitted outside any trace, its first span."""
        destination = _destination(*lane)
        attributes = _messaging("start", None, destination) | {
            "messaging.message.conversation_id": batch_id,
            "batching.batch.id": batch_id,
        }
        if pass_number is not None:
            attributes["batching.pass"] = pass_number
        context = _batch_context(batch_id, parent)
        root = not parent and pass_number == 1 and self._ids is not None
        with self._chosen(context.trace_id, context.span_id) if root else _nothing():
            self._tracer.start_span(
                f"start {destination}", _child_of(None if root else context), SpanKind.INTERNAL, attributes
            ).end()

    def dispatched(self, dispatches: Iterable[Dispatch], parent: str, began: float, *, again: bool = False) -> None:
        """Runs were published.

        The span of a profile's first run is the root of its trace, and those of its later runs are its children: each
        run is an attempt of its own below it. Its id is derived from the run's, so that whoever claims it knows it.

        Args:
            dispatches: Of one batch.
            parent: What `parent_of` says of it.
            began: When, in seconds since the epoch.
            again: A message that looked lost was published once more.
        """
        for each in dispatches:
            run = each.run
            if not self._sampled(run.profile_id):
                continue
            destination = _destination(*each.lane)
            attributes = _messaging("dispatch", "send", destination) | _about(run, each.key)
            attributes |= {"batching.attempt": each.attempt, "batching.pass": each.pass_number}
            if again:
                attributes["batching.republished"] = True
            first = run.run == 1 and self._ids is not None
            context = None if first and not again else _attempt(run if again else run._replace(run=1))
            chosen = traces.trace_id(run.profile_id), traces.span_id(run.task_id)
            with _nothing() if again else self._chosen(*chosen):
                self._tracer.start_span(
                    f"dispatch {destination}", _child_of(context), SpanKind.PRODUCER, attributes,
                    [Link(_batch_context(run.batch_id, parent))], _nanoseconds(began),
                ).end()  # fmt: skip

    def claimed(self, claimed: Sequence[Claimed], parents: Callable[[str], str | None], began: float) -> None:
        """Runs were claimed, together."""
        for each in claimed:
            if parents(each.run.batch_id) is None or not self._sampled(each.run.profile_id):
                continue
            destination = _destination(*each.terms.lane)
            attributes = _messaging("claim", "receive", destination) | _about(each.run, each.key)
            attributes |= {"messaging.batch.message_count": len(claimed), "batching.attempt": each.attempt}
            self._below(each.run, f"claim {destination}", SpanKind.CLIENT, attributes, began)

    @contextmanager
    def processing(
        self, run: RunId, key: str, place: tuple[str, str, str], attributes: dict[str, Any]
    ) -> Iterator[Callable[[str, str | None], None] | None]:
        """The handler runs; its own spans, and those of what it calls, are children of this one.

        Args:
            run: The run.
            key: The profile's.
            place: Queue, handler, and what `parent_of` says of the batch.
            attributes: Beside those that all have.

        Yields:
            A function that takes how it ended, and the class of the error or None; None where it is not sampled.
        """
        if not self._sampled(run.profile_id):
            yield None
            return
        queue, handler, parent = place
        destination = _destination(queue, handler)
        span = self._tracer.start_span(
            f"process {destination}",
            _child_of(_attempt(run)),
            SpanKind.CONSUMER,
            _messaging("process", "process", destination) | _about(run, key) | attributes,
            [Link(_batch_context(run.batch_id, parent))],
        )
        token = contexts.attach(trace.set_span_in_context(span))
        try:
            yield lambda ending, error: _end_as(span, ending, error)
        finally:
            contexts.detach(token)
            span.end()

    def settled(
        self,
        ends: Sequence[tuple[Claimed, Settlement]],
        late: Sequence[RunId],
        parents: Callable[[str], str | None],
        began: float,
    ) -> None:
        """Outcomes were settled, together."""
        too_late = set(late)
        for claimed, end in ends:
            run = claimed.run
            if parents(run.batch_id) is None or not self._sampled(run.profile_id):
                continue
            destination = _destination(*claimed.terms.lane)
            attributes = _messaging("settle", "settle", destination) | _about(run, claimed.key)
            attributes |= {"messaging.batch.message_count": len(ends), "batching.attempt": claimed.attempt}
            if run in too_late:
                attributes["batching.late"] = True
            error = None if end.error is None or end.label == "skipped" else end.error.type
            self._below(run, f"settle {destination}", SpanKind.CLIENT, attributes, began, (end.label, error))

    def lost(self, runs: Iterable[RunId], parents: Callable[[str], str | None]) -> None:
        """Runs were taken back from a worker that is gone: nobody else will say how they ended."""
        for run in runs:
            if parents(run.batch_id) is not None and self._sampled(run.profile_id):
                attributes = _messaging("settle", "settle", None) | _about(run, None)
                self._below(run, "settle", SpanKind.CLIENT, attributes, time.time(), ("lost", "WorkerLost"))

    def _below(
        self,
        run: RunId,
        name: str,
        kind: SpanKind,
        attributes: dict[str, Any],
        began: float,
        ended: tuple[str, str | None] | None = None,
    ) -> None:
        """A span that is over, below the dispatch of its run."""
        span = self._tracer.start_span(name, _child_of(_attempt(run)), kind, attributes, start_time=_nanoseconds(began))
        if ended is not None:
            _end_as(span, *ended)
        span.end()

    def _chosen(self, trace_id: int, span_id: int) -> Any:
        return _nothing() if self._ids is None else self._ids.chosen(trace_id, span_id)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _destination(queue: str, handler: str) -> str:
    """A lane, as a destination has one name."""
    return f"{queue}/{handler}"


def _messaging(name: str, kind: str | None, destination: str | None) -> dict[str, Any]:
    found = {"messaging.system": _SYSTEM, "messaging.operation.name": name}
    if kind is not None:
        found["messaging.operation.type"] = kind
    if destination is not None:
        found["messaging.destination.name"] = destination
    return found


def _about(run: RunId, key: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "messaging.message.id": run.task_id,
        "messaging.message.conversation_id": run.batch_id,
        "batching.batch.id": run.batch_id,
        "batching.profile.id": run.profile_id,
        "batching.run": run.run,
    }
    return found if key is None else found | {"batching.profile.key": key}


def _end_as(span: Span, ending: str, error: str | None) -> None:
    span.set_attribute("batching.outcome", ending)
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR, ending)


def _attempt(run: RunId) -> SpanContext:
    """The dispatch of a run."""
    return _remote(traces.trace_id(run.profile_id), traces.span_id(run.task_id))


def _batch_context(batch_id: str, parent: str) -> SpanContext:
    """The span that a batch was submitted in; of one that was submitted outside any trace, the one that started it."""
    parsed = traces.parse(parent)
    if parsed is not None:
        return _remote(*parsed[:2])
    return _remote(traces.trace_id(batch_id), traces.span_id(batch_id))


def _remote(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _child_of(parent: SpanContext | None) -> Context:
    """A context with nothing of this thread's in it."""
    empty = contexts.Context()
    return empty if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), empty)


def _traceparent(context: SpanContext) -> str | None:
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & TraceFlags.SAMPLED:02x}"


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
