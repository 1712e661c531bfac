"""COPY: what PostgreSQL takes at most, of the same rows into the same table with the same indexes and checks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.contender import SUBMIT, Contender, Handler, Payloads, Place, Shape

if TYPE_CHECKING:
    from collections.abc import Sequence


class Copying(Contender):
    """No task system: the limit that submission is compared with."""

    name = "copying"
    requirements = None
    shapes = (
        Shape(
            "COPY",
            processes=0,
            workloads=frozenset({SUBMIT}),
            brokered="postgresql",
            note="psycopg's COPY of rows encoded before the clock starts, and one commit; no batch, no checks",
        ),
    )

    def __init__(self) -> None:
        self._encoded = b""
        self._connection: Any = None

    warms = False  # `ready` connects

    def prepare(self, shape: Shape, place: Place) -> None:
        """The project's own schema, and a batch for the rows to belong to."""
        from batching import migration
        from batching.database import Database
        from batching.queue_manager import QueueManager

        database = Database(place.sqlalchemy_url)
        migration.upgrade(database)
        batch = QueueManager(database).submit("bench.noop", [("first", "")])
        (place.folder / "batch").write_text(batch.id, encoding="utf-8")
        database.close()

    def ready(self, shape: Shape, place: Place, payloads: Payloads) -> None:
        """Encode the rows, connect."""
        import psycopg

        batch = (place.folder / "batch").read_text(encoding="utf-8")
        lines = (
            f"{batch}\t{number}\t{payload[:8]}\t{json.dumps(payload)}\n" for number, payload in enumerate(payloads, 2)
        )
        self._encoded = "".join(lines).encode()
        self._connection = psycopg.connect(place.postgres_url)

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """COPY and commit."""
        with self._connection.cursor() as cursor:
            with cursor.copy("COPY profiles (batch_id, number, key, payload) FROM STDIN") as copy:
                copy.write(self._encoded)
            self._connection.commit()

    def enqueued(self, shape: Shape, place: Place) -> int:
        """The rows, without the first."""
        return int(self._connection.execute("SELECT count(*) - 1 FROM profiles").fetchone()[0])

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """None."""
        return []

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()


CONTENDER = Copying()
