"""Everything this library raises on purpose. One base; the docstring of a class says when it is raised.

Messages say what was tried, on which id, what was found, and what to do.
"""

from __future__ import annotations


class BatchingError(Exception):
    """Base of every error raised by this library."""


class ConfigurationError(BatchingError):
    """A setting is missing or wrong; nothing was started or changed."""


class DatabaseUnavailableError(BatchingError):
    """The database did not answer, or refused the connection."""


class NotPermittedError(BatchingError):
    """The role that this process has in the database may not do what was asked."""


class BrokerUnavailableError(BatchingError):
    """Redis or Valkey did not answer, or refused the connection."""


class SchemaVersionError(BatchingError):
    """The database's schema is not the one that this version of the library needs."""


class InvalidInputError(BatchingError):
    """A batch, a profile or a file of profiles is not acceptable; nothing of it was kept."""


class PayloadError(BatchingError):
    """A payload is not what its handler takes; the profile fails."""


class QueueFullError(BatchingError):
    """A queue, or a group in it, holds as much as it may; nothing was submitted."""


class UnknownBatchError(BatchingError):
    """No batch has this id."""


class UnknownCallbackError(BatchingError):
    """No callback has this id."""


class UnknownQueueError(BatchingError):
    """No queue has this name."""


class UnknownWorkerError(BatchingError):
    """No worker has this id, name or host."""


class UnknownHandlerError(BatchingError):
    """No handler has this name."""


class IllegalMoveError(BatchingError):
    """The state of the batch forbids this verb."""


class HandlerImportError(BatchingError):
    """A module of handlers failed to import."""


class LeaseLostError(BatchingError):
    """This process is not the leader any more; what it tried to write was not written."""


class ResultTooLargeError(BatchingError):
    """A handler returned more than the result limit allows."""


class OutputTooLargeError(BatchingError):
    """A handler printed more than the output limit allows."""


class ResultNotJSONError(BatchingError):
    """A handler returned something that JSON cannot express."""


class ProfileControl(Exception):  # noqa: N818 - raised to steer, not to report an error
    """Base of what a handler raises to say how its profile goes on."""


class RetryProfile(ProfileControl):
    """Run this profile again later. Uses an attempt.

    Args:
        delay: Seconds until the next attempt; None for the batch's back-off.
        reason: Kept in the profile's history.
    """

    def __init__(self, delay: float | None = None, reason: str = "") -> None:
        super().__init__(delay, reason)
        if delay is not None and not 0 <= delay <= 31_536_000:
            raise ValueError(f"RetryProfile takes a delay of 0 to 31,536,000 seconds (a year), not {delay!r}")
        self.delay = delay
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "the handler asked to be retried"


class SkipProfile(ProfileControl):
    """Settle this profile as skipped: it neither succeeded nor failed, and never runs again."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "the handler skipped this profile"


class FailBatch(ProfileControl):
    """Fail this profile and, with it, the batch's whole pass, whatever the failure budget still allows."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "the handler failed the batch"
