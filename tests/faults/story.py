"""The story that every fault point is tried on: real managers, a real consumer, real SQL, a real Valkey, one thread.

A child process plays a producer, a leader and a worker in turns, so that it is always known who does what; when it
dies, all three of them die. The acts are written down in a ledger when they are over, and who comes after a victim
plays those that are left. Nothing here is a fake: what is patched are constants, so that a few profiles make several
chunks, and a lease lapses within half a second.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from celery import Celery
from celery.app.trace import setup_worker_optimizations
from celery.concurrency.solo import TaskPool
from sqlalchemy import func, literal, select, update

import batching.moves.loading
import batching.moves.submission
import batching.submission
import workers.gate
import workers.manager
import workers.popper
import workers.publisher
from batching import BatchOptions, faults
from batching.database import Database
from batching.dialects import later
from batching.errors import BrokerUnavailableError, DatabaseUnavailableError, IllegalMoveError
from batching.execution_manager import BatchExecutionManager
from batching.handlers import Handler, Profile
from batching.interfaces import Ending, Lane, Outcome
from batching.models import batches, profiles
from batching.queue_manager import QueueManager
from batching.registry import WorkerRegistry
from batching.settings import Settings
from batching.state_manager import BatchStateManager
from batching.states import TERMINAL_BATCH_STATES, BatchState, StopTarget
from tests.acceptance import journal
from workers.consumer import LaneConsumer
from workers.drain import Drain
from workers.executors import PoolExecutor
from workers.identity import announce
from workers.loops import Loop
from workers.manager import Manager
from workers.offers import Reader
from workers.ports import Ports
from workers.publisher import RedisPublisher, lane_key
from workers.tasks import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HANDLER = "faults.work"
LANE = Lane("default", HANDLER)
#: What producers hand over, by batch key. The large one has a profile that fails for the whole of the first pass.
PROFILES: dict[str, list[str]] = {
    "old": ["o1", "o2", "o3"],
    "small": [f"s{number}" for number in range(1, 6)],
    "large": [f"l{number}" for number in range(1, 14)] + ["fails"],
    "behind": ["b1", "b2"],
    "doomed": [f"d{number}" for number in range(1, 9)],
    "haunted": [f"h{number}" for number in range(1, 7)],
    "forgotten": [f"f{number}" for number in range(1, 7)],
}
#: The states that each batch goes through, whatever happens around it; several ways where a death leaves the choice.
PATHS: dict[str, list[list[str]]] = {
    "large": [["queued", "running", "stopping", "queued", "running", "succeeded"]],
    "doomed": [
        ["queued", "running", "stopping", "cancelled"],
        ["queued", "cancelled"],
        ["queued", "running", "succeeded"],
    ],
}
PLAIN = [["queued", "running", "succeeded"]]
OPTIONS = BatchOptions(max_attempts=2, max_passes=2, retry_backoff=0.01, pass_backoff=0.0)
#: Seconds that one act may take: far beyond what it needs, on a machine that is busy with others.
PATIENCE = 60.0


def shrink() -> None:
    """Make few profiles enough for several chunks, and short leases."""
    workers.publisher.CHUNK = 2  # type: ignore[misc]
    batching.submission.FIRST_PROFILES = 4
    batching.submission.CHUNK_PROFILES = 4
    for module in (batching.moves.loading, batching.moves.submission, batching.submission):
        module.LOADING_LEASE = 0.6  # type: ignore[attr-defined]
    workers.manager.SWEEP_INTERVAL = 0.04
    workers.gate._LONGEST_PAUSE = workers.popper._LONGEST_PAUSE = 0.2  # type: ignore[misc]
    BatchStateManager.rewrite.__defaults__ = (4,)
    BatchStateManager._delete.__defaults__ = (2, *(BatchStateManager._delete.__defaults__ or ())[1:])


@dataclass(frozen=True)
class Scene:
    """What a player gets."""

    folder: str
    url: str
    broker_url: str
    prefix: str
    role: str
    plan: str = ""
    """Fault points to arm, as in `BATCHING_FAULTS`."""
    seed: int | None = None
    """Raise at random at every point, from this seed on."""
    share: float = 0.05
    """How often."""
    resubmits: bool = True
    """Whether what was submitted and not acknowledged is submitted again; else its producer is gone."""
    acknowledge: Literal["pop", "claim"] = "pop"
    """When messages are acknowledged."""
    lingers: bool = False
    """Whether to go on, when the story is over, until the file `curtain` is there."""

    @property
    def place(self) -> Path:
        return Path(self.folder)

    def settings(self) -> Settings:
        return Settings(
            key_prefix=self.prefix,
            heartbeat_interval=0.1,
            worker_lease=0.4,
            leader_lease=0.5,
            suspect_after=0.15,
            acknowledge=self.acknowledge,
            visibility_timeout=0.1,
            sql_timeout=1.0,
            flush_interval=0.01,
            lane_window=4,
            max_losses=4,  # more than this story ever loses one profile, so that none fails for it
        )


class Ledger:
    """What producers know, outside of the system: one line each for what was tried, acknowledged, and is over."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ledger"

    def write(self, what: str, name: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{what} {name}\n")

    def names(self, what: str) -> set[str]:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        return {line.split(" ", 1)[1] for line in lines if line.startswith(f"{what} ")}


def handle(profile: Profile) -> dict[str, Any]:
    journal.write(profile)
    if profile.key == "fails" and profile.pass_number == 1:
        raise ValueError("it fails for the whole of its first pass")
    return {"run": profile.run}


class Hand:
    """A worker: the real consumer, whose pool is this very thread."""

    def __init__(self, scene: Scene, settings: Settings) -> None:
        self.database = Database(scene.url, timeout=settings.sql_timeout)
        self.publisher = RedisPublisher(scene.broker_url, scene.prefix, timeout=2.0)
        app = Celery("faults", broker="memory://", set_as_current=False)
        setup_worker_optimizations(app, "faults@host")
        bind(app, [Handler(HANDLER, handle)])
        pool = TaskPool(1, app=app)
        pool.start()
        controller = SimpleNamespace(
            pool=pool, app=app, hostname="faults@host", concurrency=1, time_limit=None, soft_time_limit=None,
            max_tasks_per_child=None,
        )  # fmt: skip
        controller.consumer = SimpleNamespace(app=app, hostname="faults@host", event_dispatcher=None)
        controller.process_task = lambda bundle: bundle.execute_using_pool(pool)
        self.loop = Loop()
        self.beats = settings.heartbeat_interval
        self.consumer = LaneConsumer(
            Ports(
                self.loop,
                PoolExecutor(controller, "solo", 65_536),
                BatchExecutionManager(BatchStateManager(self.database), max_losses=settings.max_losses),
                WorkerRegistry(self.database),
                self.publisher,
                settings,
                frozenset({HANDLER}),
            )
        )
        self.consumer.start()

    def rest(self) -> None:
        """Finish what is begun, take nothing more: what is in the broker is there for others."""
        consumer = self.consumer
        consumer.draining = True
        consumer.intake.close()
        until = time.monotonic() + PATIENCE
        while (consumer.active or len(consumer.outcomes)) and time.monotonic() < until:
            consumer.pump()
            self.loop.run_once(0.01)
        consumer.draining = False

    def beat(self) -> None:
        """Show a sign of life while resting."""
        if time.monotonic() - self.consumer.life.shown > self.beats:
            self.consumer.life.beat()

    def drain(self) -> None:
        """Leave, as at SIGTERM."""
        ended: list[bool] = []
        self.loop.call_soon(Drain(self.consumer, 1.0, lambda: ended.append(True)).begin)
        until = time.monotonic() + PATIENCE
        while not ended and time.monotonic() < until:
            self.loop.run_once(0.02)


class Ghost:
    """A worker that claims, begins, and is never heard of again."""

    def __init__(self, scene: Scene, hand: Hand) -> None:
        self._database, self._client = hand.database, hand.publisher.client
        self._execution = BatchExecutionManager(BatchStateManager(self._database))
        self._key = lane_key(scene.prefix, LANE)
        info = announce("ghost@host", "solo", 1, [HANDLER], ["*"])
        self.id = info.id
        WorkerRegistry(self._database).register(info)

    def claim(self, count: int) -> list[Any]:
        """Claim so many runs of those that wait in the broker, and begin with them."""
        held: list[Any] = []
        while len(held) < count:
            raw: Any = self._client.rpop(self._key)
            if raw is None:
                break
            offer = Reader({HANDLER}).read(self._key, raw)
            assert offer is not None
            held += self._execution.claim(self.id, [offer.run]).claimed
        for each in held:
            run, number = each.run, each.terms.pass_number
            journal.write(Profile(each.key, None, run.batch_id, each.attempt, run.run, number, run.profile_id))
        return held

    def settle(self, claimed: list[Any]) -> None:
        self._execution.complete(self.id, [(each, Outcome(Ending.SUCCEEDED, result="{}")) for each in claimed])


class Player:
    """Producer, leader and worker in one thread."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.settings = scene.settings()
        self.ledger = Ledger(scene.place)
        # What the play itself wants to know, it asks without passing a fault point.
        self._eye = Database(scene.url).engine
        self.queue = QueueManager(Database(scene.url, timeout=1.0), scene.broker_url, self.settings)
        publisher = RedisPublisher(scene.broker_url, scene.prefix, timeout=2.0)
        self.leader = Manager(self.settings, Database(scene.url, timeout=1.0), publisher)
        self.hand = Hand(scene, self.settings)
        self._pause = 0.0

    def play(self) -> None:
        """All acts that are not over, then the end of everything."""
        acts = (self.old, self.small, self.broken, self.large, self.ghost, self.forgotten, self.prune)
        self.until(lambda: self.hand.consumer.life.registered)
        for act in acts:
            if act.__name__ not in self.ledger.names("over"):
                act()
                self.ledger.write("over", act.__name__)
        # Once more: a producer that was frozen on its way to the database hands over what was pruned meanwhile.
        self.prune()
        self.until(self.is_over)
        (self.scene.place / f"{self.scene.role}.settled").touch()
        if self.scene.lingers:
            self.until((self.scene.place / "curtain").exists)
            self.until(self.is_over)
        faults.disarm()
        self.hand.drain()
        self.leader.stop()
        self.leader.resign()

    # --- the acts

    def old(self) -> None:
        self.submit("old")
        self.finished("old")
        with self._eye.begin() as connection:
            old = (batches.c.key == "old") & batches.c.finished_at.is_not(None)
            connection.execute(update(batches).where(old).values(finished_at=later(literal(-10 * 86_400.0))))

    def small(self) -> None:
        self.submit("small")
        self.finished("small")

    def broken(self) -> None:
        """A source that fails in its second chunk: nothing of its batch may be left."""

        def source() -> Iterator[str]:
            yield from (f"x{number}" for number in range(6))
            raise LookupError("the source is broken")

        try:
            self.queue.submit(HANDLER, source(), key="broken", options=OPTIONS)
        except (LookupError, DatabaseUnavailableError, IllegalMoveError):
            return
        raise AssertionError("a broken source was accepted")

    def large(self) -> None:
        """In chunks, with a failure: after its first pass it stands behind what came after it."""
        self.submit("large")
        self.submit("behind")
        self.finished("large")
        self.finished("behind")

    def ghost(self) -> None:
        """A worker that dies with runs of two batches, one of which was cancelled meanwhile."""
        self.submit("doomed")
        ghost = self.sql(lambda: Ghost(self.scene, self.hand))
        self.sent("doomed")
        held = self.sql(lambda: ghost.claim(2))
        self.cancel("doomed")
        self.sql(lambda: ghost.settle(held[:1]))
        self.submit("haunted")
        self.sent("haunted")
        self.sql(lambda: ghost.claim(2))
        self.finished("doomed")
        self.finished("haunted")

    def forgotten(self) -> None:
        """What waits in the broker is lost."""
        self.submit("forgotten")
        self.sent("forgotten")
        self.hand.publisher.client.delete(lane_key(self.scene.prefix, LANE))
        self.finished("forgotten")

    def prune(self) -> None:
        """What finished long ago is deleted."""
        while self.state("old") is not None:
            self.sql(lambda: self.queue.state_manager.prune(5.0, step=2))

    # --- what acts are made of

    def submit(self, name: str) -> None:
        """As a producer does: an error leaves open whether it is there, and with the key it may be repeated."""
        if name in self.ledger.names("acknowledged"):
            return
        if name in self.ledger.names("attempted") and not self.scene.resubmits:
            return
        self.ledger.write("attempted", name)
        self.sql(lambda: self.queue.submit(HANDLER, PROFILES[name], key=name, options=OPTIONS))
        self.ledger.write("acknowledged", name)

    def cancel(self, name: str) -> None:
        batch_id = self.batch_id(name)
        if batch_id is not None and not self.done(name):
            self.sql(lambda: self.queue.state_manager.stop(batch_id, StopTarget.CANCELLED, "cancelled by the story"))

    def sql(self, call: Callable[[], Any]) -> Any:
        """Do what people and programs do after an error: try again."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except (DatabaseUnavailableError, BrokerUnavailableError):
                if time.monotonic() > until:
                    raise
            except IllegalMoveError as error:
                # The first try of a stop went through; or another producer was quicker, and ours was taken for dead.
                if "finished batches stay" in str(error):
                    return []
                if "submit it again" not in str(error):
                    raise
            self.turn()

    def until(self, condition: Callable[[], object], *, work: bool = True) -> None:
        if not work:
            self.hand.rest()
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"the story does not go on: {self.report()}")
            self.turn(work=work)

    def turn(self, *, work: bool = True) -> None:
        """One turn of the leader, and of the worker's loop unless it has its hands full."""
        self._pause = self.leader.turn(self._pause)
        if work:
            self.hand.loop.run_once(0.02)
        else:
            self.hand.beat()
            time.sleep(0.01)

    def sent(self, name: str) -> None:
        """Until some of it is in the broker, and nobody takes it."""
        self.until(lambda: self.done(name) or self.dispatched(name), work=False)

    def finished(self, name: str) -> None:
        """Unless it was never submitted, because its producer died."""
        self.until(lambda: self.done(name) or (self.state(name) is None and not self.loading()))

    # --- what the play wants to know

    def state(self, name: str) -> str | None:
        with self._eye.connect() as connection:
            return connection.scalar(select(batches.c.state).where(batches.c.key == name))

    def batch_id(self, name: str) -> str | None:
        with self._eye.connect() as connection:
            return connection.scalar(select(batches.c.id).where(batches.c.key == name))

    def done(self, name: str) -> bool:
        return self.state(name) in TERMINAL_BATCH_STATES

    def dispatched(self, name: str) -> bool:
        """Whether some of a batch is dispatched, and in the broker; true of a batch that is not there."""
        batch_id = self.batch_id(name)
        return batch_id is None or (self.waiting() > 0 and self.count(batch_id, "dispatched") > 0)

    def waiting(self) -> int:
        """Messages in the broker."""
        found: Any = self.hand.publisher.client.llen(lane_key(self.scene.prefix, LANE))
        return int(found)

    def count(self, batch_id: str, state: str) -> int:
        chosen = (profiles.c.batch_id == batch_id) & (profiles.c.state == state)
        with self._eye.connect() as connection:
            return connection.scalars(select(func.count()).where(chosen)).one()

    def loading(self) -> bool:
        with self._eye.connect() as connection:
            return bool(connection.scalar(select(func.count()).where(batches.c.state == BatchState.LOADING)))

    def is_over(self) -> bool:
        """Whether nothing moves any more: all have ended, and are written; what was abandoned is deleted."""
        ended = batches.c.state.in_(TERMINAL_BATCH_STATES) & (batches.c.rewritten == batches.c.generation)
        with self._eye.connect() as connection:
            return not connection.scalar(select(func.count()).where(~ended)) and not self.waiting()

    def report(self) -> str:
        with self._eye.connect() as connection:
            rows = connection.execute(select(batches.c.key, batches.c.state, batches.c.rewritten, batches.c.generation))
            return str([tuple(row) for row in rows])


def perform(scene: Scene) -> None:
    """Play, in a process of its own."""
    os.environ[journal.FOLDER] = scene.folder
    os.environ["BATCHING_FAULT_LOG"] = str(scene.place / f"{scene.role}.faults")
    player = Player(scene)
    faults.arm_all(scene.plan)
    if scene.seed is not None:
        chance = random.Random(scene.seed)

        def perhaps(point: str) -> None:
            if chance.random() < scene.share:
                Path(os.environ["BATCHING_FAULT_LOG"]).touch()
                raise faults.error_at(point)

        faults.arm(faults.EVERY, perhaps, at=None)
    player.play()
    (scene.place / f"{scene.role}.ended").touch()
