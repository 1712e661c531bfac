"""What every verb works with: the settings with the global options over them, and what they lead to."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from batching import traces
from batching.database import Database
from batching.errors import ConfigurationError
from batching.statistics import Statistics

if TYPE_CHECKING:
    from batching.queue_manager import QueueManager
    from batching.settings import Settings


class Access:
    """Opens the store on first use, and only for the verbs that need it.

    Args:
        settings: Of this process, with `--database` and `--broker` over them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def database_url(self) -> str:
        """The configured store, or the embedded default when there is one.

        Raises:
            ConfigurationError: There is neither.
        """
        if self.settings.database_url is not None:
            return self.settings.database_url
        embedded = self.settings.home.absolute() / "batching.db"
        if not embedded.is_file():
            raise ConfigurationError(
                f"cannot tell which database to use: none is configured, and there is no embedded one at {embedded}; "
                "set BATCHING_DATABASE_URL or give --database URL (postgresql+psycopg://user@host/name or "
                "sqlite:////absolute/path.db), or name the embedded default's folder with BATCHING_HOME"
            )
        return f"sqlite:///{embedded}"

    @cached_property
    def unchecked(self) -> Database:
        """The store as it is, whatever its schema."""
        return Database(self.database_url)

    @cached_property
    def database(self) -> Database:
        """The store, once its schema is known to be the one that this version needs.

        Raises:
            SchemaVersionError: It is not; the message says what to do.
            DatabaseUnavailableError: It does not answer.
        """
        from batching import migration  # noqa: PLC0415 - alembic takes longer to import than most verbs to run

        migration.check(self.unchecked)
        return self.unchecked

    @cached_property
    def statistics(self) -> Statistics:
        """The reads."""
        return Statistics(self.database, self.settings)

    @cached_property
    def manager(self) -> QueueManager:
        """The verbs."""
        from batching.queue_manager import QueueManager  # noqa: PLC0415 - reading verbs do not need it

        traces.boot()
        return QueueManager(self.database, self.settings.broker_url, self.settings)

    def close(self) -> None:
        """Close what was opened."""
        if "unchecked" in self.__dict__:
            self.unchecked.close()
