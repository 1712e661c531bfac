"""What a producer says and is answered: the options of a batch, what `submit` asks for, and its receipt. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from batching.brakes import LIMIT_NAME, parse_rate
from batching.callbacks import check_target
from batching.errors import InvalidInputError
from batching.states import CallbackEvent, DependsOn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

#: Buckets that one batch takes tokens from: each is a row that its dispatches lock.
_MOST_LIMITS = 10
#: Seconds of the longest time limit: a week.
_LONGEST = 604_800


class Requeue(StrEnum):
    """Where a batch goes whose pass failed and that has passes left."""

    TAIL = "tail"
    """The end of the queue: it never holds up the others."""
    FRONT = "front"
    """Before all others of its priority."""
    KEEP = "keep"
    """Its old position."""
    PARK = "park"
    """Paused, for a person to look at."""


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch runs. Immutable once submitted.

    Args:
        max_attempts: Tries of one profile inside one pass.
        max_passes: Turns of the batch before it is `failed`.
        failure_budget: Failed profiles that a pass may have: a count (int), or a ratio of the sealed total, rounded
            down (float below 1).
        failure_budgets: The same by the class of the error, as `{"TimeoutError": 10}`; a class is named in full
            (`module.Class`) or by its last part. A failure counts against the budget of its class, and against
            `failure_budget` when its class has none.
        fail_fast: Stop the pass as soon as the budget is spent; False lets the pass run to its end.
        requeue: Where the batch goes after a failed pass.
        window: Ceiling of its profiles in the broker at once; None for the lane's own.
        max_concurrency: Ceiling of its profiles that are in the broker or run at once; None for no cap.
        rate_limit: Profiles a second that are dispatched, at most, as a number or as `600/m`; None for no limit.
        rate_limits: Names of limits that it shares with others, as operators set them.
        soft_time_limit: Seconds after which a run is told that its time is up, in place of the handler's own limit;
            only workers of the prefork pool can keep it.
        time_limit: Seconds after which a run is killed, in place of the handler's own limit; as above.
        retry_backoff: Seconds before the second attempt; doubles each time, with full jitter.
        retry_backoff_max: Ceiling of that back-off in seconds.
        pass_backoff: Seconds before the second pass; doubles each time.
        pass_backoff_max: Ceiling of that back-off in seconds.
        on_success: Who is told when the batch succeeds: `https://…` for a webhook, or the name of a Celery task.
        on_failure: Who is told of each failed pass.
        on_finish: Who is told when the batch reaches a terminal state, whichever.
    """

    max_attempts: int = 3
    max_passes: int = 3
    failure_budget: int | float = 0
    failure_budgets: Mapping[str, int | float] = field(default_factory=dict, hash=False)
    fail_fast: bool = True
    requeue: Requeue = Requeue.TAIL
    window: int | None = None
    max_concurrency: int | None = None
    rate_limit: float | None = None
    rate_limits: tuple[str, ...] = ()
    soft_time_limit: float | None = None
    time_limit: float | None = None
    retry_backoff: float = 1.0
    retry_backoff_max: float = 300.0
    pass_backoff: float = 1.0
    pass_backoff_max: float = 300.0
    on_success: str | None = None
    on_failure: str | None = None
    on_finish: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("max_attempts", 1, 1000), ("max_passes", 1, 1000)):
            self._whole(name, low, high)
        self._check_running()
        for name in ("retry_backoff", "retry_backoff_max", "pass_backoff", "pass_backoff_max"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86_400:
                raise InvalidInputError(f"option {name} takes 0 to 86,400 seconds, not {value!r}")
        self._check_budgets()
        if not isinstance(self.fail_fast, bool):
            raise InvalidInputError(f"option fail_fast takes true or false, not {self.fail_fast!r}")
        try:
            object.__setattr__(self, "requeue", Requeue(self.requeue))
        except ValueError:
            raise InvalidInputError(f"option requeue takes tail, front, keep or park, not {self.requeue!r}") from None
        for event in CallbackEvent:
            check_target(f"on_{event}", self.callback(event))

    def _check_running(self) -> None:
        """How much of it runs at once, and how fast."""
        for name in ("window", "max_concurrency"):
            if getattr(self, name) is not None:
                self._whole(name, 1, 1_000_000)
        if self.rate_limit is not None:
            object.__setattr__(self, "rate_limit", parse_rate(self.rate_limit, "option rate_limit"))
        object.__setattr__(self, "rate_limits", _names(self.rate_limits))
        for name in ("soft_time_limit", "time_limit"):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST
            if value is not None and not good:
                raise InvalidInputError(f"option {name} takes seconds, over 0 and up to {_LONGEST:,}, not {value!r}")
        if self.is_timed and (self.soft_time_limit or 0) >= (self.time_limit or _LONGEST + 1):
            raise InvalidInputError(
                f"option soft_time_limit has to be below time_limit: {self.soft_time_limit:g} is not below "
                f"{self.time_limit:g} seconds"
            )

    @property
    def is_timed(self) -> bool:
        """Whether its runs have time limits of the batch's own."""
        return self.soft_time_limit is not None or self.time_limit is not None

    def callback(self, event: CallbackEvent) -> str | None:
        """Who is told of an event; None: nobody."""
        target: str | None = getattr(self, f"on_{event}")
        return target

    def _check_budgets(self) -> None:
        by_class: Any = self.failure_budgets  # whatever the caller gave
        if not isinstance(by_class, Mapping) or not all(isinstance(name, str) and name for name in by_class):
            raise InvalidInputError(
                f'option failure_budgets takes budgets by class of error, as {{"TimeoutError": 10}}, not {by_class!r}'
            )
        object.__setattr__(self, "failure_budgets", dict(by_class))
        for budget in (self.failure_budget, *by_class.values()):
            counts = isinstance(budget, int) and not isinstance(budget, bool) and budget >= 0
            if not counts and not (isinstance(budget, float) and 0 <= budget < 1):
                raise InvalidInputError(
                    f"option failure_budget takes a count (0, 1, 2, …) or a ratio from 0.0 to below 1.0, not {budget!r}"
                )

    def _whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidInputError(f"option {name} takes a whole number from {low} to {high:,}, not {value!r}")

    def as_dict(self) -> dict[str, Any]:
        """As stored with the batch, and read back: JSON has lists, and no tuples."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BatchOptions:
        """As given, on the command line for example.

        Raises:
            InvalidInputError: An option is unknown or out of its range.
        """
        known = {each.name for each in fields(cls)}
        for name in values:
            if name not in known:
                raise InvalidInputError(f"there is no option {name!r}; the options are {', '.join(sorted(known))}")
        return cls(**values)

    @classmethod
    def from_stored(cls, values: dict[str, Any]) -> BatchOptions:
        """As stored by any version: what a newer one has added is not known here, and must stop nobody.

        While versions run side by side, the leader can be the older one; what it does not know, it cannot honour.

        Raises:
            InvalidInputError: An option that is known is out of its range.
        """
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def _names(given: Any) -> tuple[str, ...]:
    """The names of shared limits, each once, in an order of their own."""
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple | set) else (given,)
    for name in names:
        if not isinstance(name, str) or not LIMIT_NAME.fullmatch(name):
            raise InvalidInputError(
                "option rate_limits takes names of limits, of letters, digits, '_', '-' and '.', as "
                f'["crm-api"]; not {name!r}'
            )
    if len(set(names)) > _MOST_LIMITS:
        raise InvalidInputError(f"option rate_limits takes {_MOST_LIMITS} names at most, not {len(set(names))}")
    return tuple(sorted(set(names)))


class ProfileInput(NamedTuple):
    """A profile as it enters: its key, and its payload already encoded as JSON text and checked."""

    key: str
    payload: str


class After(NamedTuple):
    """A batch that another one waits for: its id or its key, and what is wanted of it."""

    name: str
    wants: DependsOn

    @classmethod
    def of(cls, given: Any, wants: DependsOn) -> After:
        """From a text, with `:success` or `:any` behind it or not; or from a handle on the batch.

        Raises:
            InvalidInputError: It is neither.
        """
        text = getattr(given, "id", given)
        if not isinstance(text, str) or not text:
            raise InvalidInputError(f"after takes ids or keys of batches, not {given!r}")
        name, colon, behind = text.rpartition(":")
        return cls(name, DependsOn(behind)) if colon and name and behind in set(DependsOn) else cls(text, wants)


class Asked(TypedDict, total=False):
    """What can be said about a batch beside its handler and its profiles: the keywords of `submit` and `open`."""

    name: str | None
    """For people; by default the handler's name."""
    key: str | None
    """The batch's idempotency key in its queue: the same key again is the same batch, with a report."""
    queue: str
    """`default` if it is not said; made when it does not exist."""
    priority: int
    """Larger runs first; 0 if it is not said."""
    group: str | None
    """Whose batch it is: inside a priority, groups take turns, however many batches each of them has."""
    options: BatchOptions | None
    """How it runs."""
    new: bool
    """With `key`: a fresh batch, even if the key names one; the older one gives the key up."""
    start_at: datetime | float | None
    """An aware moment, or seconds from now: it stands in line, and is passed over until then."""
    deadline: datetime | float | None
    """An aware moment, or seconds from now: what is not done by then expires, and the batch with it."""
    tags: Iterable[str]
    """Texts to find it by."""
    properties: Mapping[str, Any]
    """Names and JSON values; what is no object or array, it can be found by."""
    after: Iterable[Any]
    """Batches that it waits for: their ids, or keys in the same queue, or handles; a text may end in `:any`."""
    on: str
    """What it wants of them: `success`, if it is not said, or `any` end."""


#: Checked once, and not for each batch.
_DEFAULTS = BatchOptions()


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What `submit` asks for; made of an `Asked`."""

    handler: str
    name: str
    queue: str = "default"
    key: str | None = None
    priority: int = 0
    options: BatchOptions = field(default_factory=BatchOptions)
    replace_key: bool = False
    """`--new`: an older batch with this key gives it up."""
    group: str = ""
    """Whose batches take turns with those of other groups; empty for none."""
    start_at: datetime | float | None = None
    deadline: datetime | float | None = None
    tags: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[After, ...] = ()
    traceparent: str | None = None
    """The trace that it is submitted in."""
    sealed: bool = True
    """False: it is open, and takes more profiles until it is sealed."""

    @classmethod
    def of(cls, handler: str, asked: Asked, *, sealed: bool = True) -> BatchSpec:
        """What a producer asks for, not yet checked.

        Raises:
            InvalidInputError: `options` is something else.
        """
        options = asked.get("options")
        if options is not None and not isinstance(options, BatchOptions):
            raise InvalidInputError(f"options takes a BatchOptions, not {type(options).__name__}")
        for name in asked:
            if name not in Asked.__annotations__:
                raise TypeError(f"a batch has no {name!r}; it has {', '.join(Asked.__annotations__)}")
        tags = asked.get("tags", ())
        try:
            on = DependsOn(asked.get("on", DependsOn.SUCCESS))
        except ValueError:
            raise InvalidInputError(f"on takes success or any, not {asked['on']!r}") from None
        after = asked.get("after") or ()
        return cls(
            handler=handler,
            name=asked.get("name") or str(handler),
            queue=asked.get("queue", "default"),
            key=asked.get("key"),
            priority=asked.get("priority", 0),
            options=options or _DEFAULTS,
            replace_key=asked.get("new", False),
            start_at=asked.get("start_at"),
            deadline=asked.get("deadline"),
            tags=(tags,) if isinstance(tags, str) else tuple(tags),
            properties=dict(asked.get("properties") or {}),
            group=asked.get("group") or "",
            after=tuple(After.of(each, on) for each in ((after,) if isinstance(after, str) else after)),
            sealed=sealed,
        )


class Difference(NamedTuple):
    """How profiles that were submitted or appended differ from what their batch had."""

    new: int = 0
    """Keys that it did not have. Appended, if the batch is open; else only counted."""
    same: int = 0
    """Keys that it had, with the same payload."""
    changed: int = 0
    """Keys that it had with another payload, which stays as it was; see `amend`."""

    def plus(self, other: Difference) -> Difference:
        """The two together."""
        return Difference(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Amended(NamedTuple):
    """What `amend` did."""

    amended: int
    """Profiles that have another payload now."""
    same: int
    """Profiles whose payload was this one already."""
    pass_number: int | None
    """The pass that was opened; None: the batch waits, and its present pass takes the new payloads."""


class BatchReceipt(NamedTuple):
    """What `submit` answers: `created` is False when the key named a batch that was there already."""

    id: str
    total: int
    created: bool
    difference: Difference = Difference()
    """From what the batch had before; of a batch that was created, all is new."""
    open: bool = False
    """It takes more profiles until it is sealed."""
