"""`python -P -m workers ARGS` is `celery -A workers ARGS`, started so that no file of the user's stands in its way.

Handlers are imported from the current directory, so it has to be on `sys.path`. A project may well hold a `celery.py`
or a package `workers` there, which would then be taken for ours. So the names that we stand on are imported first, and
the directory is added afterwards; `-P` keeps Python from adding it earlier.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

#: What a worker is made of. The current directory never gets to answer for these.
_OURS = ("batching", "workers", "kombu", "billiard", "redis", "celery.bin.celery")


def main() -> None:
    """Run Celery's command line for our app."""
    sys.argv = ["celery", "-A", "workers", *sys.argv[1:]]
    celery = import_module("celery")
    # gevent has to patch the standard library before anything else keeps a reference into it.
    celery.maybe_patch_concurrency()
    for name in _OURS:
        import_module(name)
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(import_module("celery.__main__").main())


if __name__ == "__main__":
    main()
