"""The table of legal moves: complete, without dead ends, and exactly what the move functions accept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import null

from batching.dialects import now
from batching.errors import IllegalMoveError
from batching.moves.rows import lock_batch, move_batch
from batching.states import (
    BATCH_MOVES,
    BULK_EFFECTS,
    STOP_STRENGTH,
    TERMINAL_BATCH_STATES,
    TERMINAL_PROFILE_STATES,
    UNSETTLED_PROFILE_STATES,
    BatchState,
    BulkMove,
    ProfileState,
    StopTarget,
    effective_state,
    stronger,
)
from tests.accounting import Desk, plant_batch

if TYPE_CHECKING:
    from batching.database import Database

SEEN = [state for state in BatchState if state is not BatchState.LOADING]


def test_every_state_has_its_moves_and_can_be_reached() -> None:
    assert set(BATCH_MOVES) == set(BatchState)
    reached = {BatchState.LOADING}
    while new := set().union(*(BATCH_MOVES[state] for state in reached)) - reached:
        reached |= new
    assert reached == set(BatchState)


def test_a_finished_batch_only_ever_opens_a_new_pass() -> None:
    for state in TERMINAL_BATCH_STATES:
        assert BATCH_MOVES[state] == {BatchState.QUEUED}


def test_settled_and_unsettled_states_are_all_there_are() -> None:
    assert set(UNSETTLED_PROFILE_STATES) | set(TERMINAL_PROFILE_STATES) == set(ProfileState)
    assert not set(UNSETTLED_PROFILE_STATES) & set(TERMINAL_PROFILE_STATES)


@pytest.mark.parametrize("move", BulkMove)
def test_no_bulk_move_touches_what_runs_or_is_done(move: BulkMove) -> None:
    for state in (ProfileState.RUNNING, ProfileState.SUCCEEDED, ProfileState.SKIPPED):
        assert effective_state(state, (move,)) is state


@pytest.mark.parametrize("move", BulkMove)
def test_a_bulk_move_read_twice_says_the_same(move: BulkMove) -> None:
    # A step that is repeated after a crash must not move a row on.
    for state in ProfileState:
        assert effective_state(state, (move, move)) is effective_state(state, (move,))
        assert BULK_EFFECTS[move].get(state) is not ProfileState.RUNNING


def test_bulk_moves_apply_oldest_first() -> None:
    assert effective_state(ProfileState.PENDING, (BulkMove.CANCEL, BulkMove.REOPEN)) is ProfileState.PENDING
    assert effective_state(ProfileState.PENDING, (BulkMove.REOPEN, BulkMove.CANCEL)) is ProfileState.CANCELLED
    assert effective_state(ProfileState.DISPATCHED, (BulkMove.HOLD, BulkMove.EXPIRE)) is ProfileState.EXPIRED


def test_the_stronger_stop_holds_in_either_order() -> None:
    assert set(STOP_STRENGTH) == set(StopTarget)
    for weaker, target in enumerate(STOP_STRENGTH):
        assert stronger(None, target) is target
        for other in STOP_STRENGTH[: weaker + 1]:
            assert stronger(other, target) is target
            assert stronger(target, other) is target


@pytest.mark.parametrize("source", SEEN)
def test_the_move_function_accepts_exactly_the_table(database: Database, source: BatchState) -> None:
    for to in BatchState:
        desk = Desk(database)
        batch_id = desk.submit(1)
        plant_batch(database, batch_id, state=source, **_facts(source))
        legal = to in BATCH_MOVES[source]
        with database.begin() as connection:
            batch = lock_batch(connection, batch_id)
            if legal:
                move_batch(connection, batch, to, "test", **_facts(to))
            else:
                with pytest.raises(IllegalMoveError, match=f"cannot move batch {batch_id} from {source} to {to}"):
                    move_batch(connection, batch, to, "test")
        assert desk.state(batch_id) is (to if legal else source)


def _facts(state: BatchState) -> dict[str, object]:
    """What the checks of the table want of a state."""
    return {
        "target": StopTarget.PAUSED if state is BatchState.STOPPING else None,
        "finished_at": now() if state in TERMINAL_BATCH_STATES else null(),
    }
