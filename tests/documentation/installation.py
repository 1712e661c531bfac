"""An installation for the commands of the pages: PostgreSQL, Valkey, a worker, and batches of every kind."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batching.database import Database
from batching.options import BatchOptions
from batching.queue_manager import QueueManager
from batching.settings import Settings
from batching.states import CallbackState
from batching.web.identity import make_token
from tests.documentation.pages import ROOT
from tests.documentation.quick import Quick
from tests.nodes import worker_process
from tests.support import eventually

if TYPE_CHECKING:
    from tests.nodes import LocalProcess
    from tests.servers import PostgresServer, ValkeyServer

#: Signs webhooks; only here.
SECRET: Final = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
#: Modules that the worker imports, and the folders of those that are no part of the tests.
MODULES: Final = ("tests.documentation.handlers", "shipping", "mailing", "imports")
EXAMPLES: Final = ("flask", "django", "fastapi")

#: Two passes, one attempt each, and no pause: it fails within a second, and has a pass to compare with.
_FAILS: Final = BatchOptions(max_attempts=1, max_passes=2, pass_backoff=0, pass_backoff_max=0)
_GOOD: Final = {f"k{number}": {"text": f"text {number}"} for number in range(1, 17)}
#: `k17` fails whenever it runs; the pages speak of it.
_PROFILES: Final = [*_GOOD.items(), ("k17", {"text": None})]
#: Of the batches that fail, so many are made at once: each is tried twice, which takes a while.
_SHOAL: Final = 6


class Installation:
    """What the commands of the pages work with.

    Args:
        folder: For logs.
        postgres: Holds the store.
        template: The database to copy it from.
        valkey: The broker.
    """

    def __init__(self, folder: Path, postgres: PostgresServer, template: str, valkey: ValkeyServer) -> None:
        self._tools = Path(tempfile.mkdtemp(prefix="batching-pages-", dir="/tmp"))
        self._quick = Quick(self._tools)
        curl = self._tools / "curl"
        curl.write_text(f"#!{sys.executable}\n{(ROOT / 'tests' / 'documentation' / 'curl.py').read_text()}")
        curl.chmod(0o755)
        self.url = postgres.url(postgres.create_database(template))
        self.token, entry = make_token("ci", "operator")
        prefix = f"pages-{uuid.uuid4().hex[:8]}:"
        self.variables = {
            "BATCHING_DATABASE_URL": self.url,
            "BATCHING_BROKER_URL": valkey.url,
            "BATCHING_KEY_PREFIX": prefix,
            "BATCHING_WEBHOOK_SECRETS": SECRET,
            "BATCHING_CALLBACK_ATTEMPTS": "1",
            "BATCHING_WEB_TOKENS": entry,
        }
        settings = Settings(database_url=self.url, broker_url=valkey.url, key_prefix=prefix)
        self.queue = QueueManager(Database(self.url), valkey.url, settings)
        self.worker: LocalProcess = worker_process(
            folder,
            {
                **self.variables,
                "BATCHING_HANDLERS": ",".join(MODULES),
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *(ROOT / "examples" / each for each in EXAMPLES)))),
            },
            options=("--pool=prefork", "--concurrency=2"),
        )
        self._failed: list[str] = []

    @property
    def worker_name(self) -> str:
        """As Celery has it."""
        return f"{self.worker.name}@{socket.gethostname()}"

    def start(self) -> None:
        """Start the worker, which starts its manager."""
        self.worker.start()
        # Another batch of the pages waits for it.
        self.queue.submit("rows.load", ["only"], key="imports-17")
        self.worker.ready()

    def close(self) -> None:
        """Stop what was started."""
        self._quick.close()
        shutil.rmtree(self._tools)
        self.worker.stop()
        self.queue.database.close()
        self.queue.close()

    def environment(self, folder: Path, *, embedded: bool = False) -> dict[str, str]:
        """All that a shell on this installation gets.

        Args:
            folder: The shell's own; its home.
            embedded: Without URLs: the embedded default in that folder.
        """
        variables = {} if embedded else self.variables
        return {
            "PATH": os.pathsep.join((str(self._tools), str(Path(sys.executable).parent), "/usr/bin", "/bin")),
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "EDITOR": "true",
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "LANG": "C.UTF-8",
            **dict.fromkeys(("WORKER_PASSWORD", "MANAGER_PASSWORD", "PRODUCER_PASSWORD"), "a-password"),
            **dict.fromkeys(("VIEWER_PASSWORD", "OPERATOR_PASSWORD", "FLOWER_PASSWORD"), "a-password"),
            **variables,
        }

    # --- batches of every kind

    def take(self, kind: str) -> str:
        """The id of a batch (or callback) of a kind, which nobody else has.

        Args:
            kind: `waiting`, `paused`, `open`, `failed`, `succeeded` or `callback` (a dead one).
        """
        makers = {
            "waiting": self._waiting,
            "paused": self._paused,
            "open": self._open,
            "failed": self._failed_twice,
            "succeeded": self._succeeded,
            "callback": self._dead_callback,
        }
        return makers[kind]()

    def fingerprint(self, batch_id: str) -> str:
        """Of what failed in a batch."""
        return self.queue.statistics.failures(batch_id)[0].fingerprint

    def _waiting(self) -> str:
        return self.queue.submit("words.count", _PROFILES, start_at=3600).id

    def _paused(self) -> str:
        batch_id = self._waiting()
        self.queue.pause(batch_id)
        return batch_id

    def _open(self) -> str:
        batch = self.queue.open("words.count")
        batch.append(list(_GOOD.items())[:2])
        return batch.id

    def _succeeded(self) -> str:
        batch = self.queue.submit("words.count", _GOOD.items())
        assert batch.wait(60).state == "succeeded"
        return batch.id

    def _failed_twice(self) -> str:
        if not self._failed:
            made = [self.queue.submit("words.count", _PROFILES, options=_FAILS, name="nightly") for _ in range(_SHOAL)]
            for batch in made:
                view = batch.wait(60)
                assert (view.state, view.failed) == ("failed", 1), view
            self._failed += [batch.id for batch in made]
        return self._failed.pop()

    def _dead_callback(self) -> str:
        options = BatchOptions(on_finish="https://127.0.0.1/hook")  # refused: not a public address
        batch = self.queue.submit("words.count", _GOOD.items(), options=options)

        def dead() -> str:
            told = self.queue.statistics.callbacks(batch.id)
            assert [each.state for each in told] == [CallbackState.DEAD], told
            return told[0].id

        return eventually(dead, 60, 0.05)
