"""Plain Celery: its defaults, no result backend but for the chord, which cannot do without."""

from __future__ import annotations

import os

from celery import Celery

from benchmarks import journal

_chord = bool(os.environ.get("BENCH_CHORD"))

app = Celery("celery_app", broker=os.environ["BENCH_KOMBU"], backend=os.environ["BENCH_KOMBU"] if _chord else None)
app.conf.broker_connection_retry_on_startup = True  # without it, 5.7 logs a warning at each start
app.conf.task_ignore_result = not _chord


@app.task(name="bench.noop")
def noop(payload: str) -> None:
    """Append a byte."""
    journal.noop()


@app.task(name="bench.sleep50")
def sleep50(payload: str) -> None:
    """Sleep for 50 ms, append a byte."""
    journal.sleep50()


@app.task(name="bench.stamp")
def stamp(payload: str) -> None:
    """Append the time."""
    journal.stamp()


@app.task(name="bench.done")
def done(results: list[None]) -> None:
    """What a chord calls at its end."""
