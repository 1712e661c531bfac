"""What verbs answer, as documents: one shape for `--json` and for the API. Views bring their own: `as_json()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batching.brakes import Limit
    from batching.options import Amended, Difference
    from batching.queue_manager import Batch
    from batching.statistics import BatchView, FailureChange, HistoryEntry


def shown(view: BatchView, history: Iterable[HistoryEntry]) -> dict[str, Any]:
    """A batch with every move that it made."""
    return view.as_json() | {"history": [entry.as_json() for entry in history]}


def submitted(batch: Batch) -> dict[str, Any]:
    """A receipt: whether the batch is a new one, and how what was sent differs from what it had."""
    return {"id": batch.id, "total": batch.total, "created": batch.created, **batch.difference._asdict()}


def appended(batch_id: str, difference: Difference) -> dict[str, Any]:
    """How what was sent differs from what the batch had."""
    return {"id": batch_id, **difference._asdict()}


def amended(batch_id: str, done: Amended) -> dict[str, Any]:
    """How many payloads were changed, and the pass that was opened by it."""
    return {"id": batch_id, "amended": done.amended, "same": done.same, "pass": done.pass_number}


def remedied(view: BatchView, number: int) -> dict[str, Any]:
    """A batch after some of its profiles were retried, skipped or cancelled, with how many."""
    return view.as_json() | {"profiles": number}


def compared(later: int, changes: Iterable[FailureChange]) -> dict[str, Any]:
    """The failures of one pass against those of the pass before."""
    return {"from": later - 1, "to": later, "failures": [change.as_json() for change in changes]}


def limited(limit: Limit) -> dict[str, Any]:
    """A rate limit, and what it has to give now."""
    return {
        "kind": limit.key.kind.value,
        "name": limit.key.name,
        "per_second": limit.per_second,
        "burst": limit.burst,
        "available": round(limit.available, 3),
    }
