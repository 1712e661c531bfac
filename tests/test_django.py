"""`joined()`: a batch in Django's transaction, on both engines; in a program of its own: Django is set up once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy.engine import make_url

_ROOT = Path(__file__).parent.parent
_PROGRAM = """
import json
import sys

import django
from django.conf import settings

settings.configure(DATABASES={"default": json.loads(sys.argv[1])}, USE_TZ=True)
django.setup()

from django.db import connection, transaction

from batching.django import joined
from batching.errors import ConfigurationError, InvalidInputError
from batching.queue_manager import queue_manager


def submit(name, profiles=("a", "b")):
    with joined() as session:
        return queue_manager.submit("orders.ship", profiles, session=session, name=name)


def names():
    return sorted(view.name for view in queue_manager.statistics.batches())


said = {}
try:
    with joined():
        pass
except ConfigurationError as error:
    said["outside"] = str(error)

with transaction.atomic():
    kept = submit("kept")
    said["seen before the commit"] = names()
said["committed"] = names()

try:
    with transaction.atomic():
        submit("undone")
        raise KeyError
except KeyError:
    pass

with transaction.atomic():
    submit("outer")
    try:
        with transaction.atomic():
            submit("inner")
            raise KeyError
    except KeyError:
        pass

with transaction.atomic():
    try:
        submit("refused", ["twice", "twice"])
    except InvalidInputError:
        pass
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM batches")
        said["usable after a refusal"] = cursor.fetchone()[0]

with transaction.atomic():
    submit("large", (f"p{number}" for number in range(3_000)))

said["at last"] = names()
said["profiles"] = sum(1 for _ in kept.results())
with connection.cursor() as cursor:
    cursor.execute("SELECT 1")
    said["usable"] = cursor.fetchone()[0]
print(json.dumps(said))
"""


def test_a_batch_exists_if_and_only_if_djangos_transaction_commits(database_url: str) -> None:
    url = make_url(database_url)
    parts = {
        "ENGINE": "django.db.backends.sqlite3"
        if url.get_backend_name() == "sqlite"
        else "django.db.backends.postgresql",
        "NAME": url.database,
        "USER": url.username or "",
        "HOST": url.query.get("host", ""),
    }
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": str(_ROOT),
        "BATCHING_DATABASE_URL": database_url,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _PROGRAM, json.dumps(parts)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "inside of `with transaction.atomic():`" in said.pop("outside")
    assert said == {
        "seen before the commit": [],
        "committed": ["kept"],
        "usable after a refusal": 2,
        "at last": ["kept", "large", "outer"],
        "profiles": 2,
        "usable": 1,
    }
