"""The reads of the dashboard: pages of profiles, one profile, the whole system. A part of `Statistics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batching.errors import NotPermittedError
from batching.statistics import lookup
from batching.statistics.browsing import read_profiles
from batching.statistics.closeup import read_payload, read_profile
from batching.statistics.situation import read_finished, read_peers, read_runs, read_situation

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from batching.database import Database
    from batching.states import BatchState, ProfileState
    from batching.statistics.browsing import ProfilePage
    from batching.statistics.closeup import Excerpt, ProfileDetail
    from batching.statistics.situation import RunView, Situation
    from batching.statistics.views import BatchView


class DashboardReads:
    """Mixed into `Statistics`."""

    _database: Database
    _lease: float

    def profiles(
        self,
        batch_id: str,
        *,
        states: Collection[ProfileState] | None = None,
        key: str | None = None,
        fingerprint: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> ProfilePage:
        """A page of a batch's profiles, at a cost that the batch's size does not set.

        Args:
            batch_id: The batch.
            states: Only those that are in one of these states now; None or nothing for all.
            key: Only those whose keys begin so; the one that has this very key is first.
            fingerprint: Only those that failed so in the present pass.
            after: `ProfilePage.after` of the page before.
            limit: Profiles in a page.

        Returns:
            By number; with `key` in the order of keys; failures alone by fingerprint and number. A page that found
            little among very many rows ends early, and says how many it looked at.

        Raises:
            UnknownBatchError: There is no batch with this id.
            InvalidInputError: No page ended so, or the filters contradict each other.
        """
        with self._database.read() as connection:
            return read_profiles(
                connection,
                lookup.resolve(connection, batch_id),
                states=states,
                key=key,
                fingerprint=fingerprint,
                after=after,
                limit=limit,
            )

    def profile(self, batch_id: str, name: str, *, by_number: bool | None = None) -> ProfileDetail:
        """One profile, with its result, its traceback and every run of it.

        Args:
            batch_id: The batch.
            name: The profile's key or number.
            by_number: True: only as a number; False: only as a key; None: as a key before it is tried as a number.

        Raises:
            UnknownBatchError: There is no batch with this id.
            InvalidInputError: The batch has no such profile.
        """
        with self._database.read() as connection:
            return read_profile(connection, lookup.resolve(connection, batch_id), name, by_number=by_number)

    def payload(self, batch_id: str, number: int) -> Excerpt | None:
        """The beginning of what was submitted for a profile; None: there is none, or this role may not see payloads."""
        try:
            with self._database.read() as connection:
                return read_payload(connection, lookup.resolve(connection, batch_id), number)
        except NotPermittedError:
            return None

    def situation(self) -> Situation:
        """How the whole system is now."""
        with self._database.read() as connection:
            return read_situation(connection, self._lease)

    def runs(self) -> list[RunView]:
        """What runs now, by worker; up to twenty runs of each, those that began first."""
        with self._database.read() as connection:
            return read_runs(connection)

    def peers(self, batch_id: str) -> list[str]:
        """The ids of the waiting batches among which `move` counts places, in their order; it is one of them.

        Raises:
            UnknownBatchError: There is no batch with this id.
        """
        with self._database.read() as connection:
            return read_peers(connection, lookup.resolve(connection, batch_id))

    def finished(
        self,
        queue: str | None = None,
        *,
        states: Iterable[BatchState] | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> list[BatchView]:
        """Batches that have ended, the latest first.

        Args:
            queue: Only this queue's.
            states: Only those that ended so.
            after: The id of the last batch of the page before.
            limit: Batches in a page.

        Raises:
            InvalidInputError: The batch that the page before ended with is gone, or runs again.
        """
        with self._database.read() as connection:
            return read_finished(connection, self._lease, queue=queue, states=states, after=after, limit=limit)
