"""Two versions side by side: what a newer one has written must stop nobody of an older one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from batching import BatchOptions
from batching.errors import InvalidInputError
from batching.models import batches
from batching.outlook import look
from tests.accounting import Desk, assert_accounted, plant_batch

if TYPE_CHECKING:
    from batching.database import Database


def test_an_option_of_a_newer_version_stops_nobody(database: Database) -> None:
    # Given a batch that a newer producer has submitted, with an option that this version does not know
    desk = Desk(database)
    newer = desk.submit(3)
    with database.read() as connection:
        options = connection.scalars(select(batches.c.options).where(batches.c.id == newer)).one()
    plant_batch(database, newer, options={**options, "moon_phase": "full"})
    # When an older leader looks at the queue and leads it on, then it is led like any other
    assert desk.states.promote("default", desk.term) == newer
    assert [each.row.id for each in look(database, 10).active] == [newer]
    assert desk.work(newer) == [newer]
    assert assert_accounted(database, newer).succeeded == 3
    # And the option is still there for whoever knows it
    with database.read() as connection:
        kept = connection.scalars(select(batches.c.options).where(batches.c.id == newer)).one()
    assert kept["moon_phase"] == "full"


def test_an_option_that_somebody_mistyped_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="there is no option 'moon_phase'"):
        BatchOptions.from_dict({"moon_phase": "full"})
