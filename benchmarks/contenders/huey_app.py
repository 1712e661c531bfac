"""huey's tasks; results are off."""

from __future__ import annotations

import os

from huey import RedisHuey

from benchmarks.contenders.peer_handlers import SYNCHRONOUS

huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"], results=False)
tasks = {name: huey.task(name=name)(handler) for name, handler in SYNCHRONOUS.items()}
