"""Every metric there is: its name, its kind, its labels and what it says; the guide's table is made of it."""

from __future__ import annotations

from typing import Final, NamedTuple

from batching.figures import BOUNDS

#: Before every name.
PREFIX: Final = "batching_"

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"


class Metric(NamedTuple):
    """One metric. Its labels have few values each: see `bounded` in `reads`."""

    name: str
    """Without the prefix; that of a counter is exported with `_total` behind it, as is the custom."""
    kind: str
    labels: tuple[str, ...]
    help: str
    stored: bool = False
    """Counted by processes, and kept in the table `figures` under this name."""

    @property
    def exported(self) -> str:
        """As Prometheus knows it."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == COUNTER else ''}"

    @property
    def bounds(self) -> tuple[float, ...]:
        """Of a histogram that processes count."""
        return BOUNDS[self.name]


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, GAUGE, labels, text)


def _counter(name: str, text: str, *labels: str, stored: bool = True) -> Metric:
    return Metric(name, COUNTER, labels, text, stored)


def _histogram(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, HISTOGRAM, labels, text, stored=True)


METRICS: Final[tuple[Metric, ...]] = (
    # --- is it healthy
    _gauge(
        "build_info",
        "Always 1; the labels say which version serves this, and which schema it needs.",
        "version",
        "schema",
    ),
    _gauge("leader_up", "1 while a manager leads; while none does, nothing is promoted or dispatched."),
    _counter(
        "leader_changes",
        "How often leadership has changed hands; often means that managers die, or cannot renew their lease in time.",
        stored=False,
    ),
    _gauge(
        "broker_up", "1 unless the leader could not reach Redis a moment ago; while it is 0, nothing is dispatched."
    ),
    _gauge("database_clock_seconds", "The database's clock, as seconds since 1970; compare it with time()."),
    _gauge("figures_age_seconds", "Seconds since the leader last wrote what it sees; without a leader this grows."),
    _gauge("read_duration_seconds", "Seconds that it took to read all this from the database."),
    # --- the queue
    _gauge("batches", "Batches by queue and state; those that have ended, until they are pruned.", "queue", "state"),
    _gauge(
        "oldest_waiting_seconds",
        "Age of the batch that has waited in line for the longest, since it was submitted.",
        "queue",
    ),
    _gauge(
        "oldest_waiting_place",
        "Place in line of that batch, 1 is next; one that grows is being passed by others.",
        "queue",
    ),
    _gauge("next_waiting_seconds", "Age of the batch that is next in line, since it was submitted.", "queue"),
    _gauge("head_seconds", "Seconds since the longest-running batch at the head of the line was started.", "queue"),
    _gauge("queue_paused", "1 while nothing of a queue is dispatched, since a person paused it.", "queue"),
    _gauge("profiles", "Profiles of the batches that have not ended, by handler and state.", "handler", "state"),
    # --- what is done
    _gauge("settled_rate", "Profiles settled a second by the running batches, as the leader measures it.", "handler"),
    _counter(
        "profiles_settled",
        "Profiles that a run brought into a terminal state; not those that a person, or a deadline, ends all at once.",
        "handler",
        "state",
    ),
    _histogram(
        "run_duration_seconds", "Seconds that a run took in its handler, unless it was lost or given back.", "handler"
    ),
    _counter("profiles_dispatched", "Profiles that the leader has put into the broker's lanes.", "handler"),
    _counter("retries", "Runs that failed and are tried again: failures that do not show in the states.", "handler"),
    _counter("losses", "Runs whose worker or pool child died under them.", "handler"),
    _counter(
        "given_back", "Runs that were returned unrun, or interrupted by a stop of ours; nothing is charged.", "handler"
    ),
    _counter("runs_claimed", "Runs that workers have won."),
    _counter(
        "claims_refused", "Offers of runs that were claimed, settled or withdrawn before; harmless, and many are odd."
    ),
    _counter("duplicate_deliveries", "Messages of runs that the worker held already; harmless, and many are odd."),
    _counter("late_results", "Outcomes of runs that were over before: taken back from a worker that was thought dead."),
    _counter("junk_messages", "Messages in the lanes that are not ours; something else writes into them."),
    _counter(
        "sweep_repairs",
        "What was put right, by kind: message (published again), worker (declared dead), run (taken back from "
        "one), batch (concluded), submission (abandoned, deleted), stray (run that its own worker had forgotten), "
        "restored (message offered again from its copy in the broker).",
        "kind",
    ),
    # --- workers
    _gauge("workers", "Registered workers, by state: live, draining, silent.", "state"),
    _gauge("worker_slots", "Runs that the live workers can execute at once."),
    _gauge(
        "worker_held",
        "Runs in the hands of workers: pending (popped), active (claimed), outcomes (not settled).",
        "stage",
    ),
    # --- callbacks
    _gauge("callbacks", "Callbacks that were not delivered, by state: waiting, dead.", "state"),
    _gauge("callback_overdue_seconds", "Seconds for which the first callback that waits has been due."),
    # --- internals
    _histogram("step_rows", "Rows in one group, by step: dispatch, publish, claim, settle.", "step"),
    _histogram("step_duration_seconds", "Seconds that one group took, by step.", "step"),
    _histogram("leader_turn_duration_seconds", "Seconds that the leader took to look at everything once."),
    _gauge("lane_messages", "Messages in the broker's lanes, as the leader saw them last.", "handler"),
    _gauge("lane_window", "Messages that the leader lets into the lanes at once.", "handler"),
    _gauge(
        "database_connections", "Connections to the database by process and state: in_use, idle.", "process", "state"
    ),
    _gauge("database_overflow", "Of those, the ones beyond what each process keeps open.", "process"),
    _counter("database_connects", "Connections that were opened; many mean that they break.", "process"),
    _counter("database_errors", "How often a process found the database away, or too slow.", "process"),
    _counter("broker_errors", "How often a process found the broker away, or refusing.", "process"),
)

BY_NAME: Final[dict[str, Metric]] = {each.name: each for each in METRICS}
