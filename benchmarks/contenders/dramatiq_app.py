"""dramatiq's actors: its default middleware, no results."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.contenders.peer_handlers import SYNCHRONOUS

broker = RedisBroker(url=os.environ["BENCH_REDIS"])
dramatiq.set_broker(broker)
actors = {name: dramatiq.actor(handler, actor_name=name) for name, handler in SYNCHRONOUS.items()}
