"""The examples, for real: requests submit, a worker runs, and nothing is left of a request that failed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, text

from batching.queue_manager import QueueManager
from tests.documentation.pages import ROOT
from tests.nodes import worker_process
from tests.support import eventually, free_port
from workers.tether import Tether

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType

    from tests.documentation.installation import Installation

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def environment(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a reader has exported; and the end of the examples' engines, which live as long as their programs."""
    for name, value in installation.variables.items():
        monkeypatch.setenv(name, value)
    ready = QueueManager(installation.queue.database, installation.variables["BATCHING_BROKER_URL"])
    monkeypatch.setattr("batching.queue_manager.queue_manager", ready)
    monkeypatch.setattr("batching.handlers._registry", {})
    with ExitStack() as ends:

        def make(url: str) -> Engine:
            engine = create_engine(url)
            ends.callback(engine.dispose)
            return engine

        monkeypatch.setattr("sqlalchemy.create_engine", make)
        yield


def load(path: Path) -> ModuleType:
    """A program, without its folder on the path, where it would stand before the package that it is named after."""
    spec = importlib.util.spec_from_file_location(f"example_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic and SQLAlchemy look hints up there
    spec.loader.exec_module(module)
    return module


def count(installation: Installation, table: str) -> int:
    engine = create_engine(installation.url)
    with engine.connect() as connection:
        found = int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
    engine.dispose()
    return found


def succeeded(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Wait until a batch succeeded, as its application tells it."""

    def done() -> dict[str, Any]:
        said = look()
        assert said["state"] == "succeeded", said
        return said

    return eventually(done, 60, 0.1)


# --- Flask, with its own test client


def test_flask(installation: Installation) -> None:
    client = load(EXAMPLES / "flask" / "app.py").create_app().test_client()
    items = [{"sku": "tea", "pieces": 2}, {"sku": "milk", "pieces": 1}]
    placed = client.post("/orders", json={"customer": "Ada", "items": items})
    assert placed.status_code == 201, placed.text
    said = succeeded(lambda: client.get(f"/orders/{placed.json['order']}").json)
    assert said == {"customer": "Ada", "state": "succeeded", "shipped": 2, "of": 2}
    results = {line.key: line.result for line in installation.queue.get(placed.json["batch"]).results()}
    assert results["tea"]["pieces"] == 2
    assert results["tea"]["label"] == f"label-{placed.json['batch']}.1"
    assert client.get("/orders/999999").status_code == 404


def test_flask_rolls_the_batch_back_with_the_order(installation: Installation) -> None:
    client = load(EXAMPLES / "flask" / "app.py").create_app().test_client()
    before = count(installation, "shop_orders"), count(installation, "batches")
    refused = client.post("/orders", json={"customer": "Ada", "items": [{"sku": "tea", "pieces": 0}]})
    assert refused.status_code == 409
    assert (count(installation, "shop_orders"), count(installation, "batches")) == before


# --- FastAPI, with its own test client


def test_fastapi(installation: Installation) -> None:
    from fastapi.testclient import TestClient

    customers = [{"number": str(number), "email": f"c{number}@Example.org"} for number in range(20)]
    customers += [{"number": "nobody", "email": "@example.org"}, {"number": "broken", "email": "example.org"}]
    with TestClient(load(EXAMPLES / "fastapi" / "app.py").app) as client:
        started = client.post("/imports", json={"asked_by": "Ada", "customers": customers})
        assert started.status_code == 201, started.text
        number = started.json()["import"]
        said = succeeded(lambda: client.get(f"/imports/{number}").json())
        assert (said["succeeded"], said["skipped"], said["failed"]) == (20, 1, 1)
        lines = [json.loads(line) for line in client.get(f"/imports/{number}/results").text.splitlines()]
        assert lines[7]["result"] == {"number": "7", "host": "example.org"}
        assert lines[21]["error"]["message"] == "this is no address"
        assert client.get("/imports/999999").status_code == 404


def test_fastapi_leaves_no_batch_of_a_request_that_fails(installation: Installation) -> None:
    from fastapi.testclient import TestClient

    with TestClient(load(EXAMPLES / "fastapi" / "app.py").app, raise_server_exceptions=False) as client:
        before = count(installation, "crm_imports"), count(installation, "batches")
        twice = [{"number": "1", "email": "a@example.org"}] * 2  # a key may stand only once
        assert client.post("/imports", json={"asked_by": "Ada", "customers": twice}).status_code == 500
        assert (count(installation, "crm_imports"), count(installation, "batches")) == before


# --- Django, as a server of its own


class DjangoServer:
    """`manage.py runserver`.

    Args:
        folder: For its log.
        variables: Its environment, beside ours.
    """

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._home = EXAMPLES / "django"
        self._environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self._port = free_port()
        self._log = folder / "django.log"

    def manage(self, *words: str) -> None:
        """Run a command of Django's to its end."""
        done = subprocess.run(
            [sys.executable, str(self._home / "manage.py"), *words],
            env=self._environment,
            cwd=self._home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> Tether:
        """Start it, and wait until it listens."""
        words = ["-u", str(self._home / "manage.py"), "runserver", "--noreload", str(self._port)]
        # Tethered processes run where we are; Django's imports come from the folder of manage.py.
        tether = Tether([sys.executable, *words], log=self._log, environment=self._environment)

        def listens() -> None:
            assert "Quit the server" in self._log.read_text(), self._log.read_text()

        eventually(listens, 60, 0.1)
        return tether

    def ask(self, path: str, document: object = None) -> tuple[int, Any]:
        """A request; its status, and the JSON in its answer."""
        data = None if document is None else json.dumps(document).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", data, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@pytest.fixture(scope="module")
def django_server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DjangoServer]:
    server = DjangoServer(tmp_path_factory.mktemp("django"), installation.variables)
    server.manage("migrate", "--run-syncdb")
    tether = server.start()
    yield server
    tether.stop()


def test_django(installation: Installation, django_server: DjangoServer) -> None:
    readers = [f"r{number}@example.org" for number in range(30)]
    status, published = django_server.ask("/issues", {"subject": "Spring", "readers": readers})
    assert status == 201, published
    said = succeeded(lambda: django_server.ask(f"/issues/{published['issue']}")[1])
    assert said == {"subject": "Spring", "state": "succeeded", "mailed": 30, "of": 30}
    first = next(iter(installation.queue.get(published["batch"]).results()))
    assert first.result == {"to": readers[0], "message_id": f"<{published['batch']}.1@example.org>"}


def test_django_rolls_the_batch_back_with_the_issue(installation: Installation, django_server: DjangoServer) -> None:
    before = count(installation, "newsletter_issue"), count(installation, "batches")
    assert django_server.ask("/issues", {"subject": "To nobody", "readers": []})[0] == 409
    twice = {"subject": "Twice", "readers": ["a@example.org", "a@example.org"]}
    assert django_server.ask("/issues", twice)[0] == 500
    assert (count(installation, "newsletter_issue"), count(installation, "batches")) == before
    # And the connection that was lent is as good as before.
    assert django_server.ask("/issues", {"subject": "Summer", "readers": ["a@example.org"]})[0] == 201


# --- an application of one's own


def test_an_application_of_ones_own(installation: Installation, tmp_path: Path) -> None:
    folder = EXAMPLES / "own_app"
    worker = worker_process(
        tmp_path,
        {**installation.variables, "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder))), "BATCHING_MANAGER": "0"},
        app="shop",
        options=("--pool=prefork", "--concurrency=2"),
    )
    worker.start()
    try:
        worker.ready()
        goods = {f"g{number}": {"price": float(number), "rate": 2.0} for number in range(10)}
        batch = installation.queue.submit("prices.convert", goods.items())
        assert batch.wait(60).succeeded == 10
        assert {line.key: line.result for line in batch.results()}["g3"] == {"price": 6.0}
        # Its own tasks are run beside, by its own means.
        program = "from shop import greet; greet.delay('Ada')"
        subprocess.run([sys.executable, "-c", program], env=worker.environment, cwd=tmp_path, check=True)
        eventually(lambda: "hello Ada" in worker.logs(), 30)
    finally:
        worker.stop()
