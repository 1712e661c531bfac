"""The contract of a contender. Standard library alone: this module is imported in every contender's environment.

A contender is a module `benchmarks/contenders/<name>.py` that ends in `CONTENDER = Subclass()`, and a list of pinned
requirements `<name>.txt` from which the controller makes its virtual environment. The controller imports the module
too, to list its shapes, and has none of its packages: so at its top level it may import nothing but the standard
library, `benchmarks.contender` and `benchmarks.journal`. Its own packages are imported inside `prepare` and `enqueue`,
or in a second module beside it (`<name>_app.py`), which declares the tasks and is what its worker processes load.

How a measurement goes, so that an adapter can be read against it:

1. The controller makes an empty PostgreSQL database, empties Valkey and the journal, sets the environment (`Place`).
2. `prepare` in a child process of the contender's environment: schema, and nothing that is paid per item.
3. Drain (W1, W2, W3): `enqueue` in a child process, then the commands of `workers`. The first handler in each executing
   process waits at the gate of `benchmarks.journal`; it opens when `Shape.processes` of them wait. The rate is taken
   between 10 % and 100 % of the items: by the journal's size in W1 and W3, by `progress_sql` in W2.
   End to end and latency: the workers first, some items to warm them, then `enqueue`, once for all or once per item.
4. The workers' process groups get SIGTERM, later SIGKILL; a contender need not stop anything itself.
5. Exactness: the journal has n bytes, `progress_sql` and `exact_sql` say n.

Rules: a task's body calls one function of `benchmarks.journal` and does nothing else, whatever its payload (in an
asynchronous system it is a coroutine function that calls `noop`, `stamp`, or awaits `asleep50`); the payload is one
string, passed as the task's argument; settings are those that the system's documentation recommends for throughput,
each with its reason and source beside it; workers log warnings and worse; no result is kept that the system does not
need. Try an adapter by itself with `python -m benchmarks --only '^<name>' --quick`.
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Handler = Literal["noop", "sleep50", "stamp"]
Workload = Literal["noop", "durable", "sleep", "submit", "latency", "events"]

NOOP: Final[Workload] = "noop"
DURABLE: Final[Workload] = "durable"
SLEEP: Final[Workload] = "sleep"
SUBMIT: Final[Workload] = "submit"
LATENCY: Final[Workload] = "latency"
#: A drain with task events; Celery's own kind only. `options["flower"]` names the app that Flower opens, if it does.
EVENTS: Final[Workload] = "events"


@dataclass(frozen=True)
class Place:
    """Where a measurement runs; in every process of the contender `Place.here()` gives the same."""

    #: A Valkey that is empty: `unix:///folder/socket?db=0`, as redis-py's `from_url` takes it.
    redis_url: str
    #: The same server as Celery and kombu write it: `redis+socket:///folder/socket?virtual_host=0`.
    kombu_url: str
    #: A PostgreSQL database that is empty: `postgresql://postgres@/name?host=/folder` (libpq, psycopg, asyncpg).
    postgres_url: str
    #: The journal's path, on tmpfs; handlers find it by themselves.
    journal: str
    #: A temporary folder of this measurement on a real disk; the working directory of all its processes.
    directory: str

    @property
    def sqlalchemy_url(self) -> str:
        """`postgres_url` for SQLAlchemy with psycopg 3."""
        return self.postgres_url.replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def folder(self) -> Path:
        """`directory` as a path."""
        return Path(self.directory)

    def environment(self) -> dict[str, str]:
        """What every process of the contender finds in its environment."""
        return {
            "BENCH_REDIS": self.redis_url,
            "BENCH_KOMBU": self.kombu_url,
            "BENCH_POSTGRES": self.postgres_url,
            "BENCH_JOURNAL": self.journal,
            "BENCH_FOLDER": self.directory,
        }

    @classmethod
    def here(cls) -> Place:
        """The place of this process, from its environment."""
        names = ("BENCH_REDIS", "BENCH_KOMBU", "BENCH_POSTGRES", "BENCH_JOURNAL", "BENCH_FOLDER")
        return cls(*[os.environ[name] for name in names])


@dataclass(frozen=True)
class Shape:
    """One way to run a contender.

    Args:
        name: Short, unique in its contender: `prefork -c 2`, `x2 threads 8`.
        processes: Processes that execute handlers, over all commands of `workers`: as many arrive at the gate.
        workloads: What it takes part in.
        slots: Items that may run at once, over all processes.
        durable: Whether an outcome per item is in PostgreSQL when it is done. Needed for `DURABLE`.
        brokered: `redis` or `postgresql`: what carries the items. The table of goals compares with `redis` ones.
        at_least_once: True if an undisturbed run may execute an item twice; then more than n bytes are right too.
        items: Ceiling on the items of one drain, for a slow one: 3,000 at least; None: what everybody gets.
        note: What a reader of the table must know: guarantees that differ, a mode that needs explaining.
        options: The adapter's own, for whatever tells its shapes apart. The controller reads `flower` (see `EVENTS`)
            and `sqlite`: a file in `Place.folder` that `progress_sql` and `exact_sql` are asked of.
    """

    name: str
    processes: int
    workloads: frozenset[Workload]
    slots: int = 1
    durable: bool = False
    brokered: str = "redis"
    at_least_once: bool = False
    items: int | None = None
    note: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


class Contender(ABC):
    """What a module of `benchmarks/contenders/` provides.

    One object lives in each child process for as long as that runs: it may keep connections, an event loop or a
    producer between two calls of `enqueue`, and should, as a real producer would.
    """

    #: As in the tables; the module's name.
    name: str
    #: Name of the list of requirements, without `.txt`, of which its environment is made; several may share one.
    #: None: the controller's own environment, where the project is installed.
    requirements: str | None
    shapes: Sequence[Shape]
    #: Whether `enqueue` has something to warm up: imports, connections.
    warms = True

    def prepare(self, shape: Shape, place: Place) -> None:  # noqa: B027 - not every contender has a schema
        """Make the schema, or whatever has to exist before the first item. The database and the broker are empty."""

    def ready(self, shape: Shape, place: Place, payloads: Payloads) -> None:  # noqa: B027 - few have use for it
        """What comes before the clock of one `enqueue` starts and is not the system's own work. COPY encodes here."""

    @abstractmethod
    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """Hand over one item per payload, in the way that the documentation recommends for throughput.

        Returns when the system has them all: nothing may be left in a buffer of this process. May be called many times,
        then also with a single payload (latency).
        """

    @abstractmethod
    def workers(self, shape: Shape, place: Place) -> Sequence[Sequence[str]]:
        """The commands that start its workers, one per process to start.

        Use `python("module", ...)` or `script("dramatiq", ...)`: they name programs of the contender's environment. The
        working directory is `place.folder`; `benchmarks` is on PYTHONPATH.
        """

    def environment(self, shape: Shape, place: Place) -> Mapping[str, str]:  # noqa: ARG002 - for adapters
        """Environment variables of its workers and of its producer, beside `Place.environment()`."""
        return {}

    def progress_sql(self, shape: Shape) -> str | None:  # noqa: ARG002 - for adapters
        """One statement that returns how many outcomes PostgreSQL has; asked every 20 ms in W2, so make it cheap."""
        return None

    def exact_sql(self, shape: Shape) -> str | None:  # noqa: ARG002 - for adapters
        """One statement that counts the rows of successful outcomes, however slowly: asked once, at the end."""
        return None

    def enqueued(self, shape: Shape, place: Place) -> int | None:  # noqa: ARG002 - for adapters
        """How many items wait, after `enqueue` and before any worker: to check a submission. None: not known."""
        return None

    def close(self) -> None:  # noqa: B027 - not every contender keeps something open
        """Close what `enqueue` kept open. Called once, at the end of a producing child."""


