"""A durable batch queue on Celery: SQL is the queue, Redis is the doorbell."""

from batching.errors import (
    BatchingError,
    BrokerUnavailableError,
    ConfigurationError,
    DatabaseUnavailableError,
    FailBatch,
    IllegalMoveError,
    InvalidInputError,
    RetryProfile,
    SkipProfile,
    UnknownBatchError,
)
from batching.handlers import Profile, profile_handler
from batching.options import BatchOptions, Requeue
from batching.states import BatchState, ProfileState

__all__ = [
    "BatchOptions",
    "BatchState",
    "BatchingError",
    "BrokerUnavailableError",
    "ConfigurationError",
    "DatabaseUnavailableError",
    "FailBatch",
    "IllegalMoveError",
    "InvalidInputError",
    "Profile",
    "ProfileState",
    "Requeue",
    "RetryProfile",
    "SkipProfile",
    "UnknownBatchError",
    "profile_handler",
]
__version__ = "0.1.0"
