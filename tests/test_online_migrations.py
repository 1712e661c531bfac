"""Migrations beside workers that go on: no file locks a large table for long, and none does when it is applied."""

from __future__ import annotations

import ast
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from batching import migration
from batching.database import Database
from batching.errors import DatabaseUnavailableError
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from tests.servers import PostgresServer

VERSIONS = Path(migration.__file__).parent / "migrations" / "versions"
#: Tables that grow with profiles, or with what becomes of them. The others have a row per batch, worker or queue.
LARGE = frozenset({"profiles", "attempts", "history"})
BATCH = "01920000-0000-7000-8000-000000000001"
ROWS = 50_000


# --- the files


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """What `upgrade`, and the helpers of its file, do with `op`, by name; what `downgrade` does is nobody's concern."""
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef) and function.name != "downgrade":
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield ast.unparse(node.func), node


def words(call: ast.Call) -> list[str]:
    return [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def offences(source: str) -> list[str]:
    """Why a migration would hold up those who work."""
    found = list(calls(source))
    made = {words(call)[0] for name, call in found if name == "op.create_table" and words(call)}
    large = {name for name in LARGE if name not in made}
    told = []
    for name, call in found:
        touched = sorted(large & set(words(call)))
        if not touched:
            continue
        if name in {"op.alter_column", "op.batch_alter_table", "op.create_check_constraint", "op.create_foreign_key"}:
            told.append(f"{name} rewrites, or reads all of, {touched[0]}")
        elif name in {"op.create_index", "op.create_unique_constraint", "op.create_primary_key"}:
            told.append(f"{name} keeps writers of {touched[0]} waiting; use batching.migrations.online.create_index")
        elif name == "op.execute":
            told.append(f"op.execute on {touched[0]}: what it locks cannot be told")
        elif name == "op.add_column" and (problem := _column(call)):
            told.append(f"op.add_column on {touched[0]}: {problem}")
    apart = {name for name, _ in found if name.startswith("op.")} - {"op.get_bind"}
    if any(name == "online.create_index" for name, _ in found) and apart:
        told.append(f"online.create_index commits: {sorted(apart)} belong into a migration of their own")
    return told


def _column(call: ast.Call) -> str | None:
    """What is wrong with an added column: it must be nullable, or have a default that is the same for every row."""
    column = next(each for each in call.args if isinstance(each, ast.Call))
    options = {each.arg: each.value for each in column.keywords}
    if (default := options.get("server_default")) is not None:
        constant = isinstance(default, ast.Call) and ast.unparse(default.func) in {"sa.text", "sa.false", "sa.true"}
        return None if constant else "its default is evaluated for each row"
    nullable = options.get("nullable")
    if isinstance(nullable, ast.Constant) and nullable.value is False:
        return "it is not nullable and has no default"
    return None


@pytest.mark.parametrize("path", sorted(VERSIONS.glob("0*.py")), ids=lambda path: path.stem)
def test_no_migration_holds_up_those_who_work(path: Path) -> None:
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('op.create_index("x", "profiles", ["key"])', "keeps writers of profiles waiting"),
        ('op.alter_column("attempts", "run", type_=sa.BigInteger())', "rewrites, or reads all of, attempts"),
        ('op.add_column("profiles", sa.Column("x", sa.Integer(), nullable=False))', "is not nullable"),
        ('op.add_column("history", sa.Column("x", T(), server_default=now()))', "is evaluated for each row"),
        ('op.create_check_constraint("x", "profiles", "run > 0")', "reads all of, profiles"),
        ('online.create_index("x", "profiles", ["key"]); op.add_column("queues", C("x"))', "belong into a migration"),
    ],
)
def test_the_lint_can_tell(line: str, says: str) -> None:
    (offence,) = offences(f"def upgrade() -> None:\n    {line}\n")
    assert says in offence


