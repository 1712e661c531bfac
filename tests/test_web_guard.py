"""Who may do what through the dashboard, and what no other site can make a browser do."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient

from batching.cli.main import cli
from batching.database import Database
from batching.errors import ConfigurationError
from batching.web.guard import COOKIE, OPEN, SAFE
from batching.web.identity import SESSION_SECONDS, Keyring, Role, make_token, parse_tokens
from batching.web.server import bind, check_address, is_loopback
from tests.accounting import Desk
from tests.web import API, ENTRIES, OPERATOR, VIEWER, app_of, client_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

#: What stands for the parameters of a path; `batch_id` is a real one.
PARAMETERS = {"name": "default", "kind": "queue", "callback_id": "00000000-0000-7000-8000-000000000001"}


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Database]:
    database = Database(sqlite_url)
    yield database
    database.close()


@pytest.fixture
def batch_id(store: Database) -> str:
    return Desk(store).submit(3)


def routes_of(app: FastAPI, batch_id: str) -> list[tuple[str, str]]:
    """Method and path of every route there is: one that is added later is tried, too."""
    known = PARAMETERS | {"batch_id": batch_id}
    found = []
    for route in iter_route_contexts(app.routes):
        if route.path and route.methods and route.path not in OPEN:
            path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda part: known.get(part[1], "k1"), route.path)
            found += [(method, path) for method in sorted(route.methods)]
    return found


def statuses(app: FastAPI, routes: list[tuple[str, str]], token: str | None) -> dict[str, int]:
    """What each route answers to somebody. Streams of events are over before they begin."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with TestClient(
        app, "http://localhost", headers=headers, raise_server_exceptions=False, follow_redirects=False
    ) as client:
        app.state.context.feed.end_streams()
        return {f"{method} {path}": client.request(method, path).status_code for method, path in routes}


def test_nobody_gets_anything_from_any_route(store: Database, batch_id: str) -> None:
    app = app_of(store)
    routes = routes_of(app, batch_id)
    assert len(routes) > 30

    for token in (None, "wrong", VIEWER + "x", ""):
        answers = statuses(app, routes, token)
        assert {route: status for route, status in answers.items() if status != 401} == {}


def test_a_viewer_reads_every_route_and_acts_through_none(store: Database, batch_id: str) -> None:
    app = app_of(store)
    routes = routes_of(app, batch_id)
    answers = statuses(app, routes, VIEWER)

    reads = {route: status for route, status in answers.items() if route.split()[0] in SAFE}
    acts = {route: status for route, status in answers.items() if route.split()[0] not in SAFE}
    assert {route: status for route, status in reads.items() if status in {401, 403}} == {}
    assert len(acts) > 15
    assert set(acts.values()) == {403}
    assert Desk(store).state(batch_id) == "queued"


def test_an_operator_is_let_through_everywhere(store: Database, batch_id: str) -> None:
    app = app_of(store)
    answers = statuses(app, routes_of(app, batch_id), OPERATOR)
    assert {route: status for route, status in answers.items() if status in {401, 403, 500}} == {}


def test_a_read_only_dashboard_changes_nothing_whoever_asks(store: Database, batch_id: str) -> None:
    for more in ({"web_read_only": True}, {"web_read_only": True, "web_tokens": ()}):
        app = app_of(store, **more)
        answers = statuses(app, routes_of(app, batch_id), OPERATOR)
        acts = {route: status for route, status in answers.items() if route.split()[0] not in SAFE}
        reads = {route: status for route, status in answers.items() if route.split()[0] in SAFE}
        assert set(acts.values()) == {403}
        assert {route: status for route, status in reads.items() if status in {401, 403}} == {}
    with client_of(store, web_read_only=True) as client:
        answer = client.post(f"{API}/batches/{batch_id}/pause")
        assert answer.json()["type"] == "urn:batching:problem:read-only"
    assert Desk(store).state(batch_id) == "queued"


def test_a_token_ends_with_its_entry(store: Database) -> None:
    with client_of(store, VIEWER, web_tokens=ENTRIES[1:]) as client:
        assert client.get(f"{API}/batches").status_code == 401
    with client_of(store, VIEWER) as client:
        assert client.get(f"{API}/batches").status_code == 200


def test_payloads_are_for_operators(store: Database, batch_id: str) -> None:
    path = f"{API}/batches/{batch_id}/results?payload=true"
    with client_of(store, VIEWER) as viewer, client_of(store) as operator:
        assert viewer.get(path).status_code == 403
        assert json.loads(operator.get(path).text.splitlines()[0])["payload"] == 1
        assert "payload" not in viewer.get(path.partition("?")[0]).text


