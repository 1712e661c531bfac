"""taskiq's two Redis brokers; no result backend."""

from __future__ import annotations

import os

from taskiq_redis import ListQueueBroker, RedisStreamBroker

from benchmarks.contenders.peer_handlers import ASYNCHRONOUS

kind = os.environ["BENCH_BROKER"]
broker = {"list": ListQueueBroker, "stream": RedisStreamBroker}[kind](os.environ["BENCH_REDIS"])
tasks = {name: broker.task(task_name=name)(handler) for name, handler in ASYNCHRONOUS.items()}
