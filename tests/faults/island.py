"""An island: a network of its own for one worker, with one cable to each server, which can be pulled out.

A network namespace is what another machine has: an own stack, own addresses, and nothing but its cables between it and
the servers. The near end of a cable is an address of this machine that a server listens on. A cable that is pulled
swallows what is sent, on both sides, as a switch does that lost its power.

Run as a script, this file starts a program on an island; it needs the standard library alone then.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_CLONE_NEWNET: Final = 0x40000000
#: Where `ip netns` keeps them, too.
_FOLDER: Final = "/var/run/netns"
#: Addresses that RFC 2544 sets aside for tests of networks: none of them is anybody's.
_TEST_NETWORK: Final = (198, 18)
#: Behind the cable's own route, so that what is sent to a pulled cable goes nowhere, and not to the world.
_LAST: Final = 4096


class IslandRefusedError(Exception):
    """The kernel, or whoever runs the tests, allows no network namespaces; the message says which."""


class Cable(NamedTuple):
    """A pair of virtual network cards."""

    name: str
    """Of the near one, and of the far one with an `x` behind it."""
    network: str
    near: str
    """Its address on this machine."""
    far: str
    """Its address on the island."""


class Island:
    """See the module. Use it as a context manager.

    Args:
        *ends: Names of the cables.
    """

    def __init__(self, *ends: str) -> None:
        self.name = f"bq{uuid.uuid4().hex[:8]}"
        third, fourth = random.SystemRandom().randrange(256), random.SystemRandom().randrange(0, 256 - 4 * len(ends), 4)
        self.cables = {}
        for number, end in enumerate(ends):
            base = ".".join(map(str, (*_TEST_NETWORK, third)))
            low = fourth + 4 * number
            cable = Cable(f"{self.name}{number}", f"{base}.{low}/30", f"{base}.{low + 1}", f"{base}.{low + 2}")
            self.cables[end] = cable

    def __enter__(self) -> Self:
        from pyroute2 import netns
        from pyroute2.netlink.exceptions import NetlinkError

        if os.geteuid() != 0:
            raise IslandRefusedError("only root may make network namespaces")
        try:
            netns.create(self.name)
            for cable in self.cables.values():
                self._lay(cable)
        except (NetlinkError, OSError) as error:
            self.__exit__()
            raise IslandRefusedError(f"the kernel makes no network namespace or no cable: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        from contextlib import suppress

        from pyroute2 import netns
        from pyroute2.netlink.exceptions import NetlinkError

        with _routes() as here:
            for cable in self.cables.values():
                with suppress(NetlinkError, IndexError):
                    here.route("del", dst=cable.network, type="blackhole", priority=_LAST)
                with suppress(NetlinkError, IndexError):
                    here.link("del", index=_index(here, cable.name))
        with suppress(OSError):
            netns.remove(self.name)

    def command(self, words: Sequence[str]) -> list[str]:
        """What starts a program on the island."""
        return [sys.executable, __file__, self.name, *words]

    def pull(self, *ends: str) -> None:
        """Pull cables out."""
        self._switch(ends, "down")

    def plug(self, *ends: str) -> None:
        """Plug them in again."""
        self._switch(ends, "up")

    def _switch(self, ends: Sequence[str], state: str) -> None:
        with _routes() as here:
            for end in ends:
                here.link("set", index=_index(here, self.cables[end].name), state=state)

    def _lay(self, cable: Cable) -> None:
        far = f"{cable.name}x"
        with _routes() as here:
            here.link("add", ifname=cable.name, kind="veth", peer={"ifname": far, "net_ns_fd": self.name})
            here.route("add", dst=cable.network, type="blackhole", priority=_LAST)
            _raise(here, cable.name, cable.near)
        with _routes(self.name) as there:
            _raise(there, "lo", None)
            _raise(there, far, cable.far)


def _routes(namespace: str | None = None) -> Any:
    from pyroute2 import IPRoute, NetNS

    return IPRoute() if namespace is None else NetNS(namespace, flags=0)


def _index(routes: Any, name: str) -> int:
    return int(routes.link_lookup(ifname=name)[0])


def _raise(routes: Any, name: str, address: str | None) -> None:
    """Give a card its address, and switch it on."""
    index = _index(routes, name)
    if address is not None:
        routes.addr("add", index=index, address=address, prefixlen=30)
    routes.link("set", index=index, state="up")


def _enter(name: str, words: list[str]) -> None:
    namespace = os.open(f"{_FOLDER}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {name}")
    os.execvp(words[0], words)


if __name__ == "__main__":
    _enter(sys.argv[1], sys.argv[2:])
