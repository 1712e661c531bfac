"""What every contender's handlers do: the same few system calls. Standard library alone; imported in all environments.

A handler leaves a mark in one file on tmpfs: a byte per executed item, or a clock reading of eight bytes. The
controller reads the file's size, so counting costs the contender one `write` of about half a microsecond.

The first handler of every executing process waits at a gate until the controller opens it, when all processes of the
contender have arrived. So booting is in nobody's figures, and two processes start together.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from typing import Final

#: Seconds that `sleep50` takes.
NAP: Final = 0.05
#: Bytes of one record of `stamp`: nanoseconds of the machine's monotonic clock, which all processes share.
STAMP: Final = struct.Struct("<q")

_file = -1
_LOOK: Final = 0.002
_PATIENCE: Final = 60.0


def noop() -> None:
    """Append one byte."""
    os.write(_file if _file >= 0 else _arrive(), b".")


def sleep50() -> None:
    """Sleep for 50 ms as blocking work does, then append one byte."""
    file = _file if _file >= 0 else _arrive()
    time.sleep(NAP)
    os.write(file, b".")


async def asleep50() -> None:
    """Sleep for 50 ms as asynchronous work does, then append one byte."""
    file = _file if _file >= 0 else _arrive()
    await asyncio.sleep(NAP)
    os.write(file, b".")


def stamp() -> None:
    """Append the time at which the handler began."""
    now = time.monotonic_ns()
    os.write(_file if _file >= 0 else _arrive(), STAMP.pack(now))


def _arrive() -> int:
    """Open the journal, tell the controller that this process is here, and wait until it opens the gate.

    Blocks the whole process, an event loop included, as long as the gate is closed: that is the point. Threads that
    come here together each open a descriptor of their own, once.
    """
    global _file  # noqa: PLW0603 - one journal per process is what this module is
    path = os.environ["BENCH_JOURNAL"]
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    arrived = os.open(f"{path}.arrived", flags, 0o666)
    os.write(arrived, f"{os.getpid()}\n".encode())
    os.close(arrived)
    deadline = time.monotonic() + _PATIENCE
    while not os.path.exists(f"{path}.gate") and time.monotonic() < deadline:  # noqa: PTH110 - no imports for this
        time.sleep(_LOOK)
    _file = os.open(path, flags, 0o666)
    return _file
