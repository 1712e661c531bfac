"""Where stories are played: a fresh store and key prefix for each, a victim, who comes after it, and the judgement."""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import select
from sqlalchemy.engine import make_url

from batching.database import Database
from batching.models import batches, history, profiles
from tests.acceptance import journal
from tests.faults.oracle import Oracle
from tests.faults.story import PATHS, PLAIN, PROFILES, Ledger, Scene
from tests.support import eventually
from workers.publisher import RedisPublisher

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from pathlib import Path

    from tests.faults.oracle import Verdict
    from tests.faults.troupe import Player, Troupe
    from tests.servers import PostgresServer, ValkeyServer

#: Stories that are played at once: most of a story is waiting for leases.
AT_ONCE = 4
#: Of a point that is reached often, only so many times are tried, spread over the story.
MOST = 24
#: Reached on one engine alone: SQLite has no commit that does not wait for the disk.
ONLY_ON = {"submit.announced": "postgresql"}
#: Seconds that whoever comes after a frozen victim gets, before that goes on, while it holds SQLite's one write lock.
_LOCKED_OUT = 1.0


class Case(NamedTuple):
    """One story with one fault; or with errors at random, from a seed."""

    engine: str
    point: str = ""
    action: str = ""
    at: int = 1
    seed: int | None = None
    acknowledge: Literal["pop", "claim"] = "pop"

    def __str__(self) -> str:
        what = f"{self.point}={self.action}@{self.at}" if self.point else "no fault"
        told = what if self.seed is None else f"errors at random, seed {self.seed}"
        return f"{self.engine}, acknowledged at the {self.acknowledge}: {told}"


class Played(NamedTuple):
    """How a case went."""

    case: Case
    reached: bool
    """Whether the story came to the point that was armed."""
    verdict: Verdict | None
    failure: str
    """What was wrong; empty when nothing was."""


