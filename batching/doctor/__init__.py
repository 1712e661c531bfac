"""The audit: counters against rows, states against what they promise, SQL against Redis and the workers.

What the constraints of the schema rule out is not looked for. What is, and how each finding is repaired, is in
`batches` (one batch at a time), `register` (workers, leases, loading batches, rows of no batch) and `broker`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from batching.doctor import batches, broker, register
from batching.doctor.batches import recount
from batching.doctor.findings import Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batching.database import Database
    from batching.doctor.broker import Keys
    from batching.doctor.findings import Finding
    from batching.interfaces import Publisher

#: Seconds after which what may pass by itself is looked for again: two heartbeats by default, and several sweeps.
PATIENCE = 5.0
#: Repairs may uncover what another corruption hid: counters first, then what depends on them.
_ROUNDS = 5


def examine(
    database: Database,
    publisher: Publisher | None = None,
    fix: bool = False,
    *,
    keys: Keys | None = None,
    patience: float = PATIENCE,
) -> Report:
    """Compare everything that must agree.

    Safe beside running workers: each batch is read in one snapshot, in which counters and rows agree at every commit,
    and what a healthy system may look like for a moment is looked for twice.

    Args:
        database: The store.
        publisher: The broker, when it should be asked too.
        fix: Repair what can be repaired, and look again at what was.
        keys: The broker's keys, when their types and contents should be looked at too.
        patience: Seconds between the two looks.
    """

    def look() -> list[Finding]:
        found = list(_findings(database, publisher, keys))
        if not any(finding.passing for finding in found):
            return found
        threading.Event().wait(patience)
        again = {finding.same for finding in _findings(database, publisher, keys)}
        return [finding for finding in found if not finding.passing or finding.same in again]

    repaired: list[str] = []
    findings = look()
    for _ in range(_ROUNDS if fix else 0):
        done = [finding.text for finding in findings if finding.repair is not None and finding.repair(database)]
        if not done:
            break
        repaired += [text for text in done if text not in repaired]
        findings = look()
    problems = _unique(finding.text for finding in findings)
    return Report(not problems, problems, repaired)


def _findings(database: Database, publisher: Publisher | None, keys: Keys | None) -> Iterator[Finding]:
    yield from batches.findings(database)
    yield from register.findings(database)
    if publisher is not None:
        yield from broker.lost_messages(database, publisher)
    if keys is not None:
        yield from broker.odd_keys(database, keys)


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


__all__ = ["PATIENCE", "Report", "examine", "recount"]
