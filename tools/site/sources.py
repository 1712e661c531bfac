"""What the sources say beside the code: docstrings of attributes, and comments beside keywords."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import tokenize
from io import StringIO
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def attribute_docs(cls: type) -> dict[str, str]:
    """The text below each attribute of a class, by its name; attributes without one are absent."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    found = {}
    for statement, below in pairwise(body):
        target = _assigned(statement)
        if target and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[target] = one_line(str(below.value.value))
    return found


def _assigned(statement: ast.stmt) -> str:
    target: ast.expr | None = None
    if isinstance(statement, ast.AnnAssign):
        target = statement.target
    elif isinstance(statement, ast.Assign):
        target = statement.targets[0]
    return target.id if isinstance(target, ast.Name) else ""


def commented_keywords(module: ModuleType, call: str) -> Iterator[tuple[str, str, str]]:
    """The keywords of one call in a module, with the comment that stands above each, or above those before it.

    The entries of a dictionary that has comments of its own are told one by one.

    Args:
        module: Its source.
        call: The function as it is written, as `app.conf.update`.

    Yields:
        Name, value as it is written, and comment.
    """
    source = inspect.getsource(module)
    comments = _comments(source)
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    found = next(node for node in calls if ast.unparse(node.func) == call)
    said, last = "", 0
    for name, value, line in _flat(found.keywords):
        above = _above(comments, line)
        # A comment speaks for what follows it without a gap.
        said = above or (said if line <= last + 2 else "")
        last = value.end_lineno or line
        yield name, ast.unparse(value), said


def _flat(keywords: list[ast.keyword]) -> Iterator[tuple[str, ast.expr, int]]:
    for keyword in keywords:
        value = keyword.value
        if isinstance(value, ast.Dict) and value.end_lineno != value.lineno:
            for key, each in zip(value.keys, value.values, strict=True):
                yield f"{keyword.arg}: {ast.unparse(key).strip(chr(39)) if key else ''}", each, each.lineno
        else:
            yield str(keyword.arg), value, keyword.lineno


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def _above(comments: dict[int, str], line: int) -> str:
    lines: list[str] = []
    while (line := line - 1) in comments:
        lines.insert(0, comments[line])
    return " ".join(lines)


def one_line(text: str) -> str:
    """A text without line breaks, fit for a cell of a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")
