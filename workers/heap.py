"""What the garbage collector need not look at: all that a process has loaded before its work begins."""

from __future__ import annotations

import gc


def spare_what_is_loaded() -> None:
    """Let no later collection walk over what exists now; repeatable, as more is loaded.

    A collection of the oldest generation walks over every container of the process, and stops all of its threads for
    it: 80 ms in a worker that has loaded Celery and SQLAlchemy, and the first one comes amid the first profiles. What
    is frozen is walked over no more, and children that are forked later share its pages
    (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    gc.collect()
    gc.freeze()
