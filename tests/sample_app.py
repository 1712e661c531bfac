"""A small Celery application of its own, for the tests of the nodes themselves; configured by the environment."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

app = Celery("sample", broker=os.environ.get("BATCHING_BROKER_URL"), set_as_current=False)
app.conf.broker_transport_options = {"global_keyprefix": os.environ.get("BATCHING_KEY_PREFIX", "batching:")}
app.conf.broker_connection_retry_on_startup = True
app.conf.task_ignore_result = True


@app.task(name="sample.touch")
def touch(path: str) -> None:
    """Leave a file behind, which says that this ran."""
    Path(path).write_text(str(os.getpid()), encoding="utf-8")
