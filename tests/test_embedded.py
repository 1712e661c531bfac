"""The embedded default: a server that is private, alone in its folder, and gone when its process is gone."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
from kombu import Connection
from sqlalchemy.engine import make_url

from batching.errors import BrokerUnavailableError, ConfigurationError
from tests.servers import ValkeyServer
from tests.support import descendants, eventually, is_running, listening_ports, wait_for_exit
from workers.embedded import EmbeddedServer, embedded_urls, find_running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT = Path(__file__).parent.parent

#: A process that runs a server and, when told so, forks a child which outlives it.
_PARENT = """
import os, signal, sys
from pathlib import Path
from workers.embedded import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]))
server.start()
if sys.argv[2] == "forks" and os.fork() == 0:
    signal.pause()
print(server.pid, server.url, flush=True)
signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def server(home: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(home) as running:
        yield running


@pytest.fixture
def spawn_parent(home: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int]]]:
    """Start another process that runs a server in `home`; returns it and its server's process id."""
    started: list[subprocess.Popen[str]] = []

    def spawn(manner: str = "") -> tuple[subprocess.Popen[str], int]:
        parent = subprocess.Popen(
            [sys.executable, "-c", _PARENT, str(home), manner],
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(parent)
        assert parent.stdout is not None
        pid, _ = parent.stdout.readline().split()
        return parent, int(pid)

    yield spawn
    for parent in started:
        tree = descendants(parent.pid)
        parent.kill()  # and nobody else: the watcher tidies up
        parent.communicate()
        for pid in tree:
            wait_for_exit(pid)


# Start and stop.


def test_it_answers_once_started_and_is_gone_once_stopped(home: Path) -> None:
    server = ValkeyServer(home)
    server.start()
    pid = server.pid
    with server.client() as client:
        assert client.ping()
    server.stop()
    assert not is_running(pid)
    assert not server.socket.parent.exists()
    assert not (home / "broker.url").exists()


def test_start_and_stop_are_repeatable(server: ValkeyServer) -> None:
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    server.start()
    assert server.pid != pid


def test_it_can_be_started_in_a_thread_that_ends(home: Path) -> None:
    server = ValkeyServer(home)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        with server.client() as client:
            assert client.ping()
    finally:
        server.stop()


def test_kombu_reads_its_url(server: ValkeyServer) -> None:
    with Connection(server.url) as connection:
        queue = connection.SimpleQueue("greetings")
        queue.put({"hello": "there"})
        assert queue.get(timeout=5).payload == {"hello": "there"}
        queue.close()


def test_its_data_and_its_url_survive_kill_9_of_the_server(server: ValkeyServer) -> None:
    url = server.url
    with server.client() as client:
        client.rpush("lane", "one", "two")
    server.kill()
    assert not server.running
    server.start()
    assert server.url == url
    with server.client() as client:
        assert client.lrange("lane", 0, -1) == ["one", "two"]


def test_it_never_evicts_and_writes_an_append_only_file_into_the_home(server: ValkeyServer, home: Path) -> None:
    with server.client() as client:
        config = client.config_get("*")
    assert config["maxmemory-policy"] == "noeviction"
    assert (config["appendonly"], config["appendfsync"], config["save"]) == ("yes", "everysec", "")
    assert Path(config["dir"]) == home


def test_a_server_without_a_start_has_no_url(home: Path) -> None:
    with pytest.raises(BrokerUnavailableError, match="never started"):
        _ = EmbeddedServer(home).url


def test_a_server_that_ends_at_once_shows_its_log(home: Path) -> None:
    home.mkdir()
    (home / "appendonlydir").write_text("a file where the folder should be")
    with pytest.raises(BrokerUnavailableError, match=r"(?s)ended with code 1; its log ends so:.*appendonlydir"):
        EmbeddedServer(home).start()
    (home / "appendonlydir").unlink()
    with EmbeddedServer(home) as server:
        assert server.running


# Privacy.


def test_it_listens_on_no_tcp_port_and_only_its_user_reaches_the_socket(server: ValkeyServer) -> None:
    assert listening_ports([server.pid]) == []
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.home.stat().st_mode) == 0o700


def test_a_run_time_folder_with_a_long_path_is_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with ValkeyServer(home) as server:
        assert not server.socket.is_relative_to(deep)
        assert len(os.fsencode(server.socket)) < 104


def test_a_short_run_time_folder_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ValkeyServer(home) as other:
        short = other.socket.parent
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        with ValkeyServer(home.with_name("second")) as server:
            assert server.socket.is_relative_to(short)


def test_a_home_with_a_path_too_long_for_a_socket_does_not_matter(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / ("y" * 120) / "a home") as server:
        assert server.running


