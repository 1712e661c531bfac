"""A producing child: runs one verb of one contender in that contender's environment, and prints one line of JSON.

Standard library alone, besides what the contender imports. `python -m benchmarks.producer NAME SHAPE VERB [ARGUMENTS]`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from benchmarks.contender import Payloads, Place, load, rss, shape_named
from benchmarks.journal import STAMP

if TYPE_CHECKING:
    from benchmarks.contender import Contender, Handler, Shape

#: Seconds that one item of the latency run may take, and between two looks at the journal.
_PATIENCE: Final = 30.0
_LOOK: Final = 0.0005


class Producer:
    """What a child does with its contender."""

    def __init__(self, contender: Contender, shape: Shape) -> None:
        self._contender = contender
        self._shape = shape
        self._place = Place.here()

    def prepare(self) -> dict[str, Any]:
        """Make the schema."""
        self._contender.prepare(self._shape, self._place)
        return {}

    def enqueue(self, handler: str, count: str, size: str, warm: str = "0") -> dict[str, Any]:
        """Hand over so many items; memory is resident bytes, before and at the highest point.

        Warm means: some items go before the clock starts, so that it counts neither imports nor connections.
        """
        payloads = Payloads(int(count), int(size))
        already = self._warm_up(handler, int(warm), int(size)) if int(warm) and self._contender.warms else 0
        self._contender.ready(self._shape, self._place, payloads)
        _forget_peak()
        before = rss()
        processor = time.process_time()
        began = time.monotonic_ns()
        self._contender.enqueue(self._shape, self._place, cast("Handler", handler), payloads)
        ended = time.monotonic_ns()
        return {
            "began": began,
            "ended": ended,
            "cpu": time.process_time() - processor,
            "rss_before": before,
            "rss_peak": _peak(),
            "enqueued": self._found(already),
        }

    def _warm_up(self, handler: str, count: int, size: int) -> int:
        payloads = Payloads(count, size)
        self._contender.ready(self._shape, self._place, payloads)
        self._contender.enqueue(self._shape, self._place, cast("Handler", handler), payloads)
        return self._found(0) or 0

    def _found(self, already: int) -> int | None:
        found = self._contender.enqueued(self._shape, self._place)
        return None if found is None else found - already

    def latency(self, count: str, size: str, gap: str, warm: str) -> dict[str, Any]:
        """Submit one item at a time, each after the one before was handled; milliseconds until its handler began."""
        single = Payloads(1, int(size))
        found = []
        for _ in range(int(count) + int(warm)):
            known = self._stamps()
            began = time.monotonic_ns()
            self._contender.enqueue(self._shape, self._place, "stamp", single)
            found.append((self._next_stamp(known) - began) / 1e6)
            time.sleep(float(gap))
        return {"latencies": found[int(warm) :]}

    def _stamps(self) -> int:
        journal = Path(self._place.journal)
        return journal.stat().st_size // STAMP.size if journal.exists() else 0

    def _next_stamp(self, known: int) -> int:
        deadline = time.monotonic() + _PATIENCE
        while self._stamps() <= known:
            if time.monotonic() > deadline:
                raise TimeoutError(f"item {known + 1} was not handled within {_PATIENCE:g} s")
            time.sleep(_LOOK)
        with Path(self._place.journal).open("rb") as journal:
            journal.seek(known * STAMP.size)
            return int(STAMP.unpack(journal.read(STAMP.size))[0])


def _forget_peak() -> None:
    """Let the kernel's record of the highest resident memory start anew (man 5 proc, clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return rss()


def main(name: str, shape: str, verb: str, *arguments: str) -> None:
    """Run a verb and print what came of it."""
    contender = load(name)
    producer = Producer(contender, shape_named(contender, shape))
    verbs = {"prepare": producer.prepare, "enqueue": producer.enqueue, "latency": producer.latency}
    values: dict[str, Any] = cast("Any", verbs[verb])(*arguments)
    contender.close()
    sys.stdout.write(f"\n{json.dumps(values)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
