"""The hardened profile: no URL that others could read or answer, no remote control, no events."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from batching.cli.main import cli
from batching.errors import ConfigurationError
from batching.hardening import broker_flaw, database_flaw
from batching.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOW = (
    "import json; from workers.celery import app; c = app.conf; "
    "print(json.dumps([c.worker_enable_remote_control, c.broker_transport_options['ack_emulation'], "
    "c.worker_send_task_events, str((c.broker_use_ssl or {}).get('ssl_cert_reqs'))]))"
)


@pytest.mark.parametrize(
    ("url", "flaw"),
    [
        ("rediss://:p@h/0?ssl_ca_certs=/ca.pem", None),
        ("rediss://h", None),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED", None),
        ("redis+socket:///run/valkey.sock?virtual_host=0", None),
        ("redis://localhost/0", "is not encrypted"),
        ("valkey://h/0?ssl_cert_reqs=required", "is not encrypted"),
        ("rediss://h?ssl_cert_reqs=none", "does not verify the server's certificate"),
        ("rediss://h?ssl_cert_reqs=optional", "does not verify the server's certificate"),
        ("rediss://h?ssl_check_hostname=False", "does not verify the server's name"),
    ],
)
def test_brokers(url: str, flaw: str | None) -> None:
    found = broker_flaw(url)

    assert found is flaw if flaw is None else str(found).startswith(flaw)


@pytest.mark.parametrize(
    ("url", "flawed"),
    [
        ("postgresql+psycopg://u:p@h/d?sslmode=verify-full&sslrootcert=/ca.pem", False),
        ("postgresql+psycopg://u@/d?host=/run/postgresql", False),
        ("postgresql://u@%2Frun%2Fpostgresql/d", False),
        ("sqlite:////var/lib/batching.db", False),
        ("postgresql+psycopg://u:p@h/d", True),
        ("postgresql+psycopg://u:p@localhost/d?sslmode=require", True),
        ("postgresql+psycopg://u:p@h/d?sslmode=verify-ca", True),
        ("postgresql+psycopg:///d", True),
        ("postgresql+psycopg://u@/d?host=/run/postgresql,h", True),
    ],
)
def test_databases(url: str, flawed: bool) -> None:
    assert (database_flaw(url) is not None) is flawed


def test_a_url_that_does_not_fit_is_refused_without_being_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHING_DATABASE_URL", "postgresql+psycopg://u:canary-word@h/d")

    assert get_settings().database_url
    get_settings.cache_clear()
    monkeypatch.setenv("BATCHING_HARDENED", "1")
    with pytest.raises(ConfigurationError, match=r"BATCHING_DATABASE_URL.*sslmode=verify-full") as told:
        get_settings()
    assert "canary-word" not in str(told.value)


def test_neither_does_the_command_line_take_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHING_HARDENED", "1")

    result = CliRunner().invoke(cli, ["--broker", "redis://u:canary-word@h/0", "list"])

    assert result.exit_code == 2
    assert "is not encrypted" in result.stderr
    assert "canary-word" not in result.output


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"BATCHING_BROKER_URL": "redis://h/0"}, [True, True, False, "None"]),
        ({"BATCHING_BROKER_URL": "rediss://h/0"}, [True, True, False, "2"]),
        ({"BATCHING_BROKER_URL": "rediss://h/0", "BATCHING_HARDENED": "1"}, [False, False, False, "2"]),
    ],
)
def test_what_workers_are_configured_with(
    environment: Mapping[str, str], expected: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    shown = subprocess.run([sys.executable, "-c", _SHOW], capture_output=True, text=True, check=True).stdout

    assert json.loads(shown) == expected