@pytest.mark.parametrize(
    "line",
    [
        'op.create_table("profiles"); op.create_index("x", "profiles", ["key"])',
        'op.create_index("x", "queues", ["name"])',
        'op.add_column("profiles", sa.Column("x", sa.Integer(), nullable=True))',
        'op.add_column("profiles", sa.Column("x", sa.Integer(), server_default=sa.text("0"), nullable=False))',
        'online.create_index("x", "profiles", ["key"])',
    ],
)
def test_the_lint_lets_pass_what_locks_nobody(line: str) -> None:
    assert offences(f"def upgrade() -> None:\n    {line}\n") == []


# --- applied beside others


class Bystander:
    """Reads and writes a large table as a worker does, and never waits long for a lock."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self._connection: Any = psycopg.connect(
            host=str(server.folder), user="postgres", dbname=name, autocommit=True, options="-c lock_timeout=2000"
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.rounds = 0
        self.longest = 0.0
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self.rounds > 3)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        self._connection.close()

    def _work(self) -> None:
        number = 0
        while not self._over.is_set() and self.failure is None:
            number = number % ROWS + 1
            began = time.monotonic()
            try:
                self._turn(number)
            except psycopg.Error as error:
                self.failure = error
            self.longest = max(self.longest, time.monotonic() - began)
            self.rounds += 1

    def _turn(self, number: int) -> None:
        run = self._connection.execute
        run("UPDATE profiles SET run = run + 1 WHERE batch_id = %s AND number = %s", (BATCH, number))
        run("UPDATE batches SET total = total WHERE id = %s", (BATCH,))
        run("SELECT count(*) FROM profiles WHERE batch_id = %s AND number < 50", (BATCH,))
        run(
            "INSERT INTO attempts (batch_id, number, run, pass_number, attempt, outcome) "
            "SELECT batch_id, number, run, 1, 1, 'lost' FROM profiles WHERE batch_id = %s AND number = %s",
            (BATCH, number),
        )


@pytest.fixture
def first_schema(postgres_server: PostgresServer) -> Iterator[tuple[Database, str]]:
    """A PostgreSQL with the first schema, and a batch of many profiles in it."""
    name = postgres_server.create_database()
    database = Database(postgres_server.url(name))
    with database.begin() as connection:
        command.upgrade(migration._config(connection), "0001")
        run = connection.exec_driver_sql
        run("INSERT INTO queues (name) VALUES ('default')")
        run(
            "INSERT INTO batches (id, queue, name, handler, state, position, sealed, total, options) "
            "VALUES (%s, 'default', 'b', 'h', 'running', 1, true, %s, '{}')",
            (BATCH, ROWS),
        )
        run(
            "INSERT INTO profiles (batch_id, number, key, payload) "
            "SELECT CAST(%s AS uuid), n, 'k' || n, repeat('x', 100) FROM generate_series(1, %s) n",
            (BATCH, ROWS),
        )
        run(
            "INSERT INTO counters (batch_id, worker_id, pending) VALUES (%s, %s, %s)",
            (BATCH, str(uuid.UUID(int=0)), ROWS),
        )
    yield database, name
    database.close()
    postgres_server.drop_database(name)


#: What a later version may bring: a column of the hot table, an index on it, and both on a table of batches.
LATER = {
    "9001": 'op.add_column("profiles", sa.Column("shoe_size", sa.Integer(), nullable=True))\n'
    '    op.add_column("batches", sa.Column("mood", sa.String(9), server_default=sa.text("\'well\'"), nullable=False))',
    "9002": 'online.create_index("profiles_shoe_size_idx", "profiles", ["shoe_size"], where="shoe_size IS NOT NULL")',
}


def write_later_versions(folder: Path) -> None:
    """Put the migrations of a later version into a folder, behind those that there are."""
    before = migration.latest()
    for revision, body in LATER.items():
        (folder / f"{revision}.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\nfrom batching.migrations import online\n"
            f"revision, down_revision = {revision!r}, {before!r}\ndef upgrade():\n    {body}\n"
        )
        before = revision


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A later version of the library, as far as its schema goes; returns its revision."""
    write_later_versions(tmp_path)
    ours = migration._config

    def with_later(connection: Any = None) -> Any:
        config = ours(connection)
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", f"{VERSIONS}\n{tmp_path}")
        return config

    monkeypatch.setattr(migration, "_config", with_later)
    return max(LATER)


