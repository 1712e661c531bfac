"""Canaries: passwords are shown nowhere; payloads and results nowhere but where they belong."""

from __future__ import annotations

import base64
import contextlib
import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from sqlalchemy import make_url, select

from batching.models import metadata
from tests.acceptance.guarded_stage import GuardedStage
from tests.acceptance.stage import ONCE
from tests.guarded import USERS, GuardedValkey
from tests.sql_roles import install
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import PostgresServer

SQL_PASSWORD = "canary-sql-5f1e"
REDIS_PASSWORD = "canary-redis-77ab"
PAYLOAD = "canary-payload-c04d"


class Traffic(threading.Thread):
    """Everything that Redis is told, with the bodies of messages decoded."""

    def __init__(self, client: Any) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._lines: list[str] = []
        self.watching = threading.Event()

    def run(self) -> None:
        with contextlib.suppress(redis.RedisError, OSError, ValueError), self._client.monitor() as monitor:
            self.watching.set()
            for entry in monitor.listen():
                self._lines.append(entry["command"])

    @property
    def text(self) -> str:
        """What was said so far."""
        raw = "\n".join(self._lines)
        bodies = [base64.b64decode(found).decode(errors="replace") for found in set(_BODY.findall(raw))]
        return "\n".join([raw, *bodies])


_BODY = re.compile(r'body[\\": ]+([A-Za-z0-9+/]{8,}={0,2})[\\"]')


class SecretStage(GuardedStage):
    """A stage whose every password is a canary."""

    def environment(self, **more: str) -> dict[str, str]:
        """As every stage's, with a password for SQL, too."""
        found = super().environment(**more)
        url = make_url(found["BATCHING_DATABASE_URL"]).set(password=SQL_PASSWORD)
        return {
            **found,
            "BATCHING_DATABASE_URL": url.render_as_string(hide_password=False),
            "BATCHING_HANDLERS": "tests.acceptance.leaky",
        }


@pytest.fixture
def secret(tmp_path: Path, key_prefix: str, postgres_server: PostgresServer) -> Iterator[SecretStage]:
    passwords = dict.fromkeys(USERS, REDIS_PASSWORD)
    with GuardedValkey(tmp_path / "valkey", passwords) as valkey:
        valkey.guard("users-with-flower.acl", key_prefix)
        stage = SecretStage(tmp_path, install(postgres_server), valkey, key_prefix, hardened=False)
        with stage.acting_as("manager"):
            stage.manager()
        yield stage
        stage.close()


