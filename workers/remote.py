"""Celery's remote control of the lanes: `celery inspect batching_window` and its like, in any app with `install`.

Whoever can publish in the broker can send these, as Celery's own `shutdown`; the hardened profile has none of them, and
the verbs of `batching` do the same through SQL. Importing this module registers the commands, for workers and for the
command line that sends them.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.worker.control import control_command, inspect_command

import batching
from batching.errors import BatchingError, BrokerUnavailableError
from batching.interfaces import Lane
from batching.states import BatchState
from workers.publisher import lane_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batching.queue_manager import QueueManager
    from workers.wiring import Assembly

#: Where a worker's controller keeps its lanes' parts.
ATTRIBUTE = "batching_assembly"
_NONE = {"error": "this worker serves no lanes of batching"}


def _assembly(state: Any) -> Assembly | None:
    found: Assembly | None = getattr(getattr(state.consumer, "controller", None), ATTRIBUTE, None)
    return found


@inspect_command(name="batching_window", default_timeout=3.0)
def batching_window(state: Any, **_: Any) -> dict[str, Any]:
    """What waits and runs in each lane: in the broker, popped, claimed, ready, ended; and the credit for more."""
    assembly = _assembly(state)
    if assembly is None:
        return _NONE
    consumer = assembly.consumer
    pending = Counter(offer.key for offer in list(consumer.intake.pending.values()))
    active = Counter(request.claimed.terms.lane for request in list(consumer.active.values()))
    ready = Counter(request.claimed.terms.lane for request in list(consumer.ready))
    outcomes = Counter(request.claimed.terms.lane for request in consumer.outcomes.requests())
    lanes = [Lane(queue, handler) for queue in consumer.intake.queues for handler in sorted(assembly.handlers)]
    lengths = _lengths(assembly, lanes)
    return {
        "worker": consumer.worker_id,
        "credit": consumer.intake.credit(),
        "draining": consumer.draining,
        "handlers": sorted(assembly.handlers),
        "lanes": [
            {
                "queue": lane.queue,
                "handler": lane.handler,
                "in_broker": lengths.get(lane),
                "pending": pending[lane_key(assembly.settings.key_prefix, lane)],
                "active": active[lane],
                "ready": ready[lane],
                "outcomes": outcomes[lane],
            }
            for lane in lanes
        ],
    }


def _lengths(assembly: Assembly, lanes: Sequence[Lane]) -> dict[Lane, int]:
    """What waits in the broker; nothing while it does not answer."""
    with suppress(BrokerUnavailableError):
        return assembly.publisher.lengths(lanes)
    return {}


@inspect_command(name="batching_worker")
def batching_worker(state: Any, **_: Any) -> dict[str, Any]:
    """Who this worker is to the database, what it serves, and how it is."""
    assembly = _assembly(state)
    if assembly is None:
        return _NONE
    consumer, vitals = assembly.consumer, assembly.notes.last
    info, companion = consumer.life.info, assembly.companion
    return {
        "worker": consumer.worker_id,
        "pool": info.pool,
        "slots": consumer.executor.slots(),
        "handlers": sorted(assembly.handlers),
        "queues": list(consumer.intake.queues),
        "version": batching.__version__,
        "registered": consumer.life.registered,
        "draining": consumer.draining,
        "drain_asked": consumer.life.rest.asked,
        "database": consumer.gate.open,
        "broker": consumer.intake.popper.connected,
        "held": len(consumer.held),
        "late": consumer.outcomes.late,
        "refused": consumer.intake.refused,
        "duplicates": consumer.intake.duplicates,
        "junk": dict(consumer.intake.reader.junk),
        "manager_pid": None if companion is None else companion.pid,
        "stuck": None if vitals is None else vitals.stuck,
    }


@control_command(name="batching_drain")
def batching_drain(state: Any, **_: Any) -> dict[str, Any]:
    """Take nothing new, finish what has begun, give the rest back, and stay up."""
    return _ask_to_rest(state, rest=True)


@control_command(name="batching_resume", variadic="targets", signature="[batch | queue:NAME ...]", default_timeout=5.0)
def batching_resume(state: Any, targets: Sequence[str] = (), **_: Any) -> dict[str, Any]:
    """Take work again; or, with ids of batches or queue:NAME, resume those."""
    if not targets:
        return _ask_to_rest(state, rest=False)
    return _steer(state, targets, _resumed)


@control_command(name="batching_pause", variadic="targets", signature="batch | queue:NAME ...", default_timeout=5.0)
def batching_pause(state: Any, targets: Sequence[str] = (), **_: Any) -> dict[str, Any]:
    """Pause batches, or queues (queue:NAME), as `batching pause` does."""
    if not targets:
        return {"error": "name what to pause: the id of a batch, or queue:NAME"}
    return _steer(state, targets, _paused)


def _ask_to_rest(state: Any, *, rest: bool) -> dict[str, Any]:
    assembly = _assembly(state)
    if assembly is None:
        return _NONE
    if not assembly.consumer.gate.open or not assembly.consumer.life.registered:
        return {"error": "the database is away, which is where this is written; nothing was changed"}
    assembly.consumer.life.ask_to_rest(rest=rest)
    return {"ok": f"worker {assembly.consumer.worker_id} {'drains' if rest else 'takes work'}"}


def _steer(state: Any, targets: Sequence[str], act: Callable[[QueueManager, str], str]) -> dict[str, Any]:
    """Let the verb act on each target. Every worker gets the command, and all but the first find it done."""
    assembly = _assembly(state)
    if assembly is None:
        return _NONE
    from batching.queue_manager import QueueManager  # noqa: PLC0415 - an app that calls `install` need not load it

    # Without a broker of its own: the leader is woken over the worker's connection, whose time-out is short.
    manager = QueueManager(assembly.database, settings=assembly.settings.model_copy(update={"broker_url": None}))
    try:
        said = [act(manager, target) for target in targets]
    except BatchingError as error:
        return {"error": str(error)}
    with suppress(BrokerUnavailableError):
        assembly.publisher.hint()
    return {"ok": "; ".join(said)}


def _paused(manager: QueueManager, target: str) -> str:
    if (queue := _queue(target)) is not None:
        manager.queues.pause(queue)
        return f"queue {queue} is paused"
    view = manager.statistics.batch(target)
    state = view.state
    if state is not BatchState.PAUSED:
        state = manager.pause(view.id, "paused by remote control")
    return f"batch {view.id} is {state}"


def _resumed(manager: QueueManager, target: str) -> str:
    if (queue := _queue(target)) is not None:
        manager.queues.resume(queue)
        return f"queue {queue} goes on"
    view = manager.statistics.batch(target)
    state = manager.resume(view.id) if view.state is BatchState.PAUSED else view.state
    return f"batch {view.id} is {state}"


def _queue(target: str) -> str | None:
    kind, colon, name = target.partition(":")
    return name if colon and kind == "queue" else None
