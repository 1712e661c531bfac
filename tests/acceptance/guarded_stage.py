"""A stage as SECURITY.md wants an installation: Redis users and SQL roles of their own, the hardened profile."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from batching.database import Database
from batching.queue_manager import QueueManager
from tests.acceptance.stage import Stage
from tests.nodes import worker_process
from tests.sql_roles import url_of
from workers.publisher import RedisPublisher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guarded import GuardedValkey

#: The SQL role and the Redis user of each part.
PARTS = {
    "worker": ("batching_worker", "worker"),
    "manager": ("batching_worker", "manager"),
    "producer": ("batching_producer", "producer"),
    "viewer": ("batching_reader", "viewer"),
    "operator": ("batching_worker", "operator"),
    "flower": ("batching_reader", "flower"),
}


class GuardedStage(Stage):
    """Every process has the rights of its part, and no more.

    Args:
        folder: Of logs and the journal.
        url: The store, for the superuser: the oracle looks with everybody's rights.
        valkey: Guarded already.
        prefix: Of every key.
        hardened: The hardened profile, over the unix socket; else the users with Flower, over TCP.
    """

    def __init__(self, folder: Path, url: str, valkey: GuardedValkey, prefix: str, *, hardened: bool) -> None:
        super().__init__(folder, url, valkey, prefix)
        self.guarded = valkey
        self.hardened = hardened
        self._part = "worker"

    @cached_property
    def publisher(self) -> RedisPublisher:
        """The oracle's own."""
        return RedisPublisher(self.guarded.admin_url, self.prefix)

    @contextmanager
    def acting_as(self, part: str) -> Iterator[None]:
        """Start processes with the rights of another part than the worker's."""
        self._part, before = part, self._part
        try:
            yield
        finally:
            self._part = before

    def environment(self, **more: str) -> dict[str, str]:
        """What every process on this stage gets, with the URLs of the present part."""
        role, user = PARTS[self._part]
        return {
            **super().environment(),
            "BATCHING_DATABASE_URL": url_of(role, self.url),
            "BATCHING_BROKER_URL": self.guarded.url_of(user, socket=self.hardened),
            "BATCHING_HARDENED": "1" if self.hardened else "0",
            # A worker's manager would need the rights of both.
            "BATCHING_MANAGER": "0",
            **more,
        }

    @cached_property
    def producer(self) -> QueueManager:
        """What producer code has."""
        role, user = PARTS["producer"]
        return QueueManager(Database(url_of(role, self.url)), self.guarded.url_of(user))

    def close(self) -> None:
        """As every stage's."""
        super().close()
        self.producer.close()
        self.producer.database.close()

    def verb(self, part: str, *words: str, module: str = "batching.cli.main") -> subprocess.CompletedProcess[str]:
        """Call a verb with the rights of a part."""
        with self.acting_as(part):
            environment = worker_process(self.folder, self.environment()).environment
        return subprocess.run(
            [sys.executable, "-m", module, *words], env=environment, capture_output=True, text=True, check=False
        )
