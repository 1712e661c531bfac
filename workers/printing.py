"""What handlers print, counted: the log of a worker is a disk that it shares with its neighbours.

Counted is what goes through `sys.stdout` and `sys.stderr` in the run's own thread, greenlet or event loop; under Celery
both are its logger `celery.redirected`, so that each write is a line with a date and the fields of its run. Not counted
is what a handler logs, for which levels exist, unless it made the logging's stream handler in a run; and what goes past
these streams: `sys.stdout.buffer`, `os.write`, extensions, child processes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from workers.tracing import LINE, charge_for_output

if TYPE_CHECKING:
    from collections.abc import Iterable

_STREAMS: Final = ("stdout", "stderr")


class Metered:
    """A text stream that asks, before it writes, whether the run that prints may print so much.

    Args:
        stream: What it stands for; everything but writing text is asked of it.
        limit: Characters of one run, `LINE` for each write among them.
    """

    def __init__(self, stream: Any, limit: int) -> None:
        self.stream = stream
        self._limit = limit

    def write(self, text: str) -> Any:
        """Write it.

        Raises:
            OutputTooLargeError: The run has printed too much; nothing is written.
        """
        if isinstance(text, str | bytes):
            charge_for_output(len(text) + (LINE if text != "\n" else 0), self._limit)
        return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each.

        Raises:
            OutputTooLargeError: As `write`.
        """
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # of a copy that is not made yet
            raise AttributeError(name)
        return getattr(self.stream, name)


def meter(limit: int) -> None:
    """Count what runs of this process print from here on. Repeatable.

    Args:
        limit: Characters of one run.
    """
    unmeter()
    for name in _STREAMS:
        stream = getattr(sys, name)
        if stream is not None:
            setattr(sys, name, Metered(stream, limit))


def unmeter() -> None:
    """Leave the streams as they were, unless somebody has put others in their place since."""
    for name in _STREAMS:
        stream = getattr(sys, name)
        if isinstance(stream, Metered):
            setattr(sys, name, stream.stream)
