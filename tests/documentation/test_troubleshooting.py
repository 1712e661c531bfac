"""The table of reasons has a row for each reason that there is, and the table of errors names errors that there are."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import pytest

from batching.states import BatchState, DependsOn, StopTarget
from batching.statistics.reason import Facts, why
from tests.documentation.pages import ROOT

PAGE: Final = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text()
NOON: Final = datetime(2026, 11, 26, 12, tzinfo=UTC)
QUEUED: Final = Facts(
    state=BatchState.QUEUED,
    target=None,
    stored="",
    queue="Q",
    handler="H",
    pending=5,
    dispatched=0,
    running=0,
    ahead=0,
    queue_paused=False,
    sealed=True,
    served=True,
    led=True,
    backs_off_until=None,
    retries_at=None,
)
RUNNING: Final = replace(QUEUED, state=BatchState.RUNNING)
WAYS: Final = {
    "behind": replace(QUEUED, ahead=3),
    "nobody serves it": replace(QUEUED, served=False),
    "nobody leads": replace(QUEUED, led=False),
    "broker away": replace(RUNNING, broker_away=True),
    "queue paused": replace(QUEUED, queue_paused=True),
    "queue drains": replace(QUEUED, queue_draining=True),
    "waits for another": replace(QUEUED, waits_for=("0192f0c1", DependsOn.SUCCESS)),
    "backs off": replace(QUEUED, backs_off_until=NOON),
    "waits for retries": replace(RUNNING, retries_at=NOON),
    "scheduled": replace(QUEUED, backs_off_until=NOON, scheduled=True),
    "open": replace(RUNNING, pending=0, sealed=False),
    "stopping": replace(RUNNING, state=BatchState.STOPPING, running=7, target=StopTarget.PAUSED),
    "paused": replace(QUEUED, state=BatchState.PAUSED, stored="paused by a person"),
    "capped": replace(RUNNING, held="queue Q is at its cap of 5 profiles at once"),
    "limited": replace(RUNNING, held="waits for its own rate limit, 5 profiles a second"),
    "shared limit": replace(RUNNING, held="waits for the rate limit of key crm, 5 profiles a second"),
}


def patterns() -> list[re.Pattern[str]]:
    """What the first column of the table of reasons stands for."""
    table = PAGE.partition("| its reason says |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    shown = [said for cell in cells for said in re.findall(r"`([^`]+)`", cell)]
    numbers = [re.sub(r"\\?\b(?:N|3)\b", r"[\\d,]+", re.escape(said)) for said in shown]
    return [re.compile(each.replace("…", ".*")) for each in numbers]


@pytest.mark.parametrize("way", WAYS)
def test_a_reason_has_a_row(way: str) -> None:
    reason = why(WAYS[way])
    assert reason
    assert any(pattern.fullmatch(reason) for pattern in patterns()), reason


def test_every_row_is_a_reason() -> None:
    said = [why(facts) for facts in WAYS.values()] + ["pass 1 failed: 3 profiles failed, 0 allowed"]
    for pattern in patterns():
        assert any(pattern.fullmatch(reason) for reason in said), pattern


def test_the_errors_that_it_names_are_raised_somewhere() -> None:
    table = PAGE.partition("| the error |")[2].partition("\n\n")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1:2][0])}
    sources = "".join(path.read_text() for folder in ("batching", "workers") for path in (ROOT / folder).rglob("*.py"))
    assert len(named) > 5
    assert {name for name in named if name not in sources} <= {"SoftTimeLimitExceeded"}  # Celery's
