"""What a lanes' consumer works with: its border to the pool, to SQL and to the broker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from batching.figures import Figures
from batching.registry import NOTHING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from batching.interfaces import Claimed, IBatchExecutionManager, RunId, WorkerInfo
    from batching.registry import Asked, Heard
    from batching.settings import Settings
    from workers.bundles import Bundle
    from workers.consumer import LaneConsumer
    from workers.loops import Loop
    from workers.publisher import RedisPublisher
    from workers.requests import RunRequest


class Registry(Protocol):
    """The worker's own row in SQL; `batching.registry.WorkerRegistry`."""

    def rehearse(self, worker_id: str) -> None: ...
    def register(self, info: WorkerInfo, *, drain: bool = False) -> None: ...
    def beat(
        self,
        worker_id: str,
        *,
        draining: bool = False,
        stuck: str | None = None,
        counted: Figures | None = None,
        gauges: dict[str, Any] | None = None,
        asked: Asked = NOTHING,
    ) -> Heard | None: ...
    def touch(self, worker_id: str) -> None: ...
    def ask_to_drain(self, worker_id: str, *, drain: bool) -> None: ...
    def give_back(self, worker_id: str, runs: Sequence[RunId]) -> int: ...
    def interrupted(self, batch_ids: Collection[str]) -> set[str]: ...
    def leave(self, worker_id: str, counted: Figures | None = None) -> None: ...


class Executor(Protocol):
    """The worker's pool, seen from the consumer."""

    pool: str
    hostname: str

    def slots(self) -> int:
        """Runs that can go on at once, now."""

    def handover(self, handed: int) -> int:
        """Bundles that the pool may have at once, when it has so many: its slots, and what may wait at its door."""

    def one_by_one(self, handler: str) -> bool:
        """Whether runs of a handler must go to the pool one by one."""

    def prepare(self, claimed: Claimed, holder: str, consumer: LaneConsumer) -> RunRequest:
        """Make the request of a claimed run."""

    def execute(self, bundle: Bundle) -> None:
        """Hand runs to the pool; they will call `runs_ended` and `bundle_ended`."""

    def flush(self) -> None:
        """Let what was handed over reach the pool at once."""

    def withdraw(self, bundle: Bundle) -> bool:
        """Take a bundle that has not begun out of the pool; False when it may begin all the same."""

    def interrupt(self, request: RunRequest, *, force: bool) -> None:
        """End one run by a person's wish, where the pool can."""

    def terminate(self, requests: Sequence[RunRequest], *, force: bool) -> bool:
        """Interrupt what runs; False when this pool cannot."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What a consumer works with."""

    loop: Loop
    executor: Executor
    manager: IBatchExecutionManager
    registry: Registry
    publisher: RedisPublisher
    settings: Settings
    handlers: frozenset[str]
    figures: Figures = field(default_factory=Figures)
