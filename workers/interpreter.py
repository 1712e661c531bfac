"""How processes of ours are started: by this interpreter, with our packages whatever the current folder holds."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path


def python(module: str, *words: str) -> list[str]:
    """The command that runs one of our modules.

    `-P` keeps the current directory off `sys.path`: a `redis.py`, or a package `workers`, in the user's project would
    otherwise be taken for ours.
    """
    return [sys.executable, "-P", "-m", module, *words]


def environment(**more: str) -> dict[str, str]:
    """This process's environment for such a process, with `more` over it."""
    inherited = {**os.environ, **more}
    root = str(Path(__file__).parent.parent)
    if root not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        # A checkout that is not installed: `-P` hides the current directory, so it has to be named.
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")]))
    return inherited
