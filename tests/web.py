"""The dashboard for tests: in this process behind a client, or as the real command in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx2 as httpx
from starlette.testclient import TestClient

from batching.queue_manager import QueueManager
from batching.settings import Settings
from batching.web.app import create_app
from batching.web.identity import make_token

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from fastapi import FastAPI

    from batching.database import Database

ROOT = Path(__file__).parent.parent
VIEWER, _VIEWER_ENTRY = make_token("vera", "viewer")
OPERATOR, _OPERATOR_ENTRY = make_token("oscar", "operator")
ENTRIES = (_VIEWER_ENTRY, _OPERATOR_ENTRY)
API = "/api/v1"


def settings_of(database: Database, **more: Any) -> Settings:
    """Settings without a file, with two tokens unless others are given."""
    known: dict[str, Any] = {"database_url": database.url, "web_tokens": ENTRIES, **more}
    return Settings(_env_file=None, **known)


def app_of(database: Database, **more: Any) -> FastAPI:
    """The application."""
    settings = settings_of(database, **more)
    return create_app(QueueManager(database, settings.broker_url, settings), settings)


@contextmanager
def client_of(database: Database, token: str | None = OPERATOR, **more: Any) -> Iterator[TestClient]:
    """A client of the application, in this process; nobody without a token."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    app = app_of(database, **more)
    with TestClient(app, "http://localhost", headers=headers, raise_server_exceptions=False) as client:
        yield client


class Dashboard:
    """`batching dashboard` in a process of its own.

    Args:
        database_url: The store.
        log: File for what it logs.
        arguments: Of the command.
        environment: Beside what every process needs.
    """

    def __init__(
        self, database_url: str, log: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._command = [sys.executable, "-m", "batching.cli.main", "dashboard", "--port", "0", *arguments]
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(log.parent),
            "BATCHING_DATABASE_URL": database_url,
            **(environment or {}),
        }
        self.address = ""

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"dashboard: (http://\S+)/\n", line)
        assert found, f"{line!r}; {self.log.read_text()}"
        self.address = found[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def client(self, token: str | None = None, timeout: float = 30.0) -> httpx.Client:
        """A client; the caller closes it."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=timeout)


class Stream:
    """Reads server-sent events in a thread, as they come."""

    def __init__(self, client: httpx.Client, path: str) -> None:
        self.events: list[tuple[str, str]] = []
        """Kind and data of each."""
        self.ids: list[str] = []
        self.comments = 0
        self.status = 0
        self.ended = threading.Event()
        self._client = client
        self._path = path
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._thread.join(10)

    def of(self, kind: str) -> list[str]:
        """The data of every event of a kind, so far."""
        return [data for each, data in self.events if each == kind]

    def _read(self) -> None:
        try:
            with self._client.stream("GET", self._path) as answer:
                self.status = answer.status_code
                kind = ""
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if not name and value:
                        self.comments += 1
                    elif name == "event":
                        kind = value
                    elif name == "id":
                        self.ids.append(value)
                    elif name == "data":
                        self.events.append((kind, value))
        except (httpx.HTTPError, OSError, RuntimeError):
            pass  # either side has left
        finally:
            self.ended.set()


def seconds_since(start: float) -> float:
    """Monotonic seconds."""
    return time.monotonic() - start