def test_every_migration_is_applied_beside_readers_and_writers(
    first_schema: tuple[Database, str], later: str, postgres_server: PostgresServer
) -> None:
    # Given somebody who reads and writes without a pause, on the first schema
    database, name = first_schema
    with Bystander(postgres_server, name) as bystander:
        # When every migration there is, and some of a later version, are applied
        assert migration.upgrade(database) == ("0001", later)
        rounds = bystander.rounds
        eventually(lambda: bystander.rounds > rounds + 3)
    # Then nobody waited for long
    assert bystander.failure is None
    print(f"the longest of {bystander.rounds} rounds took {bystander.longest * 1000:.0f} ms")  # noqa: T201
    assert bystander.longest < 1.5
    with database.read() as connection:
        assert {"profiles_shoe_size_idx"} <= {each["name"] for each in inspect(connection).get_indexes("profiles")}


def test_a_migration_that_has_to_wait_lets_others_pass(
    first_schema: tuple[Database, str], later: str, postgres_server: PostgresServer
) -> None:
    # Given a long transaction that has read the table
    database, name = first_schema
    reader: Any = psycopg.connect(host=str(postgres_server.folder), user="postgres", dbname=name)
    reader.execute("SELECT 1 FROM profiles LIMIT 1")
    with Bystander(postgres_server, name) as bystander:
        # When the schema is upgraded meanwhile
        upgrade = threading.Thread(target=migration.upgrade, args=(database,), daemon=True)
        upgrade.start()
        eventually(lambda: bystander.longest > 0.8)
        rounds = bystander.rounds
        eventually(lambda: bystander.rounds > rounds + 3)
        assert upgrade.is_alive()
        # Then those who work go on in between, and it is done once the table is free
        reader.close()
        upgrade.join(30)
    assert bystander.failure is None
    assert bystander.longest < 2
    assert migration.current(database) == later


def test_a_table_that_is_never_free_is_named(
    first_schema: tuple[Database, str], later: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, name = first_schema
    monkeypatch.setattr(migration, "_PATIENCE", 0.1)
    reader: Any = psycopg.connect(host=str(postgres_server.folder), user="postgres", dbname=name)
    reader.execute("SELECT 1 FROM profiles LIMIT 1")
    with pytest.raises(
        DatabaseUnavailableError, match=r"always held a lock on a table.*run `batching db upgrade` again"
    ):
        migration.upgrade(database)
    reader.close()
    assert migration.upgrade(database)[1] == later


def test_an_index_that_was_cut_short_is_made_again(first_schema: tuple[Database, str], later: str) -> None:
    # Given an index of that name which is invalid, as CONCURRENTLY leaves it behind when it is interrupted
    database, _ = first_schema
    with database.begin() as connection:
        command.upgrade(migration._config(connection), "9001")
    with database.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX profiles_shoe_size_idx ON profiles (shoe_size)")
        connection.exec_driver_sql(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'profiles_shoe_size_idx'::regclass"
        )
    # When the migration is repeated
    assert migration.upgrade(database) == ("9001", later)
    # Then it is there, and valid
    with database.read() as connection:
        valid = connection.exec_driver_sql(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = 'profiles_shoe_size_idx'::regclass"
        ).scalar()
    assert valid is True


def test_the_later_version_is_behind_ours(later: str) -> None:
    script = ScriptDirectory.from_config(migration._config())
    assert script.get_current_head() == later
