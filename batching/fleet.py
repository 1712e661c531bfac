"""Workers as people steer them: `queue_manager.workers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batching.errors import UnknownWorkerError
from batching.moves import leadership
from batching.statistics.fleet import named, newest

if TYPE_CHECKING:
    from batching.database import Database
    from batching.statistics import Statistics, WorkerView


class Workers:
    """The workers that are registered. What is asked of one reaches it with its next heartbeat, through SQL alone.

    Args:
        database: Where they are registered.
        statistics: The reads.
    """

    def __init__(self, database: Database, statistics: Statistics) -> None:
        self._database = database
        self._statistics = statistics

    def find(self, name: str) -> list[WorkerView]:
        """The workers that a name means.

        Args:
            name: The beginning of an id (eight digits), a Celery name (`celery@host`), or a host.

        Raises:
            UnknownWorkerError: There is none.
        """
        found = newest(named(self.list(), name))
        if not found:
            raise UnknownWorkerError(
                f"there is no worker {name}; `batching workers` shows those there are, and one is named by the first "
                "eight digits of its id, by its Celery name, or by its host"
            )
        return found

    def drain(self, name: str) -> list[WorkerView]:
        """Let workers take nothing new: they give back what has not begun, finish the rest, and stay up.

        Args:
            name: See `find`.

        Returns:
            The workers that were asked, as they were.
        """
        return self._ask(name, drain=True)

    def resume(self, name: str) -> list[WorkerView]:
        """Let workers that drain take work again; see `drain`."""
        return self._ask(name, drain=False)

    def _ask(self, name: str, *, drain: bool) -> list[WorkerView]:
        found = self.find(name)
        with self._database.begin() as writing:
            leadership.ask_to_drain(writing, [each.id for each in found], drain=drain)
        return found

    def list(self) -> list[WorkerView]:
        """Every worker there is, those that were heard last first."""
        return self._statistics.workers()
