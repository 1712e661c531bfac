"""A Celery application of somebody else: own settings, own queue, own tasks, and lanes installed beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import serialization

from workers.wiring import install

# A serializer that only this application knows.
serialization.register("host", json.dumps, json.loads, "application/x-host", "utf-8")

_BROKER = os.environ.get("HOST_BROKER_URL", "redis://localhost:6379/0")

app = Celery("host", broker=_BROKER, backend=os.environ.get("HOST_BACKEND_URL"), set_as_current=False)
app.conf.update(
    task_acks_late=True,
    task_serializer="host",
    result_serializer="json",
    accept_content=["host", "json"],
    task_default_queue="host",
    worker_prefetch_multiplier=3,
    broker_connection_retry_on_startup=True,
    task_routes={"host.told": {"queue": "host-callbacks"}},
    broker_transport_options={"global_keyprefix": "host:", "visibility_timeout": 600},
)


@app.task(name="host.double", bind=True)
def double(self: Any, number: int) -> int:
    """A task of the application's own."""
    assert self.acks_late
    return 2 * number


@app.task(name="host.told", bind=True)
def told(self: Any, event: dict[str, Any]) -> None:
    """A callback that this application asked for; by which queue and id it came, and what it says."""
    line = json.dumps({"queue": self.request.delivery_info["routing_key"], "task_id": self.request.id, "event": event})
    with (Path(os.environ["ACCEPTANCE_FOLDER"]) / "told").open("a") as file:
        file.write(line + "\n")


before = dict(app.conf.items())
install(app, handlers=["tests.worker_handlers"])
install(app, handlers=["tests.worker_handlers"])
