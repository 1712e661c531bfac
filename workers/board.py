"""What a pool child and its parent show each other of a bundle on its way: how far it is, what came of it, "no more".

Shared memory, made before the pool forks: a child that is killed leaves behind what it has noted, which no pipe would,
and one that hangs in a handler need not be asked. One cell per bundle. The child alone writes how far it is, the parent
alone whether it shall stop, so nothing is locked.
"""

from __future__ import annotations

import marshal
import mmap
from struct import Struct
from typing import Any, Final

_NUMBER: Final = Struct("=i")  # four aligned bytes: written and read whole
_CELL_HEAD: Final = Struct("=iiii")
#: Where a cell has the index that was begun last, the number of answers kept and their bytes, and whether to stop.
_BEGUN, _KEPT, _HALTED, _ANSWERS = 0, 4, 12, _CELL_HEAD.size
_KEPT_USED: Final = Struct("=ii")
#: Bytes of one cell, which bounds the answers of one bundle, and of all cells. The system gives memory to those alone
#: that were written, and the cell that was returned last is taken next.
_CELL: Final = 131_072
_SIZE: Final = 1_024 * _CELL
#: No cell, and what a cell says before its first run has begun.
NOTHING: Final = -1

_memory: mmap.mmap | None = None
_free: list[int] = []


def open_board() -> None:
    """Make the shared memory, in the parent, before it forks. Repeatable."""
    global _memory  # noqa: PLW0603 - children find it here: what a fork inherits is what modules hold
    if _memory is None:
        _memory = mmap.mmap(-1, _SIZE)
        _free.extend(range(0, _SIZE, _CELL))


# --- in the parent


def take() -> int:
    """A cell for one bundle; negative when there is none: its child then runs the first run alone."""
    try:
        cell = _free.pop()
    except IndexError:
        return NOTHING
    if _memory is not None:
        _CELL_HEAD.pack_into(_memory, cell, NOTHING, 0, 0, 0)
    return cell


def give(cell: int) -> None:
    """Return a cell whose bundle is over."""
    if cell >= 0:
        _free.append(cell)


def halt(cell: int) -> None:
    """Ask the child to begin no further run.

    Some milliseconds later, none begins beyond the one that `begun` says: the child notes before it looks.
    """
    if cell >= 0 and _memory is not None:
        _NUMBER.pack_into(_memory, cell + _HALTED, 1)


def begun(cell: int) -> int:
    """The index of the run that was begun last, or `NOTHING`."""
    return NOTHING if cell < 0 or _memory is None else int(_NUMBER.unpack_from(_memory, cell + _BEGUN)[0])


def answers(cell: int) -> list[Any]:
    """The answers that the child has kept, in the order of the runs."""
    found: list[Any] = []
    if cell < 0 or _memory is None:
        return found
    place = cell + _ANSWERS
    for _ in range(_KEPT_USED.unpack_from(_memory, cell + _KEPT)[0]):
        start = place + _NUMBER.size
        place = start + int(_NUMBER.unpack_from(_memory, place)[0])
        found.append(marshal.loads(_memory[start:place]))  # noqa: S302 - our own child wrote it
    return found


# --- in the child


def begin(cell: int, index: int) -> bool:
    """Note that the run with this index begins; False when the parent wants no more to begin."""
    if cell < 0 or _memory is None:
        return True
    # Note first, then look: whoever halts before the look is obeyed, and whoever halts after it finds the note.
    _NUMBER.pack_into(_memory, cell + _BEGUN, index)
    if _NUMBER.unpack_from(_memory, cell + _HALTED)[0]:
        _NUMBER.pack_into(_memory, cell + _BEGUN, index - 1)
        return False
    return True


def keep(cell: int, answer: tuple[Any, ...]) -> bool:
    """Keep the answer of the run that was begun last; False when there is no room, for this one or any more."""
    if cell < 0 or _memory is None:
        return False
    data = marshal.dumps(answer)
    kept, used = _KEPT_USED.unpack_from(_memory, cell + _KEPT)
    start = cell + _ANSWERS + used
    end = start + _NUMBER.size + len(data)
    if end > cell + _CELL:
        return False
    _NUMBER.pack_into(_memory, start, len(data))
    _memory[start + _NUMBER.size : end] = data
    _KEPT_USED.pack_into(_memory, cell + _KEPT, kept + 1, end - cell - _ANSWERS)  # last: what it counts is complete
    return True
