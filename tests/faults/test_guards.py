"""Guards that nothing else misses when they are gone: each of these tests turns red without one of them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import literal, update

from batching.dialects import later
from batching.models import leases
from tests.accounting import Desk, plant_batch
from tests.faults.guards import MUTATIONS, Mutation

if TYPE_CHECKING:
    from batching.database import Database

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def test_a_lease_that_lapsed_is_not_renewed(desk: Desk) -> None:
    """Somebody else may have looked at it in between, and will take it: nobody can tell who is first."""
    term = desk.states.lead(str(uuid.uuid4()), 600)
    assert term is not None
    assert desk.states.renew(term, 600)
    with desk.database.begin() as connection:
        connection.execute(update(leases).values(expires_at=later(literal(-0.5))))
    assert not desk.states.renew(term, 600)
    assert desk.states.lead(str(uuid.uuid4()), 600) is not None


@pytest.mark.parametrize("known", [False, True], ids=["first", "ticket"])
def test_nothing_is_claimed_of_a_batch_that_does_not_run_whatever_its_rows_say(desk: Desk, known: bool) -> None:
    """A stop leaves no dispatch behind; should one be there all the same, by a hand or a restore, it is not granted."""
    batch_id = desk.start(3)
    first, *runs = desk.dispatch(batch_id)
    if known:
        desk.states.claim(desk.worker, [first])
    plant_batch(desk.database, batch_id, state="paused")
    assert desk.states.claim(desk.worker, runs).claimed == []
    plant_batch(desk.database, batch_id, state="running")
    assert len(desk.states.claim(desk.worker, runs).claimed) == 2


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.name)
def test_a_guard_stands_where_the_mutation_controls_remove_it(mutation: Mutation) -> None:
    """Whoever moves a guard moves its line in `guards.py`, too, and runs `make mutations MUTATIONS=<its name>`."""
    for edit in mutation.edits:
        text = (ROOT / edit.path).read_text(encoding="utf-8")
        assert text.count(edit.old) == edit.times, f"{edit.path} has it {text.count(edit.old)} times:\n{edit.old}"
