"""One webhook: what is signed, where it may go, and how long it may take; then the courier that sends them."""

from __future__ import annotations

import base64
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from batching.callbacks import TOLERANCE, signature_headers, verify
from batching.errors import ConfigurationError
from batching.models import callbacks
from batching.settings import Settings
from tests.accounting import Desk
from tests.receiver import Receiver, make_certificate
from tests.support import eventually
from workers.courier import Courier
from workers.webhooks import DeliveryError, Rules, is_public, resolve, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batching.database import Database

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NEXT_SECRET = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
LOCAL = Rules(5.0, allow_http=True, allow_private=True)


# --- the signature


def test_it_is_signed_as_standard_webhooks_has_it() -> None:
    """The example of the specification's own reference implementation."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    headers = signature_headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert verify([secret], headers, body, now=1614265330 + TOLERANCE)


def test_a_signature_fits_one_body_one_time_and_one_secret() -> None:
    headers = signature_headers([SECRET], "id", 1_000_000, b"{}")
    assert not verify([SECRET], headers, b"{ }", now=1_000_000)
    assert not verify([SECRET], headers, b"{}", now=1_000_000 + TOLERANCE + 1)
    assert not verify([NEXT_SECRET], headers, b"{}", now=1_000_000)
    assert not verify([SECRET], {**headers, "webhook-timestamp": "1000001"}, b"{}", now=1_000_000)
    assert not verify([SECRET], {}, b"{}", now=1_000_000)


def test_two_secrets_sign_while_one_replaces_the_other() -> None:
    headers = signature_headers([NEXT_SECRET, SECRET], "id", 5, b"{}")
    assert verify([SECRET], headers, b"{}", now=5)
    assert verify([NEXT_SECRET], headers, b"{}", now=5)


@pytest.mark.parametrize("secret", ["plain", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!"])
def test_a_secret_that_is_none_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="BATCHING_WEBHOOK_SECRETS") as refused:
        signature_headers([secret], "id", 5, b"{}")
    assert "c2hvcnQ" not in str(refused.value)
    assert SECRET not in repr(Settings(webhook_secrets=SECRET))


# --- where it may go


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fe80::1%lo", "fd00:ec2::254", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "127.1", "::1"])
def test_a_host_of_this_machine_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(DeliveryError, match="not public; BATCHING_WEBHOOK_ALLOW_PRIVATE"):
        resolve(host, 443, allow_private=False)


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let host names resolve to these addresses, one answer after the other; returns what was asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def answer(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host.replace(".", "").isdigit():
            return real(host, port, *rest, **more)
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_a_host_with_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, ["93.184.216.34", "10.0.0.7"])
    with pytest.raises(DeliveryError, match=r"at 10\.0\.0\.7, which is not public"):
        resolve("mixed.example.org", 443, allow_private=False)


def test_a_name_is_resolved_once_and_its_address_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: public when it is looked at, and another a moment later."""
    with Receiver() as receiver, socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.2", receiver.port))
        asked = names(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        send(receiver.url(host="hooks.example.org"), b"{}", {}, LOCAL)
    assert asked == ["hooks.example.org"]
    assert receiver.requests[0].headers["host"] == f"hooks.example.org:{receiver.port}"


def test_http_is_refused_unless_allowed() -> None:
    with Receiver() as receiver, pytest.raises(DeliveryError, match="BATCHING_WEBHOOK_ALLOW_HTTP"):
        send(receiver.url(), b"{}", {}, Rules(allow_private=True))
    assert receiver.requests == []


def test_tls_is_verified_for_the_name_in_the_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "hooks.example.org")
    names(monkeypatch, ["127.0.0.1"])
    with Receiver(certificate=certificate) as receiver:
        with pytest.raises(DeliveryError, match="self-signed certificate"):
            send(receiver.url(host="hooks.example.org"), b"{}", {}, LOCAL)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(DeliveryError, match="mismatch"):
            send(receiver.url(host="other.example.org"), b"{}", {}, LOCAL)
        assert receiver.requests == []
        send(receiver.url("/a?b=c", host="hooks.example.org"), b'{"a":1}', {"webhook-id": "7"}, LOCAL)
    [request] = receiver.requests
    assert (request.path, request.document, request.headers["webhook-id"]) == ("/a?b=c", {"a": 1}, "7")
    assert request.headers["content-type"] == "application/json"


# --- what counts as delivered, and for how long it is waited


@pytest.mark.parametrize("status", [400, 404, 410, 500, 503])
def test_anything_but_2xx_is_a_failure(status: int) -> None:
    with Receiver(status) as receiver, pytest.raises(DeliveryError, match=rf"answered {status} \w+"):
        send(receiver.url(), b"{}", {}, LOCAL)


def test_a_redirect_is_not_followed() -> None:
    with Receiver(307) as receiver, Receiver() as target:
        receiver.headers = {"Location": target.url()}
        with pytest.raises(DeliveryError, match="307 Temporary Redirect; redirects are not followed"):
            send(receiver.url(), b"{}", {}, LOCAL)
    assert target.requests == []


def test_nobody_there_is_a_failure() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(DeliveryError, match="ConnectionRefusedError"):
            send(f"http://127.0.0.1:{bound.getsockname()[1]}/", b"{}", {}, LOCAL)


