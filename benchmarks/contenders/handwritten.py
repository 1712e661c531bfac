"""Hand-written Celery + SQLAlchemy, the baseline of all that is durable; its workers run `handwritten_app.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.contender import DURABLE, NOOP, SUBMIT, Contender, Handler, Payloads, Place, Shape
from benchmarks.contenders.celery import worker

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCHEMA = """
CREATE TABLE job_batches (id serial PRIMARY KEY, total integer NOT NULL, done integer NOT NULL DEFAULT 0);
CREATE TABLE jobs (
    id serial PRIMARY KEY,
    batch_id integer NOT NULL REFERENCES job_batches,
    payload text NOT NULL,
    state text NOT NULL DEFAULT 'pending',
    finished_at timestamptz
);
CREATE INDEX jobs_batch_id_state_idx ON jobs (batch_id, state);
"""
_INSERT = """
INSERT INTO jobs (batch_id, payload) SELECT :batch, unnest(CAST(:payloads AS text[])) RETURNING id, payload
"""


class Handwritten(Contender):
    """Rows first, then one `delay` per row."""

    name = "handwritten"
    requirements = "celery"
    shapes = (
        Shape(
            "prefork -c 2",
            processes=2,
            slots=2,
            workloads=frozenset({NOOP, DURABLE, SUBMIT}),
            durable=True,
            items=5_000,
            note="Celery + SQLAlchemy Core, UPDATE of the row and of the batch's counter, one commit per task",
        ),
    )

    def prepare(self, shape: Shape, place: Place) -> None:
        """Two tables."""
        import psycopg

        with psycopg.connect(place.postgres_url) as connection:
            connection.execute(_SCHEMA)

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """Insert the rows in bulk, commit, publish one message each."""
        from sqlalchemy import text

        from benchmarks.contenders import handwritten_app

        with handwritten_app.engine.begin() as connection:
            batch = connection.scalar(
                text("INSERT INTO job_batches (total) VALUES (:total) RETURNING id"), {"total": len(payloads)}
            )
            rows = connection.execute(
                text(_INSERT),
                {"batch": batch, "payloads": list(payloads)},
            ).all()
        for job, payload in rows:
            handwritten_app.noop.delay(batch, job, payload)

    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """The default pool, with two children."""
        return [worker("benchmarks.contenders.handwritten_app", "prefork", 2)]

    def progress_sql(self, shape: Shape) -> str:
        """Its counter."""
        return "SELECT coalesce(sum(done), 0) FROM job_batches"

    def exact_sql(self, shape: Shape) -> str:
        """Its rows."""
        return "SELECT count(*) FROM jobs WHERE state = 'done'"


CONTENDER = Handwritten()
