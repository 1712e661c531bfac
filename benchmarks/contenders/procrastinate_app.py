"""procrastinate's tasks, asynchronous ones."""

from __future__ import annotations

import os

from procrastinate import App, PsycopgConnector

from benchmarks.contenders.peer_handlers import ASYNCHRONOUS

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_POSTGRES"]))
tasks = {name: app.task(name=name)(handler) for name, handler in ASYNCHRONOUS.items()}
