"""What a good engineer writes by hand: Celery at its defaults, SQLAlchemy Core, one commit per task.

The row's outcome and the batch's counter are written in one transaction, after the work. It is a baseline: it is not to
be made faster, nor slower, for this project's sake.
"""

from __future__ import annotations

import os

from celery import Celery
from sqlalchemy import create_engine, text

from benchmarks import journal

app = Celery("handwritten_app", broker=os.environ["BENCH_KOMBU"])
app.conf.broker_connection_retry_on_startup = True  # without it, 5.7 logs a warning at each start
app.conf.task_ignore_result = True

# Connects at first use, which is after the fork.
engine = create_engine(os.environ["BENCH_POSTGRES"].replace("postgresql://", "postgresql+psycopg://", 1))

_SETTLE = text("UPDATE jobs SET state = 'done', finished_at = now() WHERE id = :id AND state = 'pending'")
_COUNT = text("UPDATE job_batches SET done = done + 1 WHERE id = :batch")


@app.task(name="bench.noop")
def noop(batch: int, job: int, payload: str) -> None:
    """Append a byte, record the outcome."""
    journal.noop()
    with engine.begin() as connection:
        connection.execute(_SETTLE, {"id": job})
        connection.execute(_COUNT, {"batch": batch})
