"""Every read for people: counts, place in line, rate, ETA, and why a batch does not move. No writes."""

from batching.statistics.browsing import ProfilePage, ProfileView
from batching.statistics.closeup import Excerpt, ProfileDetail
from batching.statistics.fleet import Occupation
from batching.statistics.reader import Statistics
from batching.statistics.search import Search
from batching.statistics.situation import RunView, Situation
from batching.statistics.views import (
    AttemptView,
    BatchView,
    CallbackView,
    Durations,
    FailureChange,
    FailureGroup,
    HistoryEntry,
    QueueView,
    ResultLine,
    ThroughputPoint,
    WorkerView,
)

__all__ = [
    "AttemptView",
    "BatchView",
    "CallbackView",
    "Durations",
    "Excerpt",
    "FailureChange",
    "FailureGroup",
    "HistoryEntry",
    "Occupation",
    "ProfileDetail",
    "ProfilePage",
    "ProfileView",
    "QueueView",
    "ResultLine",
    "RunView",
    "Search",
    "Situation",
    "Statistics",
    "ThroughputPoint",
    "WorkerView",
]
