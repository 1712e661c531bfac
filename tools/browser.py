"""The browser of the tests: finds one, and as root on Debian installs its `chromium` when there is none.

    python -m tools.browser

Prints where it is, or what to do. It always ends with 0: without a browser, the tests that need one fail, in the same
words, and all others run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Final

#: Names another one.
VARIABLE: Final = "BATCHING_TEST_BROWSER"
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
#: Fonts too: without any, a page has no text, and so no width.
_PACKAGES: Final = ("chromium", "fonts-dejavu-core")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS: Final = 600


def find() -> str | None:
    """The program of a Chromium, or None."""
    named = os.environ.get(VARIABLE)
    if named:
        return shutil.which(named)
    path = os.pathsep.join([os.environ.get("PATH", ""), _PATH])
    return next((found for name in _NAMES if (found := shutil.which(name, path=path))), None)


def advice() -> str:
    """What to do when there is none."""
    if named := os.environ.get(VARIABLE):
        return f"cannot run the browser tests: {VARIABLE} names {named!r}, which is no program here"
    return (
        "cannot run the browser tests: there is no Chromium here, and it could not be installed; install Debian's "
        f"`chromium` (`apt-get install {' '.join(_PACKAGES)}`), or name another one with {VARIABLE}=/path/to/chromium"
    )


def install() -> str:
    """Let apt-get install it.

    Returns:
        What went wrong; empty when nothing did.
    """
    apt = shutil.which("apt-get", path=_PATH)
    if apt is None:
        return "there is no apt-get"
    if os.geteuid() != 0:
        return "only root installs packages"
    environment = os.environ | {"PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    install = [apt, "install", "--quiet=2", "--yes", "--no-install-recommends", *_PACKAGES]
    for command in ([apt, "update", "--quiet=2"], install):
        try:
            done = subprocess.run(  # noqa: S603 - all words are our own
                command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"`{' '.join(command)}` did not end within {_SECONDS} s"
        if done.returncode:
            return f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}"
    return ""


def main() -> None:
    """Find or install it, and say so."""
    found = find()
    if found is None and os.environ.get(VARIABLE) is None:
        print("installing chromium for the browser tests", file=sys.stderr)  # noqa: T201 - this is a command
        why = install()
        found = find()
        if why:
            print(f"chromium could not be installed: {why}", file=sys.stderr)  # noqa: T201 - as above
    print(found or advice(), file=sys.stderr)  # noqa: T201 - as above


if __name__ == "__main__":
    main()
