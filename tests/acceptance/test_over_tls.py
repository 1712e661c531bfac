"""A hardened worker, its manager and the verbs over TLS to both servers; and an application that brings its own TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from tests.acceptance.stage import Stage
from tests.tls import Authority, TlsFront

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import PostgresServer, ValkeyServer


class TlsStage(Stage):
    """Every process reaches the servers over TLS; the oracle does by their sockets."""

    urls: dict[str, str]

    def environment(self, **more: str) -> dict[str, str]:
        """What every process on this stage gets."""
        return {**super().environment(), **self.urls, **more}


@pytest.fixture
def encrypted(
    tmp_path: Path, own_valkey: ValkeyServer, key_prefix: str, postgresql_url: str, postgres_server: PostgresServer
) -> Iterator[TlsStage]:
    authority = Authority(tmp_path / "ca")
    certificate = authority.issue("localhost")
    stage = TlsStage(tmp_path, postgresql_url, own_valkey, key_prefix)
    with (
        TlsFront(own_valkey.socket, certificate, clients=authority.certificate) as redis,
        TlsFront(postgres_server.folder / ".s.PGSQL.5432", certificate, postgres=True) as sql,
    ):
        mine, key = authority.issue("worker.example")
        broker = urlencode({"ssl_ca_certs": authority.certificate, "ssl_certfile": mine, "ssl_keyfile": key})
        trusted = urlencode({"sslmode": "verify-full", "sslrootcert": authority.certificate})
        name = postgresql_url.rpartition("?")[0].rpartition("/")[2]
        stage.urls = {
            "BATCHING_BROKER_URL": f"rediss://localhost:{redis.port}/0?{broker}",
            "BATCHING_DATABASE_URL": f"postgresql+psycopg://postgres@localhost:{sql.port}/{name}?{trusted}",
            "BATCHING_HARDENED": "1",
        }
        yield stage
        stage.close()
        assert redis.handshakes >= 4, "lanes, hints, the manager and Celery's own connection"
        assert sql.handshakes >= 2


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_and_its_manager_over_tls(encrypted: TlsStage, pool: str) -> None:
    stage = encrypted
    stage.worker(f"--pool={pool}", "--concurrency=2")

    batch = stage.submit("work", 300)
    stage.finished(batch)

    stage.judge(batch)
    assert "insecure" not in stage.report()