# Nothing stays behind.


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_when_its_parent_is_killed(
    spawn_parent: Callable[..., tuple[subprocess.Popen[str], int]], home: Path, number: signal.Signals
) -> None:
    parent, pid = spawn_parent()
    url = find_running(home)
    assert url is not None
    parent.send_signal(number)
    parent.wait(10)
    wait_for_exit(pid)
    eventually(lambda: not (home / "broker.url").exists())
    eventually(lambda: not Path(url.removeprefix("redis+socket://").partition("?")[0]).parent.exists())


def test_a_forked_child_of_the_dead_parent_does_not_keep_the_server(
    spawn_parent: Callable[..., tuple[subprocess.Popen[str], int]],
) -> None:
    parent, pid = spawn_parent("forks")
    watcher = psutil.Process(pid).ppid()
    forked = next(child for child in psutil.Process(parent.pid).children() if child.pid != watcher)
    try:
        parent.kill()
        parent.wait(10)
        wait_for_exit(pid)
        assert is_running(forked.pid)
    finally:
        forked.kill()


def test_a_frozen_server_ends_with_its_parent_too(
    spawn_parent: Callable[..., tuple[subprocess.Popen[str], int]],
) -> None:
    parent, pid = spawn_parent()
    os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait(10)
    wait_for_exit(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_the_server_ends_when_its_watcher_is_killed(server: ValkeyServer) -> None:
    pid = server.pid
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    wait_for_exit(pid)
    server.start()
    assert server.pid != pid


def test_a_new_server_waits_for_the_one_that_a_killed_process_left(
    spawn_parent: Callable[..., tuple[subprocess.Popen[str], int]], home: Path
) -> None:
    parent, pid = spawn_parent()
    parent.kill()
    parent.wait(10)
    with ValkeyServer(home) as server:
        assert server.pid != pid
        assert not is_running(pid)


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(server: ValkeyServer) -> None:
    for pid in (server.pid, psutil.Process(server.pid).ppid()):
        assert os.getsid(pid) != os.getsid(0)
        assert os.getpgid(pid) != os.getpgid(0)


def test_ctrl_c_ends_the_parent_first_and_the_server_after_it(
    spawn_parent: Callable[..., tuple[subprocess.Popen[str], int]],
) -> None:
    parent, pid = spawn_parent()
    parent.send_signal(signal.SIGINT)
    assert parent.wait(10) != 0
    wait_for_exit(pid)


# One server per home folder.


def test_a_second_process_is_told_which_one_has_the_folder(
    spawn_parent: Callable[..., tuple[subprocess.Popen[str], int]], home: Path
) -> None:
    parent, pid = spawn_parent()
    with pytest.raises(ConfigurationError, match=rf"{home}: process {parent.pid} has one"):
        EmbeddedServer(home).start()
    assert is_running(pid)
    assert find_running(home) is not None


def test_the_folder_is_free_as_soon_as_stop_returns(server: ValkeyServer, home: Path) -> None:
    server.stop()
    with EmbeddedServer(home) as second:
        assert second.running


def test_two_folders_have_two_servers(server: ValkeyServer, tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "second") as second:
        assert second.url != server.url
        with second.client() as client:
            client.set("key", "second")
        with server.client() as client:
            assert client.get("key") is None


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigurationError, match=f"cannot use {blocked}/home as home folder"):
        EmbeddedServer(blocked / "home").start()


# Finding what runs.


def test_a_running_server_is_found_and_a_stopped_one_is_not(server: ValkeyServer, home: Path) -> None:
    assert find_running(home) == server.url
    assert embedded_urls(home).broker_url == server.url
    server.stop()
    assert find_running(home) is None


def test_a_left_over_url_is_not_believed(server: ValkeyServer, home: Path) -> None:
    text = (home / "broker.url").read_text()
    server.stop()
    (home / "broker.url").write_text(text)
    assert find_running(home) is None


def test_a_server_that_does_not_answer_is_not_found(server: ValkeyServer, home: Path) -> None:
    server.freeze()
    assert find_running(home) is None
    server.thaw()
    assert find_running(home) == server.url


def test_a_home_where_nothing_ever_ran_has_no_broker(tmp_path: Path) -> None:
    urls = embedded_urls(tmp_path)
    assert urls.broker_url is None
    assert make_url(urls.database_url).database == str(tmp_path / "batching.db")
    assert list(tmp_path.iterdir()) == []


def test_the_database_url_survives_odd_characters_in_the_home(tmp_path: Path) -> None:
    home = tmp_path / "50% off, ümlaut"
    assert make_url(embedded_urls(home).database_url).database == str(home / "batching.db")


def test_a_stranger_on_the_socket_path_is_no_server(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        (home / "broker.url").write_text(f"redis+socket://{path}?virtual_host=0\n")
        assert find_running(home) is None


def test_a_client_sees_a_stopped_server_as_away(server: ValkeyServer) -> None:
    client = server.client()
    server.stop()
    with client, pytest.raises(redis.ConnectionError):
        client.ping()
