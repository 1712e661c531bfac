"""From a started batch to its results: follow it to its end, sum it up, write its lines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from batching.errors import DatabaseUnavailableError, InvalidInputError
from batching.states import ProfileState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType, TracebackType
    from typing import Self

    from batching.statistics import BatchView, Statistics
    from workers.local import LocalServices


class Shows(Protocol):
    """Where progress is shown."""

    def update(self, views: Sequence[BatchView]) -> None:
        """Show how far these batches are."""


#: Seconds between two looks at the store, and at the processes.
LOOK: Final = 0.2
#: Seconds that the store may be away before a command gives up watching. The batch itself does not mind.
_PATIENCE: Final = 60.0


class StopSignals:
    """Ctrl-C and SIGTERM as exceptions, which unwind the stack so that what was started is stopped in its order.

    The signal is also kept, for `check`: Python drops an exception that a signal raises inside a destructor or a weak
    reference's callback (https://docs.python.org/3/library/signal.html#note-on-signal-handlers-and-exceptions).
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Stop, if a signal said so; for loops to call.

        Raises:
            KeyboardInterrupt: It was Ctrl-C.
            SystemExit: It was SIGTERM.
        """
        if self._number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._number:
            sys.exit(128 + self._number)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._number = number
        if number == signal.SIGTERM:
            # Once is enough: a second one must not interrupt the orderly stop.
            signal.signal(number, signal.SIG_IGN)
        self.check()


def follow(
    read: Callable[[], list[BatchView]], services: LocalServices, display: Shows, signals: StopSignals
) -> list[BatchView]:
    """Show batches until each of them has ended.

    Args:
        read: Reads them.
        services: Looked after meanwhile.
        display: Where they are shown.
        signals: What ends it early.

    Raises:
        BatchingError: The worker ended, or the store was away for a minute.
    """
    last_answer = time.monotonic()
    while True:
        try:
            views = read()
        except DatabaseUnavailableError:
            if time.monotonic() - last_answer > _PATIENCE:
                raise
        else:
            last_answer = time.monotonic()
            display.update(views)
            if all(view.terminal for view in views):
                return views
        signals.check()
        services.check()
        time.sleep(LOOK)


def summary(view: BatchView) -> list[str]:
    """A batch that ended, in two lines."""
    began, ended = view.started_at or view.created_at, view.finished_at or view.created_at
    seconds = (ended - began).total_seconds()
    rate = f"{view.settled / seconds:,.0f} profiles a second" if seconds > 0 else "at once"
    counts = ", ".join(
        f"{getattr(view, state.value):,} {state.value}"
        for state in (ProfileState.SUCCEEDED, ProfileState.SKIPPED, ProfileState.FAILED, ProfileState.CANCELLED)
        if getattr(view, state.value) or state is not ProfileState.CANCELLED
    )
    reason = f": {view.reason}" if view.reason else ""
    return [
        f"batch {view.id} {view.state.value}{reason}",
        f"  {view.total:,} profiles: {counts}; pass {view.pass_number} of {view.max_passes}; {seconds:.1f} s, {rate}",
    ]


def check_target(target: str | None) -> None:
    """Refuse a file that cannot be written before the work, not after it."""
    if target is None or target == "-":
        return
    path = Path(target)
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidInputError(f"cannot write {target}: it is a folder, or its folder is missing or not writable")


def write_lines(batch_id: str, statistics: Statistics, out: str | None, errors: str | None) -> dict[str, int]:
    """Results (every profile) and errors (those that failed, with their payloads) as JSON lines, in one reading."""
    written: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        targets = [
            (target, stack.enter_context(_replacing(target)), wanted)
            for target, wanted in ((out, None), (errors, ProfileState.FAILED))
            if target is not None
        ]
        for result in statistics.results(batch_id, payloads=errors is not None) if targets else ():
            for target, stream, wanted in targets:
                if wanted is None or result.state is wanted:
                    document = result.as_json()
                    if wanted is None:
                        document.pop("payload", None)
                    stream.write(json.dumps(document, ensure_ascii=False) + "\n")
                    written[target] = written.get(target, 0) + 1
        return {target: written.get(target, 0) for target, _, _ in targets}


@contextlib.contextmanager
def _replacing(target: str) -> Iterator[Any]:
    """A text file that appears under its name only when it is complete; `-` is standard output."""
    if target == "-":
        yield sys.stdout
        return
    draft = Path(f"{target}.part")
    with draft.open("w", encoding="utf-8") as stream:
        yield stream
    draft.replace(target)
