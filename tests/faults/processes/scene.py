"""A stage whose oracle knows what was handed over, and a nemesis that strikes while work goes on."""

from __future__ import annotations

import os
import random
import threading
import uuid
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine import make_url

from tests.acceptance.stage import ONCE, Stage
from tests.faults.oracle import Oracle
from tests.support import eventually
from workers.unacknowledged import copies_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from batching import BatchOptions
    from batching.queue_manager import Batch
    from tests.acceptance.journal import Entry
    from tests.faults.oracle import Verdict
    from tests.nodes import LocalProcess

#: For a test of either way to acknowledge messages: with the pop, and with copies until the claim.
BOTH_WAYS = pytest.mark.parametrize("acknowledge", ["pop", "claim"])
#: Losses in a storm: what runs alone after two of them would make it a test of patience.
MANY = "50"


class Scene(Stage):
    """See the module."""

    @cached_property
    def oracle(self) -> Oracle:
        """Judges the end."""
        return Oracle(self.database, self.publisher)

    @property
    def database_name(self) -> str:
        """As PostgreSQL calls it."""
        return str(make_url(self.url).database)

    def submit(
        self, handler: str, payloads: Mapping[str, Any] | int, options: BatchOptions = ONCE, **more: Any
    ) -> Batch:
        """As a stage does, and the oracle takes note of it."""
        name = str(uuid.uuid4())
        self.oracle.attempt(name, payloads if not isinstance(payloads, int) else [f"p{n}" for n in range(payloads)])
        batch = super().submit(handler, payloads, options, key=name, **more)
        self.oracle.acknowledge(name)
        return batch

    def settled(self, batch: Batch, count: int, timeout: float = 60) -> None:
        """Wait until so many profiles of a batch are settled."""

        def enough() -> None:
            assert batch.progress().settled >= count, f"{batch.progress().as_json()}\n{self.report()}"

        eventually(enough, timeout, 0.05)

    def begun_after(self, known: list[Entry], timeout: float = 30) -> None:
        """Wait until any handler has begun since."""
        eventually(lambda: len(self.entries()) > len(known), timeout)

    def copies(self) -> int:
        """Copies of messages that were popped and not claimed."""
        client: Any = self.publisher.client
        return int(client.zcard(copies_key(self.prefix)))

    def verdict(self, **terms: Any) -> Verdict:
        """Let the oracle judge, and print what it found."""
        found = self.oracle.judge(self.entries(), **terms)
        print(found)  # noqa: T201
        return found

    def handler_processes(self, node: LocalProcess) -> list[int]:
        """The pool children of a worker that have run something."""
        begun = {entry.pid for entry in self.entries()}
        return [pid for pid in node.children if pid in begun]


class Nemesis:
    """Strikes again and again, in a thread of its own, until the test is through; an error of it fails the test.

    Args:
        strike: What it does; gets the dice.
        every: Seconds between two strikes.
    """

    def __init__(self, strike: Callable[[random.Random], object], every: float) -> None:
        self.seed = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(10**6))
        self.strikes = 0
        self._strike = strike
        self._every = every
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._rage, daemon=True)

    def __enter__(self) -> Self:
        print(f"FAULT_SEED={self.seed}")  # noqa: T201
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        if self._failure is not None and kind is None:
            raise self._failure

    def _rage(self) -> None:
        dice = random.Random(self.seed)
        try:
            while not self._over.wait(self._every):
                self._strike(dice)
                self.strikes += 1
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            self._failure = error
