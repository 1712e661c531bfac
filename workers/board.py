"""Where pool children note which run of their bundle they are at, so that the parent knows it when one dies.

Shared memory, made before the pool forks: a child that is killed leaves its last note behind, which no pipe would. One
cell per bundle; the child alone writes while it works, the parent alone before and after, so nothing is locked.
"""

from __future__ import annotations

import mmap
from struct import Struct
from typing import Final

_CELL: Final = Struct("=i")  # four aligned bytes: written and read whole
_SIZE: Final = 16_384
#: What a cell says before its first run has begun.
NOTHING: Final = -1

_memory: mmap.mmap | None = None
_free: list[int] = []


def open_board() -> None:
    """Make the shared memory, in the parent, before it forks. Repeatable."""
    global _memory  # noqa: PLW0603 - children find it here: what a fork inherits is what modules hold
    if _memory is None:
        _memory = mmap.mmap(-1, _SIZE)
        _free.extend(range(0, _SIZE, _CELL.size))


def take() -> int:
    """A cell for one bundle; negative when there is none."""
    if _memory is None or not _free:
        return NOTHING
    cell = _free.pop()
    _CELL.pack_into(_memory, cell, NOTHING)
    return cell


def give(cell: int) -> None:
    """Return a cell whose bundle is over."""
    if cell >= 0:
        _free.append(cell)


def note(cell: int, index: int) -> None:
    """The run with this index begins; in the child."""
    if cell >= 0 and _memory is not None:
        _CELL.pack_into(_memory, cell, index)


def read(cell: int) -> int:
    """The index of the run that was begun last, or `NOTHING`; in the parent."""
    if cell < 0 or _memory is None:
        return NOTHING
    return int(_CELL.unpack_from(_memory, cell)[0])
