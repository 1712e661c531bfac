"""What producers of asynchronous systems share: one event loop for all calls, as in a real asynchronous producer."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.contender import Contender, Handler, Payloads, Place, Shape

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator

Value = TypeVar("Value")
#: Calls that are in flight together, where a system has no bulk call and is asynchronous.
TOGETHER = 1_000


class AsynchronousContender(Contender):
    """A contender whose producer is a coroutine. `close` ends its loop."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None

    @abstractmethod
    async def aenqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """What `enqueue` runs."""

    async def aclose(self) -> None:
        """Disconnect; runs only if something ran before."""

    def enqueue(self, shape: Shape, place: Place, handler: Handler, payloads: Payloads) -> None:
        """Run `aenqueue` in the loop of this process."""
        self.run(self.aenqueue(shape, place, handler, payloads))

    def run(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine in the loop of this process."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Disconnect, then end the loop."""
        if self._runner is not None:
            self._runner.run(self.aclose())
            self._runner.close()
            self._runner = None


def chunks(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Lists of `size` values, the last one shorter."""
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk


async def gather(call: Callable[[str], Awaitable[object]], payloads: Payloads) -> None:
    """Call for each payload, `TOGETHER` of them in flight."""
    for chunk in chunks(payloads, TOGETHER):
        await asyncio.gather(*[call(payload) for payload in chunk])
