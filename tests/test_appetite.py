"""How many runs a worker claims, what it gives back of a batch that stops, and what is asked before anything starts."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from batching.errors import BrokerUnavailableError, ConfigurationError
from batching.interfaces import RunId
from batching.settings import Settings
from batching.states import BatchState, StopTarget
from tests.support import eventually
from tests.test_consumer import Bench
from workers.appetite import Appetite
from workers.local import LocalServices, WorkerPlan
from workers.offers import Offer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batching.database import Database

SLOTS = 4


@pytest.fixture
def appetite() -> Appetite:
    appetite = Appetite(lambda: SLOTS, Settings(flush_interval=0.05, flush_size=500))
    appetite.begun("quick", 100)
    appetite.ended("quick", 0.001)
    appetite.begun("slow", 100)
    appetite.ended("slow", 1.0)
    return appetite


def offers(handler: str, count: int) -> list[Offer]:
    return [Offer(RunId("b", number, 1), handler, False, "lane", b"") for number in range(count)]


def test_the_room_follows_what_each_handler_takes(appetite: Appetite) -> None:
    assert appetite.room("quick") == 2 * SLOTS + 400  # two flushes of 0.05 s, four slots, a millisecond each
    assert appetite.room("slow") == appetite.room("never seen") == 2 * SLOTS


def test_large_payloads_leave_room_for_few(appetite: Appetite) -> None:
    for _ in range(200):
        appetite.begun("quick", 1_000_000)
        appetite.ended("quick", None)
    assert appetite.room("quick") == 2 * SLOTS + 16
    assert appetite.room("slow") == 2 * SLOTS


def test_bundles_are_planned_by_the_longest_runs(appetite: Appetite) -> None:
    assert (appetite.bundle("quick"), appetite.bundle("slow"), appetite.bundle("never seen")) == (10, 1, 1)
    appetite.ended("quick", 0.5)
    assert appetite.bundle("quick") == 1
    for _ in range(200):
        appetite.ended("quick", 0.001)
    assert appetite.bundle("quick") == 9  # a single slow one is forgotten in time
    assert appetite.bundle("slow") == 1


def test_a_slow_handler_at_work_limits_what_is_popped(appetite: Appetite) -> None:
    assert appetite.target() == appetite.room("quick")
    appetite.begun("slow", 100)
    assert appetite.target() == appetite.room("slow")
    appetite.ended("slow", None)
    assert appetite.target() == appetite.room("quick")


def test_only_as_many_are_claimed_of_each_handler_as_there_is_room_for(appetite: Appetite) -> None:
    appetite.begun("slow", 100)
    chosen = appetite.affordable([*offers("slow", 100), *offers("quick", 100)])
    assert [offer.handler for offer in chosen] == ["slow"] * (2 * SLOTS - 1) + ["quick"] * 100


@pytest.fixture
def bench(database: Database, broker_url: str, key_prefix: str) -> Iterator[Bench]:
    bench = Bench(database, broker_url, key_prefix)
    bench.start()
    yield bench
    bench.close()


def test_what_has_not_begun_of_a_batch_that_stops_goes_back(bench: Bench) -> None:
    # Given more claimed runs than the pool can begin
    batch_id = bench.batch(['"wait"'] * 8)
    bench.dispatch(batch_id)
    eventually(lambda: len(bench.consumer.active) == 2 * bench.slots)
    eventually(lambda: sum(request.started for request in list(bench.consumer.active.values())) == bench.slots)
    # When the batch is paused, and nothing of it ends
    assert bench.state.stop(batch_id, StopTarget.PAUSED, "for later") is BatchState.STOPPING
    # Then what has not begun is pending again, uncharged, and what has begun is not touched
    waiting, running = ("pending", 1, 0), ("running", 1, 0)
    eventually(lambda: sorted(bench.states(batch_id)) == [waiting] * 4 + [running] * 4)
    for gate in bench.gates.values():
        gate.set()
    eventually(lambda: not bench.consumer.active)


def test_handlers_beside_the_current_folder_import_wherever_python_was_started_from(tmp_path: Path) -> None:
    mark = "from batching import profile_handler\n\nprofile_handler(name='beside')(lambda profile: 1)\n"
    (tmp_path / "beside.py").write_text(mark)
    # -P: as a console script starts, without the current folder on sys.path
    code = "from batching import handlers; handlers.load(['beside']); print(*handlers.registered())"
    told = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["beside"]


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("redis+socket:///nowhere/at.all?virtual_host=0", BrokerUnavailableError, "cannot reach the broker"),
        ("http://x", ConfigurationError, "lanes need Redis or Valkey"),
    ],
)
def test_a_broker_that_cannot_be_used_is_named_before_anything_is_submitted(
    tmp_path: Path, url: str, error: type[Exception], words: str
) -> None:
    services = LocalServices(Settings(broker_url=url, home=tmp_path), WorkerPlan())
    with pytest.raises(error, match=words):
        services.prepare()
    assert not (tmp_path / "batching.db").exists()
