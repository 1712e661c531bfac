"""The hot statements, once, for a batch that cannot exist: building and compiling each takes tens of milliseconds.

Else the first batch that a fresh process serves would wait for it, with the whole pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batching.interfaces import Lane, RunId, Settlement
from batching.models import NOBODY
from batching.moves import counters, profile, promotion, rows
from batching.states import ProfileState

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from batching.direct import Single
    from batching.interfaces import LeaderTerm

#: Of a batch that cannot be: its id is no UUID of version 7 (https://www.rfc-editor.org/rfc/rfc9562#section-5.9).
_RUN: Final = RunId(NOBODY, 1, 1)
#: Executions after which psycopg prepares a statement, and PostgreSQL keeps a plan of it for good, are five each
#: (https://www.psycopg.org/psycopg3/docs/advanced/prepare.html,
#: https://www.postgresql.org/docs/current/sql-prepare.html#SQL-PREPARE-NOTES).
_TIMES: Final = 12


def rehearse_claims(direct: Single, worker_id: str) -> None:
    """Claim by the short way, as a worker that waits for a single profile does, until it is prepared."""
    for _ in range(_TIMES):
        profile.claim_first(direct, worker_id, NOBODY, [_RUN])


def rehearse_starts(direct: Single, term: LeaderTerm) -> None:
    """Start the next batch of a queue that cannot exist, by the short way, until it is prepared."""
    for _ in range(_TIMES):
        promotion.start_at_once(direct, "", term, promotion.Plan(None, {}, 1), 0)


def rehearse_worker(connection: Connection, worker_id: str) -> None:
    """Take a ticket, claim and settle, to no effect.

    Args:
        connection: In a write transaction; nothing is written.
        worker_id: The worker's, registered or not.
    """
    counters.take_ticket(connection, worker_id, {NOBODY})
    profile.claim_some(connection, worker_id, [_RUN], {NOBODY})
    for state in (ProfileState.SUCCEEDED, ProfileState.FAILED):
        parameters = {"wanted": {NOBODY}, "writer": worker_id, "holder": worker_id}
        profile.write_settlements(connection, parameters, [Settlement(_RUN, state, state.value, 1, 1)])
    rows.read_counted(connection, [NOBODY])


def rehearse_leader(connection: Connection, term: LeaderTerm) -> None:
    """Promote and dispatch, to no effect.

    Args:
        connection: In a write transaction; nothing is written.
        term: The leader's.
    """
    if connection.dialect.name != "postgresql":
        promotion.start(connection, "", term, promotion.Plan(None, {}, 1), 0)
    profile.dispatch_some(connection, NOBODY, 1, term, Lane("", ""), 0)