def _drip(connection: socket.socket) -> None:
    """Send one byte of a header now and then, each in time; for ever."""
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    try:
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)  # not waited for: it is the pace of a receiver that never ends
    except OSError:
        pass  # it hung up


def _stay_silent(connection: socket.socket) -> None:
    connection.recv(1)


@contextmanager
def receiving(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a receiver that treats its one connection in a way of its own, and holds it open."""
    with ExitStack() as held, socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            serve(held.enter_context(server.accept()[0]))

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("serve", [_drip, _stay_silent])
def test_the_time_limit_holds_whatever_the_receiver_does(serve: Callable[[socket.socket], None]) -> None:
    with receiving(serve) as url:
        began = time.monotonic()
        with pytest.raises(DeliveryError, match=r"longer than 0\.4 s"):
            send(url, b"{}", {}, Rules(0.4, True, True))
        assert time.monotonic() - began < 2


def test_the_time_limit_says_so_when_the_socket_comes_before_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that is busy, the thread of the timer may wake late."""
    timer = threading.Timer
    monkeypatch.setattr("workers.webhooks.threading.Timer", lambda seconds, cut: timer(60 + seconds, cut))
    with receiving(_stay_silent) as url, pytest.raises(DeliveryError, match=r"longer than 0\.4 s"):
        send(url, b"{}", {}, Rules(0.4, True, True))


# --- the courier


def settings(**more: Any) -> Settings:
    given: dict[str, Any] = {
        "webhook_secrets": SECRET,
        "webhook_allow_http": True,
        "webhook_allow_private": True,
        "webhook_timeout": 5,
        "callback_attempts": 3,
        "callback_backoff": 0.05,
    }
    return Settings(**(given | more))


def courier(desk: Desk, **more: Any) -> Courier:
    return Courier(desk.states, settings(**more), lambda: True)


def finished(desk: Desk, target: str) -> str:
    batch_id = desk.start(1, on_finish=target)
    desk.work(batch_id)
    return batch_id


def stored(desk: Desk, batch_id: str) -> Any:
    with desk.database.read() as connection:
        return connection.execute(select(callbacks).where(callbacks.c.batch_id == batch_id)).one()


def deliver(desk: Desk, by: Courier, batch_id: str, state: str) -> Any:
    """Let the courier turn until the callback is in a state."""

    def settled() -> Any:
        by.turn()
        row = stored(desk, batch_id)
        assert row.state == state, (row.state, row.error)
        return row

    return eventually(settled)


def test_a_webhook_is_delivered_signed_with_the_callbacks_id(database: Database) -> None:
    desk = Desk(database)
    with Receiver() as receiver:
        batch_id = finished(desk, receiver.url())
        row = deliver(desk, courier(desk), batch_id, "delivered")
    [request] = receiver.requests
    assert verify([SECRET], request.headers, request.body, time.time())
    assert request.document["id"] == request.headers["webhook-id"] == row.id
    assert (request.document["event"], request.document["batch_id"]) == ("finish", batch_id)
    assert (row.attempts, row.error) == (1, None)


def test_it_is_tried_again_with_the_same_id_and_body_until_it_is_taken(database: Database) -> None:
    desk = Desk(database)
    with Receiver(500, 503, 200) as receiver:
        deliver(desk, courier(desk), finished(desk, receiver.url()), "delivered")
    assert len(receiver.requests) == 3
    assert len({(each.body, each.headers["webhook-id"]) for each in receiver.requests}) == 1


def test_after_its_attempts_it_is_dead_and_says_why(database: Database) -> None:
    desk = Desk(database)
    with Receiver(500) as receiver:
        row = deliver(desk, courier(desk), finished(desk, receiver.url("/hook?token=secret")), "dead")
        assert len(receiver.requests) == row.attempts == 3
    assert row.error == "127.0.0.1 answered 500 Internal Server Error"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"webhook_secrets": ""}, "not sent unsigned"),
        ({"webhook_allow_http": False}, "BATCHING_WEBHOOK_ALLOW_HTTP"),
        ({"webhook_allow_private": False}, "BATCHING_WEBHOOK_ALLOW_PRIVATE"),
    ],
)
def test_what_the_settings_refuse_reaches_nobody(sqlite_url: str, more: dict[str, Any], says: str) -> None:
    from batching.database import Database

    database = Database(sqlite_url)
    desk = Desk(database)
    with Receiver() as receiver:
        batch_id = finished(desk, receiver.url())
        row = deliver(desk, courier(desk, callback_attempts=1, **more), batch_id, "dead")
    assert says in row.error
    assert receiver.requests == []
    database.close()


def test_a_task_without_an_application_fails_with_what_to_set(sqlite_url: str) -> None:
    from batching.database import Database

    database = Database(sqlite_url)
    desk = Desk(database)
    by = courier(desk, callback_attempts=1, celery_app="no_such_application")
    row = deliver(desk, by, finished(desk, "app.over"), "dead")
    assert "'no_such_application' cannot be imported" in row.error
    assert "BATCHING_CELERY_APP" in row.error
    database.close()
