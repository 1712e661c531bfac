"""Every statement is bound: nothing that a user gives is written into the text of SQL. Looked up in the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT: Final = Path(__file__).parent.parent

#: Text that is put together on purpose, by file and function, and what makes it safe. An entry that nothing needs
#: any more fails the test too.
ALLOWED: Final = {
    ("batching/copying.py", "copy_rows"): "COPY takes no parameters; table and columns are names in our own source",
    ("batching/database.py", "_begin"): "one of two words, chosen in the line above",
    ("batching/migration.py", "_upgrade_beside_others"): "SET takes no parameters; a number of our own source",
    ("batching/moves/loading.py", "_sqlite_insert"): "only the numbers of the parameters are written in",
    ("batching/models/batch.py", "<module>"): "CHECK constraints over the values of our own enums",
}

#: What executes, or is, the text of a statement that is its first argument.
_SINKS: Final = frozenset(
    {
        "text",
        "execute",
        "executemany",
        "executescript",
        "exec_driver_sql",
        "scalar",
        "scalars",
        "copy",
        "literal_column",
        "DDL",
        "TextClause",
        "CheckConstraint",
        "op.execute",
    }
)
_STATEMENTS: Final = frozenset(
    re.findall(
        r"\w+",
        "select insert update delete create drop alter truncate copy with begin set pragma grant revoke merge call do "
        "values explain vacuum analyze lock notify listen",
    )
)


class Finding(NamedTuple):
    """Text that is put together where a statement is expected."""

    line: int
    function: str
    source: str


def findings(source: str) -> list[Finding]:
    """Where a module puts the text of a statement together from parts."""
    tree = ast.parse(source)
    found = {
        Finding(node.lineno, function, ast.unparse(node)[:100])
        for function, scope in _scopes(tree)
        for node in _unbound(scope)
    }
    return sorted(found)


def _scopes(tree: ast.Module) -> Iterator[tuple[str, list[ast.AST]]]:
    """Each function, and the module around them, with the nodes that are in it and in nothing inside it."""
    pending: list[tuple[str, ast.AST]] = [("<module>", tree)]
    while pending:
        name, top = pending.pop()
        own: list[ast.AST] = []
        queue = list(ast.iter_child_nodes(top))
        while queue:
            node = queue.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                pending.append((node.name, node))
                queue += [*node.decorator_list, *node.args.defaults]
                continue
            own.append(node)
            queue += ast.iter_child_nodes(node)
        yield name, own


def _unbound(nodes: list[ast.AST]) -> Iterator[ast.expr]:
    assigned: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    assigned.setdefault(target.id, []).append(node.value)
    for node in nodes:
        if isinstance(node, ast.Call) and node.args and _name(node.func) in _SINKS:
            given = node.args[0]
            candidates = [given, *assigned.get(given.id, [])] if isinstance(given, ast.Name) else [given]
            yield from (each for each in candidates if _is_composed(each))
        elif isinstance(node, ast.expr) and _is_composed(node) and _begins_a_statement(node):
            yield node


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_composed(node: ast.expr) -> bool:
    """Whether this is text that is put together: an f-string with a value in it, `%`, `+`, `format`, `join`, …"""
    if isinstance(node, ast.JoinedStr):
        return any(isinstance(part, ast.FormattedValue) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
        return _is_text(node.left) or _is_text(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in {"format", "format_map", "join", "replace"} and _is_text(node.func.value)
    return False


def _is_text(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        or (isinstance(node, ast.BinOp | ast.Call) and _is_composed(node))
    )


def _begins_a_statement(node: ast.expr) -> bool:
    """Whether its first characters are upper-case SQL: prose that begins with `select` is not meant."""
    first = next(
        (each for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)), None
    )
    words = str(first.value).split() if first is not None else []
    return bool(words) and words[0].isupper() and words[0].lower() in _STATEMENTS


def test_nothing_is_written_into_a_statement() -> None:
    needed, surprises = set(), []
    for path in sorted([*_ROOT.glob("batching/**/*.py"), *_ROOT.glob("workers/**/*.py")]):
        name = path.relative_to(_ROOT).as_posix()
        for finding in findings(path.read_text(encoding="utf-8")):
            place = (name, finding.function)
            if place in ALLOWED:
                needed.add(place)
            else:
                surprises.append(f"{name}:{finding.line} in {finding.function}: {finding.source}")

    assert not surprises, "\n".join(["text of a statement is put together; bind a parameter:", *surprises])
    assert needed == ALLOWED.keys(), f"allowed and not needed any more: {ALLOWED.keys() - needed}"


@pytest.mark.parametrize(
    "source",
    [
        "connection.execute(text(f'SELECT * FROM batches WHERE id = {batch_id}'))",
        "connection.execute(text('SELECT 1 FROM batches WHERE id = %s' % batch_id))",
        "connection.execute(text('SELECT 1 FROM batches WHERE id = ' + batch_id))",
        "connection.execute(text('SELECT 1 FROM batches WHERE id = {}'.format(batch_id)))",
        "connection.exec_driver_sql(f'delete from {table}')",
        "def f(table):\n    statement = 'DELETE FROM ' + table\n    return cursor.execute(statement)",
        "def f(names):\n    chosen = ', '.join(names)\n    return f'SELECT {chosen} FROM batches'",
        "select(literal_column(f'\"{name}\"'))",
        "def f():\n    def g(name):\n        return cursor.copy(f'COPY {name} FROM STDIN')",
    ],
)
def test_statements_that_are_put_together_are_found(source: str) -> None:
    assert findings(source)


@pytest.mark.parametrize(
    "source",
    [
        "connection.execute(text('SELECT 1 FROM batches WHERE id = :id'), {'id': batch_id})",
        "connection.execute(select(batches).where(batches.c.id == batch_id))",
        "connection.exec_driver_sql('BEGIN IMMEDIATE')",
        "raise ValueError(f'select another queue than {name}')",
        "client.execute(plan + [1])",
        "log.info('with %s' % name)",
    ],
)
def test_bound_statements_and_prose_are_left_alone(source: str) -> None:
    assert not findings(source)