@dataclass(frozen=True)
class Payloads:
    """So many strings of so many ASCII bytes, all different: `len(payloads)`, and iterable as often as needed."""

    count: int
    size: int

    def __len__(self) -> int:
        """How many there are."""
        return self.count

    def __iter__(self) -> Iterator[str]:
        """Make one after the other; nothing is held."""
        filler = "x" * max(0, self.size - 8)
        for number in range(self.count):
            yield f"{number:08d}{filler}"


#: Stands for the folder of programs of the contender's environment, until the controller knows it.
BIN: Final = "{bin}"


def python(*arguments: str) -> list[str]:
    """A command with the Python of the contender's environment: `python("-m", "celery", ...)`."""
    return [f"{BIN}/python", *arguments]


def script(name: str, *arguments: str) -> list[str]:
    """A command with a console script of the contender's environment."""
    return [f"{BIN}/{name}", *arguments]


def load(name: str) -> Contender:
    """The contender of `benchmarks/contenders/<name>.py`."""
    return cast("Contender", importlib.import_module(f"benchmarks.contenders.{name}").CONTENDER)


def names() -> list[str]:
    """All contenders that there are: the modules that end in `CONTENDER = ...`, in alphabetical order."""
    folder = Path(__file__).parent / "contenders"
    modules = sorted(folder.glob("[a-z]*.py"))
    return [module.stem for module in modules if "\nCONTENDER = " in module.read_text(encoding="utf-8")]


@lru_cache(maxsize=1)
def known() -> tuple[dict[str, Contender], dict[str, str]]:
    """All contenders by name; and those whose module cannot be imported, with the reason."""
    found: dict[str, Contender] = {}
    broken: dict[str, str] = {}
    for name in names():
        try:
            found[name] = load(name)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others can be measured
            broken[name] = f"{type(error).__name__}: {error}"
    return found, broken


def shape_named(contender: Contender, name: str) -> Shape:
    """One of its shapes.

    Raises:
        KeyError: It has none of that name; the message lists those that it has.
    """
    for shape in contender.shapes:
        if shape.name == name:
            return shape
    known = ", ".join(repr(shape.name) for shape in contender.shapes)
    raise KeyError(f"no shape {name!r} of {contender.name}; it has {known}")


def rss() -> int:
    """Bytes of memory that this process has resident."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
