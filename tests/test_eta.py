"""How an estimate is made: what is measured, the range around it, and when nobody can tell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from batching.cli.main import cli
from batching.measure import WINDOW, Measured, Measurer, Track
from batching.models import rates
from batching.outlook import look
from batching.settings import get_settings
from batching.states import StopTarget
from batching.statistics import Statistics
from batching.statistics.eta import FEWEST, Pace, estimate
from tests.accounting import Desk
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.database import Database


def watched(settled: Callable[[int], int], seconds: int) -> Measured:
    """One look a second."""
    track = Track()
    found = None
    for at in range(seconds + 1):
        found = track.look(float(at), settled(at))
    assert found is not None
    return found


# --- what is measured


def test_the_first_look_measures_nothing() -> None:
    track = Track()
    assert track.look(0.0, 5) is None
    assert track.look(0.0, 5) is None
    assert track.look(2.0, 25) == Measured(10.0, 25, 20, 2.0, 20**0.5 / 2)


def test_an_even_pace_has_the_error_of_a_count() -> None:
    found = watched(lambda at: 10 * at, 60)
    assert (found.per_second, found.counted, found.over_seconds) == (10.0, 600, 60.0)
    assert found.deviation == pytest.approx(600**0.5 / 60)


def test_bursts_make_it_uncertain() -> None:
    even, bursts = watched(lambda at: 10 * at, 60), watched(lambda at: 200 * (at // 20), 60)
    assert bursts.counted == even.counted
    assert bursts.deviation > 3 * even.deviation


def test_it_looks_back_for_a_minute_and_no_further() -> None:
    found = watched(lambda at: 100 * min(at, 30) + max(0, at - 30), 200)
    assert (found.counted, found.over_seconds) == (WINDOW, WINDOW)


def test_a_new_pass_begins_anew() -> None:
    found = watched(lambda at: 100 * at if at <= 10 else 3 * (at - 11), 30)
    assert (found.counted, found.over_seconds) == (57, 19.0)


def test_the_leader_writes_what_it_measured_and_an_old_one_does_not(database: Database) -> None:
    desk = Desk(database)
    desk.register()
    batch_id = desk.start(40)
    times = iter((0.0, 2.0, 4.0))
    measurer = Measurer(database, lambda: next(times))
    measurer.measure(desk.term, look(database, 10))
    desk.work(batch_id, limit=20)
    measurer.measure(desk.term._replace(epoch=desk.term.epoch - 1), look(database, 10))
    with database.read() as connection:
        assert connection.execute(select(rates)).all() == []
    desk.work(batch_id, limit=10)
    measurer.measure(desk.term, look(database, 10))
    with database.read() as connection:
        row = connection.execute(select(rates)).one()
    assert (row.settled, row.counted, row.over_seconds) == (30, 30, 4.0)
    view = Statistics(database).batch(batch_id)
    assert view.eta_low is not None
    assert view.eta_high is not None
    assert view.eta_low < (view.eta_seconds or 0) < view.eta_high


# --- the range


def test_the_range_is_two_errors_around_what_was_measured() -> None:
    eta = estimate(1_000, Pace(600, 60.0, 10.0, 10.0, 0.5))
    assert eta == (100.0, 90.9, 111.1, "600 settled in the last 60 s")


def test_a_pace_that_changes_widens_the_range_to_its_side() -> None:
    eta = estimate(1_000, Pace(600, 60.0, 10.0, 5.0, 0.5))
    assert (eta.likely, eta.low, eta.high) == (200.0, 90.9, 250.0)


def test_a_pace_that_is_too_uneven_has_no_upper_bound() -> None:
    eta = estimate(1_000, Pace(600, 60.0, 10.0, 10.0, 6.0))
    assert (eta.likely, eta.high) == (100.0, None)
    assert eta.basis == "600 settled in the last 60 s; too uneven for an upper bound"


@pytest.mark.parametrize(
    ("pace", "why"),
    [
        (Pace(), "unknown: nothing was measured yet"),
        (Pace(FEWEST - 1, 30.0, 0.3, 0.3, 0.1), "unknown: only 9 settled in the last 30 s"),
        (Pace(600, 60.0, 10.0, 0.0, 0.4), "unknown: only 600 settled in the last 60 s"),
    ],
)
def test_too_little_is_no_basis(pace: Pace, why: str) -> None:
    assert estimate(1_000, pace) == (None, None, None, why)


# --- what people see


def test_a_broker_that_is_away_is_the_reason_until_the_leader_stops_saying_so(database: Database) -> None:
    desk = Desk(database)
    desk.register()
    batch_id, waits = desk.start(2), desk.submit(1)
    desk.dispatch(batch_id)
    statistics = Statistics(database)
    assert statistics.batch(batch_id).reason == ""
    desk.states.note_broker_away(desk.term._replace(epoch=desk.term.epoch - 1), 60)
    assert statistics.batch(batch_id).reason == ""  # an old leader says nothing
    desk.states.note_broker_away(desk.term, 60)
    assert statistics.batch(batch_id).reason.startswith("the broker cannot be reached")
    assert statistics.batch(waits).reason == "behind 1 batch"
    assert statistics.led()
    desk.states.note_broker_away(desk.term, 0.1)
    eventually(lambda: statistics.batch(batch_id).reason == "")


def test_show_says_the_equation_the_range_and_every_position(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from batching.database import Database

    database = Database(sqlite_url)
    desk = Desk(database)
    monkeypatch.setenv("BATCHING_DATABASE_URL", sqlite_url)
    get_settings.cache_clear()
    batch_id = desk.start(3)
    runs = desk.dispatch(batch_id, 2)
    desk.settle(desk.states.claim(desk.worker, runs).claimed[:1])
    desk.states.claim(desk.worker, runs)

    def show(*more: str) -> str:
        said = CliRunner().invoke(cli, ["show", batch_id, *more])
        assert said.exit_code == 0, said.output
        return said.output

    said = show()
    assert "3 = 1 pending + 1 running + 1 succeeded" in said
    assert "2 duplicate deliveries: counted, and otherwise without effect" in said
    assert "left        unknown: no live worker serves handler" in said
    desk.states.stop(batch_id, StopTarget.PAUSED, "lunch")
    history = json.loads(show("--history", "--json"))
    assert [(each["to_state"], each["pass"], each["position"]) for each in history][:2] == [
        ("queued", 1, 1),
        ("running", 1, 1),
    ]
    assert "POSITION" in show("--history")
    database.close()