@pytest.mark.timeout(360)  # it starts some thirty processes, one after the other
def test_canaries_are_shown_nowhere(secret: SecretStage, postgres_server: PostgresServer) -> None:
    stage = secret
    traffic = Traffic(stage.guarded.admin())
    traffic.start()
    assert traffic.watching.wait(10)
    # Given a worker that tells all it can, and batches that end in every way
    stage.worker("--pool=prefork", "--concurrency=2", "-E", "--loglevel=DEBUG", BATCHING_LOG_FORMAT="json")
    keys = ["plain", "unfit", "huge", "retry"]
    ends = [
        stage.queue.submit(f"leaky.{handler}", [(key, PAYLOAD) for key in keys], options=replace(ONCE, max_attempts=2))
        for handler in ("answer", "fail", "end")
    ]
    for batch in ends:
        stage.finished(batch)
    # When everybody is asked about everything
    said = {"traffic": traffic.text, "titles": titles(stage)}
    for batch in ends:
        said[f"show {batch.id}"] = output(stage, "viewer", "show", batch.id)
        said[f"failures {batch.id}"] = output(stage, "viewer", "failures", batch.id, "--json")
    said["show --profile"] = output(stage, "viewer", "show", ends[-1].id, "--profile", "unfit", "--json")
    looks = (["workers"], ["top", "--once"], ["top", "--json"], ["health", "--live"])
    for words in (["list", "--json"], ["doctor"], ["health"], ["--debug", "show", "unknown"], *looks):
        said[" ".join(words)] = output(stage, "viewer", *words)
    said["no role, debug"] = output(stage, "viewer", "--debug", "cancel", ends[0].id)
    for asked in ("active", "stats", "conf", "report", "batching_window", "batching_worker"):
        said[f"inspect {asked}"] = output(stage, "flower", "-A", "workers", "inspect", asked, module="celery")
    results = [output(stage, "viewer", "results", batch.id) for batch in ends]
    stored = {canary: where_stored(stage, canary) for canary in (PAYLOAD, SQL_PASSWORD, REDIS_PASSWORD)}
    # And both servers fail under the processes
    with trouble(stage, postgres_server):
        said["health, without SQL"] = output(stage, "viewer", "health")
        said["debug, without SQL"] = output(stage, "viewer", "--debug", "list")
        eventually(lambda: "database is" in logs(stage, "manager"), 20)
    stage.guarded.stop()
    (stage.folder / "more.txt").write_text(PAYLOAD)
    said["submit, without Redis"] = output(stage, "operator", "submit", "leaky.answer", str(stage.folder / "more.txt"))
    said["doctor, without Redis"] = output(stage, "viewer", "doctor")
    said["debug, without Redis"] = output(stage, "operator", "--debug", "doctor", "--fix")
    said["inspect, without Redis"] = output(stage, "flower", "-A", "workers", "inspect", "ping", module="celery")
    eventually(
        lambda: "broker is away" in logs(stage, "manager") and "Lost the lanes' broker" in logs(stage, "worker"), 20
    )
    said |= {f"log of {node.name}": node.logs() for node in stage.nodes}
    # Then no password is anywhere, and no payload but in results
    for canary in (SQL_PASSWORD, REDIS_PASSWORD, PAYLOAD):
        assert [
            f"{where}: {line}" for where, text in said.items() for line in text.splitlines() if canary in line
        ] == []
    assert [PAYLOAD in text for text in results] == [True, False, True]
    assert not any(SQL_PASSWORD in text or REDIS_PASSWORD in text for text in results)
    assert stored == {PAYLOAD: {"profiles.payload", "profiles.result"}, SQL_PASSWORD: set(), REDIS_PASSWORD: set()}
    # And the search could have found something: all of these speak of the batches
    for where in ("traffic", "list --json", f"show {ends[0].id}"):
        assert ends[0].id in said[where], where
    assert "task-succeeded" in said["traffic"]
    assert "broker_url" in said["inspect conf"], said["inspect conf"]
    assert "credit" in said["inspect batching_window"], said["inspect batching_window"]
    assert ends[0].id in said["top --json"]
    assert f'"batch": "{ends[0].id}"' in logs(stage, "worker"), "in JSON, its log says of each run which it was"


@contextlib.contextmanager
def trouble(stage: GuardedStage, server: PostgresServer) -> Iterator[None]:
    """A database that lets nobody in, and ends whoever is inside."""
    name = str(make_url(stage.url).database)
    with server.connect() as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        server.disconnect(name)
        try:
            yield
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


def output(stage: GuardedStage, part: str, *words: str, module: str = "batching.cli.main") -> str:
    done = stage.verb(part, *words, module=module)
    return done.stdout + done.stderr


def logs(stage: GuardedStage, kind: str) -> str:
    return "".join(node.logs() for node in stage.nodes if node.name.startswith(kind))


def titles(stage: GuardedStage) -> str:
    """What `ps` shows of every process of ours."""
    return "\n".join(" ".join(process.info["cmdline"] or ()) for process in stage.processes())


def where_stored(stage: GuardedStage, canary: str) -> set[str]:
    found: set[str] = set()
    with stage.database.read() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)).mappings():
                found |= {f"{table.name}.{name}" for name, value in row.items() if canary in str(value)}
    return found


def test_a_manager_that_fails_does_not_show_its_variables(secret: SecretStage, postgres_server: PostgresServer) -> None:
    stage = secret
    eventually(lambda: stage.leader()[0])
    with postgres_server.connect(str(make_url(stage.url).database)) as admin:
        admin.execute("REVOKE ALL ON leases FROM batching_worker")

    eventually(lambda: "turn failed" in logs(stage, "manager"), 20)
    text = logs(stage, "manager")
    assert "NotPermittedError" in text
    assert "locals" not in text
    assert SQL_PASSWORD not in text
    assert REDIS_PASSWORD not in text
