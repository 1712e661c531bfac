"""The statements of the hot path, each built once: dispatch, claim and settle move rows and count them in one.

On PostgreSQL the guarded UPDATE stands in a WITH clause, and next to it the counters get exactly the rows that it
returned; all parts see one snapshot, and the rows that changed reach the others only through RETURNING
(https://www.postgresql.org/docs/current/queries-with.html#QUERIES-WITH-MODIFYING). SQLite has no such clause:
there the UPDATE stands alone, and the counters follow in a second statement, while its one write lock is held.

Each reads the batch itself, in the snapshot of its own start. So it must come after the ticket, in a statement of its
own: from then on what it reads of the batch cannot change (see `counters`). The batches are named once more as
`wanted`, a list of known length, and joined in a materialized part: PostgreSQL cannot guess how few batches some
hundred runs have, and would walk over all that are kept, or pair each profile with each offer while a new table has no
statistics. That part is in the order of the runs, so that everybody locks rows in one order: a join with the batches
may turn it round in one plan and not in another, and two workers with the same offers would wait for each other.
"""

from batching.moves.statements.claiming import CLAIMED, OFFERS, claim, claim_first
from batching.moves.statements.dispatching import DISPATCHED, dispatch, dispatch_of
from batching.moves.statements.settling import OUTCOMES, SUCCESSES, settle
from batching.moves.statements.shared import AT_ONCE, LEADS, UNFLUSHED, UNKNOWN, WRITER

__all__ = [
    "AT_ONCE",
    "CLAIMED",
    "DISPATCHED",
    "LEADS",
    "OFFERS",
    "OUTCOMES",
    "SUCCESSES",
    "UNFLUSHED",
    "UNKNOWN",
    "WRITER",
    "claim",
    "claim_first",
    "dispatch",
    "dispatch_of",
    "settle",
]