# Tokens and sessions


def test_a_token_is_kept_nowhere_but_as_its_digest() -> None:
    token, entry = make_token("ci", "viewer")
    assert entry == f"ci:viewer:{hashlib.sha256(token.encode()).hexdigest()}"
    (parsed,) = parse_tokens([entry])
    assert Keyring([parsed]).by_token(token) is not None
    assert Keyring([parsed]).by_token(entry.rpartition(":")[2]) is None, "the digest is no token"


@pytest.mark.parametrize("entry", ["ci", "ci:viewer", "ci:admin:" + 64 * "0", "ci:viewer:canary-secret", ":viewer:x"])
def test_an_entry_that_cannot_be_read_is_not_quoted(entry: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_tokens([ENTRIES[0], entry])
    assert "entry 2" in str(caught.value)
    assert "canary-secret" not in str(caught.value)


def test_a_name_stands_once_and_is_a_name() -> None:
    with pytest.raises(ConfigurationError, match="stands twice"):
        parse_tokens([ENTRIES[0], ENTRIES[0]])
    with pytest.raises(ConfigurationError, match="cannot make a token"):
        make_token("two words", "viewer")


def test_the_command_prints_a_token_and_its_entry(store: Database) -> None:
    result = CliRunner().invoke(cli, ["dashboard", "token", "ci", "--role", "operator", "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    with client_of(store, made["token"], web_tokens=(made["entry"],)) as client:
        assert client.get(f"{API}/status").json()["role"] == "operator"


def test_a_session_is_signed_and_ends() -> None:
    tokens = parse_tokens(ENTRIES)
    keyring = Keyring(tokens, "s" * 32)
    cookie = keyring.start_session("vera", now=1_000)
    found = keyring.by_session(cookie, now=1_000)
    assert found is not None
    assert (found.name, found.role, found.ambient) == ("vera", Role.VIEWER, True)

    body, _, signature = cookie.partition(".")
    forged = Keyring(tokens, "t" * 32).start_session("oscar", now=1_000)
    nobody = [
        keyring.by_session(cookie, now=1_000 + SESSION_SECONDS),
        keyring.by_session(forged, now=1_000),
        keyring.by_session(f"{body}.{signature[:-1]}{'A' if signature[-1] != 'A' else 'B'}", now=1_000),
        keyring.by_session(f"{forged.partition('.')[0]}.{signature}", now=1_000),
        Keyring(tokens[1:], "s" * 32).by_session(cookie, now=1_000),  # its token was taken away
        Keyring(parse_tokens([make_token("vera", "viewer")[1]]), "s" * 32).by_session(cookie, now=1_000),  # replaced
        *(keyring.by_session(text, now=1_000) for text in ("", ".", "a.b", "é.é", "W10.x", "bnVsbA.x", "{" * 2_000)),
    ]
    assert set(nobody) == {None}
    assert Keyring(tokens, "s" * 32).by_session(cookie, now=1_000) == found, "another process with the same secret"


def test_a_short_secret_is_refused_and_not_quoted(store: Database) -> None:
    with pytest.raises(ConfigurationError, match="fewer than 32") as caught:
        app_of(store, web_secret="canary-secret")
    assert "canary-secret" not in str(caught.value)


# Browsers


def form_token(client: TestClient) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/login").text)
    assert found
    return found[1]


@pytest.fixture
def browser(store: Database) -> Iterator[TestClient]:
    """A browser, not logged in."""
    with client_of(store, None) as client:
        client.follow_redirects = False
        yield client


def log_in(browser: TestClient, token: str = OPERATOR) -> None:
    data = {"csrf_token": form_token(browser), "token": token, "next": "/"}
    answer = browser.post("/login", data=data, headers={"Origin": "http://localhost"})
    assert answer.status_code == 303, answer.text


def test_a_browser_is_led_to_the_form_and_back(browser: TestClient) -> None:
    page = browser.get(f"{API}/batches?limit=1", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/api/v1/batches%3Flimit%3D1")
    assert 'value="/api/v1/batches?limit=1"' in browser.get(page.headers["location"]).text
    data = {"csrf_token": form_token(browser), "token": VIEWER, "next": "/api/v1/batches?limit=1"}
    answer = browser.post("/login", data=data)
    assert answer.headers["location"] == "/api/v1/batches?limit=1"
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/", f"Max-Age={SESSION_SECONDS}"))
    assert browser.get(f"{API}/status").json()["name"] == "vera"
    browser.post("/logout", headers={"X-CSRF-Token": token_of_session(browser)})
    assert browser.get(f"{API}/status").status_code == 401


def token_of_session(browser: TestClient) -> str:
    app: Any = browser.app
    keyring = app.state.context.keyring
    identity = keyring.by_session(browser.cookies[COOKIE], time.time())
    return str(keyring.form_token(identity.session))


@pytest.mark.parametrize("page", ["https://evil.example/", "//evil.example/", "/\\evil.example", "evil", "/a\r\nb: c"])
def test_nobody_is_led_elsewhere_after_the_form(browser: TestClient, page: str) -> None:
    answer = browser.post("/login", data={"csrf_token": form_token(browser), "token": VIEWER, "next": page})
    assert answer.headers["location"] == "/"


def test_a_wrong_token_is_told_so(browser: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = browser.post("/login", data={"csrf_token": form_token(browser), "token": "canary-secret"})
    assert answer.status_code == 401
    assert "not known" in answer.text
    assert "canary-secret" not in answer.text + caplog.text
    assert COOKIE not in browser.cookies


def test_what_a_name_holds_is_escaped_in_the_form(browser: TestClient) -> None:
    page = browser.get("/login", params={"next": '/"><script>alert(1)</script>'}).text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


SITES = {
    "of another site": {"Origin": "https://evil.example"},
    "of another port": {"Origin": "http://localhost:81"},
    "without an origin": {"Origin": "null"},
    "of a sibling": {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
    "across sites": {"Sec-Fetch-Site": "cross-site"},
}


@pytest.mark.parametrize("site", SITES)
def test_no_other_site_acts_through_a_browser(store: Database, batch_id: str, browser: TestClient, site: str) -> None:
    log_in(browser)
    good = {"X-CSRF-Token": token_of_session(browser)}
    answer = browser.post(f"{API}/batches/{batch_id}/pause", headers=SITES[site] | good)
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:batching:problem:forged")
    assert Desk(store).state(batch_id) == "queued"
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert browser.post(f"{API}/batches/{batch_id}/pause", headers=own | good).status_code == 200
    assert Desk(store).state(batch_id) == "paused"


@pytest.mark.parametrize("presented", [None, "", "x", "é"])
def test_a_session_needs_its_csrf_token(
    store: Database, batch_id: str, browser: TestClient, presented: str | None
) -> None:
    anonymous = form_token(browser)
    log_in(browser)
    for wrong in (presented, anonymous):  # that of the time before the log-in is of no use after it
        headers: dict[bytes, bytes] = {} if wrong is None else {b"X-CSRF-Token": wrong.encode()}
        assert browser.post(f"{API}/batches/{batch_id}/pause", headers=headers).status_code == 403
    assert Desk(store).state(batch_id) == "queued"


def test_without_tokens_a_program_acts_and_a_page_of_another_site_does_not(store: Database, batch_id: str) -> None:
    with client_of(store, None, web_tokens=()) as client:
        for headers in SITES.values():
            assert client.post(f"{API}/batches/{batch_id}/pause", headers=headers).status_code == 403
        own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
        assert client.post(f"{API}/batches/{batch_id}/pause", headers=own).status_code == 403, "no CSRF token"
        form = client.post(f"{API}/batches/{batch_id}/pause", data={"reason": "x"})
        assert form.status_code == 403, "a form is a browser's"
        assert Desk(store).state(batch_id) == "queued"
        assert client.post(f"{API}/batches/{batch_id}/pause").status_code == 200
        assert Desk(store).state(batch_id) == "paused"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.nip.io"])
def test_a_name_that_was_made_to_lead_here_gets_nothing(store: Database, host: str) -> None:
    with client_of(store) as client:
        for method, path in (("GET", f"{API}/batches"), ("POST", f"{API}/prune"), ("GET", "/login")):
            answer = client.request(method, path, headers={"Host": host})
            assert (answer.status_code, answer.json()["type"]) == (421, "urn:batching:problem:unknown-host")


def test_names_can_be_allowed(store: Database) -> None:
    for host in ("localhost", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST"):
        with client_of(store) as client:
            assert client.get(f"{API}/status", headers={"Host": host}).status_code == 200
    with client_of(store, web_hosts="batches.example") as client:
        assert client.get(f"{API}/status", headers={"Host": "batches.example:443"}).status_code == 200
    with client_of(store, web_hosts="*") as client:
        assert client.get(f"{API}/status", headers={"Host": "anything"}).status_code == 200


def test_every_answer_says_what_a_browser_must_not_do(store: Database) -> None:
    with client_of(store, None, web_https=True) as client:
        for path in ("/login", f"{API}/status", "/nothing", "/static/robots.txt", "/static/nothing"):
            headers = client.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert headers["strict-transport-security"]
            assert "server" not in headers
            assert ("no-store" in headers["cache-control"]) == (not path.startswith("/static/"))
        answer = client.post("/login", data={"csrf_token": form_token(client), "token": VIEWER}, follow_redirects=False)
        assert "Secure" in answer.headers["set-cookie"]


def test_a_body_has_a_bound(store: Database) -> None:
    with client_of(store, web_body_limit=2_000) as client:
        large = {"handler": "h", "profiles": ["k" * 3_000]}
        answer = client.post(f"{API}/batches", json=large)
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:batching:problem:too-large")

        def chunks() -> Iterator[bytes]:
            for _ in range(100):
                yield b" " * 1_000

        for path in ("batches", "prune", "batches/00000000/pause"):  # without a length, and whoever reads it
            headers = {"Content-Type": "application/json"}
            assert client.post(f"{API}/{path}", content=chunks(), headers=headers).status_code == 413
        lines = {"Content-Type": "application/x-ndjson"}
        assert client.post(f"{API}/prune", content=chunks(), headers=lines).status_code in {413, 415, 422}
    with client_of(store, None) as client:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert client.post("/login", content=b"a=" + 70_000 * b"a", headers=form).status_code == 413
        assert client.post("/login", content=b"a=1&" * 5_000, headers=form).status_code == 403


# Secrets


def test_no_secret_is_ever_told(
    postgresql_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in answers nor in logs, while everything is well and while nothing is."""
    caplog.set_level(logging.DEBUG)
    canary = "canary-secret-5417"
    secrets = {"web_secret": f"{canary}-session-signing-secret"}
    good = Database(postgresql_url)
    batch_id = Desk(good).submit(2, on_finish=f"https://hooks.example/x?token={canary}")
    lost = Database(f"postgresql+psycopg://user:{canary}@127.0.0.1:1/elsewhere")
    said = []
    for database, more in (
        (good, {"broker_url": f"redis://user:{canary}@127.0.0.1:1/0"}),
        (lost, {}),
    ):
        app = app_of(database, database_url=lost.url, **secrets, **more)
        for token in (OPERATOR, f"{canary}-token"):
            headers = {"Authorization": f"Bearer {token}", "Cookie": f"{COOKIE}={canary}"}
            with TestClient(app, "http://localhost", headers=headers, raise_server_exceptions=False) as client:
                app.state.context.feed.end_streams()
                for method, path in routes_of(app, batch_id):
                    answer = client.request(method, path)
                    said.append(answer.text + str(answer.headers))
                said.append(client.get("/login").text)
    assert len(said) > 100
    assert [text for text in said if canary in text or OPERATOR in text] == []
    assert canary not in caplog.text
    assert OPERATOR not in caplog.text
    assert "127.0.0.1:1" not in "".join(said), "hosts are for the log"
    for each in (good, lost):
        each.close()


# Where it listens


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_other_machines_are_served_only_with_tokens(sqlite_url: str, host: str, only_here: bool) -> None:
    database = Database(sqlite_url)
    assert is_loopback(host) == only_here
    check_address(host, settings_of(database))
    if only_here:
        check_address(host, settings_of(database, web_tokens=()))
    else:
        with pytest.raises(ConfigurationError, match="BATCHING_WEB_TOKENS"):
            check_address(host, settings_of(database, web_tokens=()))


def test_the_command_refuses_another_address_without_tokens(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHING_DATABASE_URL", store.url)
    result = CliRunner().invoke(cli, ["dashboard", "--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code == 2
    assert "BATCHING_WEB_TOKENS" in result.output


def test_a_port_that_is_taken_is_told(sqlite_url: str) -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1 port {port}"):
            bind("127.0.0.1", port)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, store: Database) -> None:
    monkeypatch.setenv("BATCHING_DATABASE_URL", store.url)
    monkeypatch.setattr("batching.cli.dashboard._NEEDED", ("no_such_package",))
    result = CliRunner().invoke(cli, ["dashboard", "--port", "0"])
    assert result.exit_code == 2
    assert "no_such_package is not installed; pip install 'batching[web]'" in result.output
