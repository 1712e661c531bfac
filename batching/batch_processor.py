"""The call of the system that this one replaces, kept: `process_batch(batch_id)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batching.queue_manager import queue_manager

if TYPE_CHECKING:
    from batching.states import BatchState


def process_batch(batch_id: str) -> BatchState:
    """Ask for a batch to run ahead of its turn. The leader dispatches it; this call does not wait for it.

    Args:
        batch_id: A batch that is queued, or runs already.

    Returns:
        Its state after the call.

    Raises:
        UnknownBatchError: There is none with this id.
        IllegalMoveError: It is paused or finished.
    """
    return queue_manager.process(batch_id)
