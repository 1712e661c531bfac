"""A Celery application of your own, with tasks of its own; `install` lets its workers serve the queue beside them."""

import os

from celery import Celery

from workers.wiring import install

app = Celery("shop", broker=os.environ["BATCHING_BROKER_URL"])
app.conf.update(
    task_default_queue="shop",
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    # Without them, a frozen Redis would hold the worker's main process, and its lease would lapse.
    broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 3},
)


@app.task(name="shop.greet")
def greet(name: str) -> None:
    """An ordinary task: the queue does not touch it."""
    print(f"hello {name}")  # noqa: T201 - it shows in the worker's log


install(app, handlers=["prices"])
