"""The `batching` command without its start: a process that has imported it forks for each call.

Most of the time of a call is imports, and a page has dozens of calls. The child is a process of its own, with the
arguments, folder, environment and streams of its caller; it runs what the console script runs.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

from tests.documentation.pages import ROOT
from tests.support import eventually
from workers.tether import Tether

if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn

#: What stands in the caller's PATH. It imports little: it is started for each call.
_CALLER = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({path!r})
    said = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(line, [len(said).to_bytes(4, "big")], [0, 1, 2])
    line.sendall(said)
    answer = line.recv(1)
sys.exit(answer[0] if answer else 70)
"""


class Quick:
    """The process that forks, and the folder with the command that calls it.

    Args:
        folder: For the command; short, since a socket is in it.
    """

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "line"
        command = folder / "batching"
        command.write_text(_CALLER.format(python=sys.executable, path=str(self._socket)))
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
        self._tether = Tether(
            [sys.executable, "-m", "tests.documentation.quick", str(self._socket)],
            log=folder / "log",
            environment=environment,
        )
        eventually(self._socket.exists, 60)

    def close(self) -> None:
        """End it."""
        self._tether.stop()


def _serve(path: str) -> NoReturn:
    from batching.cli.main import VERBS

    for place in VERBS.values():
        importlib.import_module(place.partition(":")[0])
    importlib.import_module("batching.migration")
    importlib.import_module("psycopg")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that ended leave nothing behind
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(16)
        while True:
            line, _ = door.accept()
            with line:
                if not os.fork():
                    door.close()
                    _answer(line)


def _answer(line: socket.socket) -> NoReturn:
    code = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, streams, _, _ = socket.recv_fds(line, 4, 3)
        arguments, folder, environment = json.loads(_read(line, int.from_bytes(size, "big")))
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        code = _call(arguments)
    finally:
        line.sendall(bytes([code]))
        os._exit(code)


def _call(arguments: list[str]) -> int:
    from batching.cli.main import main

    sys.argv = ["batching", *arguments]
    code: Any = 0
    try:
        main()
    except SystemExit as left:
        code = left.code
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def _read(line: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += line.recv(size - len(found))
    return found


if __name__ == "__main__":
    _serve(sys.argv[1])
