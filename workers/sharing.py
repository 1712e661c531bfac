"""How threads share the interpreter: the more of them there are, the shorter are their turns."""

from __future__ import annotations

import sys
from typing import Final

#: Seconds in which each of them has had a turn, about; and those of one turn at least, since changing takes time, too.
_ROUND: Final = 0.05
_SHORTEST: Final = 0.0002


def share_interpreter(threads: int) -> None:
    """Shorten the turns of threads that compute, so that the consumer's has its own soon enough among so many.

    A thread that waits for the interpreter has it after the others' turns, each of `sys.getswitchinterval`: 5 ms by
    default, so half a second behind a hundred threads, again and again in one sign of life; a worker whose handlers
    compute was declared dead for it. Turns that somebody made shorter still are left as they are.

    Args:
        threads: Handlers that can run at once.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), max(_SHORTEST, _ROUND / threads)))
