"""Whether SQL can be used now. While it cannot, work waits in memory and a timer tries again; nothing ever sleeps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, TypeVar

from batching.errors import DatabaseUnavailableError
from batching.figures import Figures

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.loops import Loop

logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.1
#: A quarter of the default lease of a worker: the leader watches it for silence, so it has to meet the moments when
#: SQL is there.
_LONGEST_PAUSE: Final = 2.5

_Result = TypeVar("_Result")


class SqlGate:
    """Runs SQL calls, and closes for a growing pause when the database is away.

    Args:
        loop: Its timer ends the pause.
        reopen: Called at the end of each pause; makes the first call through `run` again.
        figures: Counts how often it closes.
    """

    def __init__(self, loop: Loop, reopen: Callable[[], None], figures: Figures | None = None) -> None:
        self._loop = loop
        self._reopen = reopen
        self._figures = figures or Figures()
        self._pause = 0.0
        self.open = True

    def run(self, call: Callable[[], _Result]) -> _Result | None:
        """Make one call.

        Returns:
            What it returned; None when the database is away, and then the gate is closed.
        """
        try:
            result = call()
        except DatabaseUnavailableError as error:
            self._close(error)
            return None
        except Exception as error:
            # A closed gate has one way to open again: its timer. That must not be lost to another kind of error.
            if not self.open:
                self._close(error)
            raise
        if self._pause:
            logger.info("The database is back")
            self._pause = 0.0
        self.open = True
        return result

    def _close(self, error: Exception) -> None:
        self._figures.count("database_errors", "worker")
        if not self._pause:
            logger.warning("The database is away; runs and outcomes wait in memory: %s", error)
        self.open = False
        self._pause = min(_LONGEST_PAUSE, 2 * self._pause or _FIRST_PAUSE)
        self._loop.call_later(self._pause, self._reopen)