@dataclass
class Theatre:
    """Plays cases."""

    troupe: Troupe
    folder: Path
    postgres: PostgresServer
    postgres_template: str
    sqlite_template: Path
    valkey: ValkeyServer
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """How often a story without a fault reaches each point, by engine."""

    def occurrences(self, engine: str, point: str) -> int:
        """How often a story without a fault reaches a point."""
        if engine not in self.counts:
            place = self._place()
            scene, _ = self._scene(place, engine, plan="*=note")
            assert self.troupe.start(scene).wait() == "played"
            lines = (place / "victim.faults").read_text(encoding="utf-8").splitlines()
            self.counts[engine] = Counter(line.split()[0] for line in lines)
        return self.counts[engine][point]

    def choose(
        self, engine: str, point: str, action: str, acknowledge: Literal["pop", "claim"], chance: random.Random | None
    ) -> list[Case]:
        """At which times of being reached a point is tried: one by chance, or all of them."""
        count = self.occurrences(engine, point)
        if chance is not None:
            # Not the very last: how often it is reached depends on how quick the machine is. See `play_until_reached`.
            times = [1 + chance.randrange(max(1, count * 2 // 3))]
        else:
            times = list(range(1, max(1, count) + 1, max(1, -(-count // MOST))))
        return [Case(engine, point, action, at, acknowledge=acknowledge) for at in times]

    def play_all(self, cases: Iterable[Case]) -> list[Played]:
        """Play several at once."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.play_until_reached, cases))

    def play_until_reached(self, case: Case) -> Played:
        """As `play`; where the story has not come to the point so often this time, again with half of it, and so on.

        How often depends on the machine's pace: a rehearsal beside busy neighbours has more suspects, for example.
        """
        played = self.play(case)
        while case.point and not played.reached and not played.failure and case.at > 1:
            case = case._replace(at=case.at // 2)
            played = self.play(case)
        return played

    def play(self, case: Case) -> Played:
        """Play one, and judge; never raises."""
        place = self._place()
        plan = f"{case.point}={case.action}@{case.at}" if case.point else ""
        scene, url = self._scene(place, case.engine, plan=plan, seed=case.seed, acknowledge=case.acknowledge)
        players: list[Player] = []
        reached, verdict, failure = False, None, ""
        try:
            reached = self._perform(case, scene, players)
            verdict = judge(scene)
        except Exception as error:  # noqa: BLE001 - told by whoever asked for the case
            said = "\n".join(f"--- {each.scene.role}: {each.status}\n{each.log[-4000:]}" for each in players)
            failure = f"{case}\n{type(error).__name__}: {error}\n{said}"
        for player in players:
            player.kill()
        self._strike(url, scene)
        return Played(case, reached, verdict, failure)

    def _perform(self, case: Case, scene: Scene, players: list[Player]) -> bool:
        victim = self.troupe.start(scene)
        players.append(victim)
        ended = victim.wait()
        if ended == "dead" and case.action == "crash" and victim.reached:
            # Its producer is gone with it: what it had not been told about is not submitted again.
            successor = self.troupe.start(_following(scene, resubmits=False))
            players.append(successor)
            assert successor.wait() == "played"
        elif ended == "frozen":
            successor = self.troupe.start(_following(scene, resubmits=True, lingers=True))
            players.append(successor)
            self._let_it_settle(case, successor)
            victim.thaw()
            assert victim.wait() == "played"
            (scene.place / "curtain").touch()
            assert successor.wait() == "played"
        else:
            assert ended == "played"
        return victim.reached

    @staticmethod
    def _let_it_settle(case: Case, successor: Player) -> None:
        def settled() -> bool:
            assert successor.status != "dead", "who came after it died"
            return successor.settled

        if case.engine == "sqlite" and case.point == "commit.before":
            # The frozen one holds the one write lock, so nobody can do anything.
            eventually(lambda: successor.age >= _LOCKED_OUT)
        else:
            eventually(settled, 60, 0.02)

    def _place(self) -> Path:
        place = self.folder / uuid.uuid4().hex[:12]
        place.mkdir()
        return place

    def _scene(self, place: Path, engine: str, **terms: Any) -> tuple[Scene, str]:
        if engine == "sqlite":
            shutil.copyfile(self.sqlite_template, place / "batching.db")
            url = f"sqlite:///{place / 'batching.db'}"
        else:
            url = self.postgres.url(self.postgres.create_database(self.postgres_template))
        prefix = f"{place.name}:"
        return Scene(str(place), url, self.valkey.url, prefix, "victim", **terms), url

    def _strike(self, url: str, scene: Scene) -> None:
        """Clear the stage."""
        if url.startswith("postgresql"):
            self.postgres.drop_database(str(make_url(url).database))
        with self.valkey.client() as client:
            for key in list(client.scan_iter(f"{scene.prefix}*")):
                client.delete(key)
        shutil.rmtree(scene.place, ignore_errors=True)


def _following(scene: Scene, *, resubmits: bool, lingers: bool = False) -> Scene:
    return replace(scene, role="successor", plan="", seed=None, resubmits=resubmits, lingers=lingers)


def judge(scene: Scene) -> Verdict:
    """The oracle's judgement, and the way that each batch went."""
    database = Database(scene.url)
    publisher = RedisPublisher(scene.broker_url, scene.prefix)
    try:
        ledger = Ledger(scene.place)
        oracle = Oracle(database, publisher, pruned={"old"})
        for name in ledger.names("attempted"):
            oracle.attempt(name, PROFILES[name])
        for name in ledger.names("acknowledged"):
            oracle.acknowledge(name)
        verdict = oracle.judge(journal.read(scene.place))
        _assert_ways(database)
        return verdict
    finally:
        publisher.close()
        database.close()


def _assert_ways(database: Database) -> None:
    """Each batch went its way once, and all of its profiles with it, whatever happened around them."""
    with database.read() as reading:
        lines = reading.execute(
            select(batches.c.key, history.c.to_state)
            .join(batches, batches.c.id == history.c.batch_id)
            .order_by(batches.c.key, history.c.id)
        ).all()
        states = reading.execute(
            select(batches.c.key, profiles.c.state).join(batches, batches.c.id == profiles.c.batch_id)
        ).all()
    for name, told in groupby(lines, key=lambda line: line.key):
        way = [line.to_state for line in told]
        assert way in PATHS.get(name, PLAIN), f"{name} went {way}"
    odd = [(name, state) for name, state in states if state != "succeeded" and (name, state) != ("doomed", "cancelled")]
    assert not odd, odd


def tell(played: Played) -> str:
    """One line for the log of a test."""
    return f"{played.case}: {played.verdict if played.reached else 'not reached'}"
