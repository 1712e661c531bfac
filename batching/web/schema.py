"""Models for OpenAPI, made of the views that the reads return: what is documented is what is sent."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, get_type_hints

from pydantic import BaseModel, Field, create_model

#: What views name in their types, and import for type checkers alone.
_IMPORTED_FOR_CHECKERS = {"Mapping": Mapping, "datetime": datetime}
#: Names under which views have fields, and documents have them.
_CALLED = {"pass_number": "pass"}


def model_of(view: Any, name: str, **more: Any) -> type[BaseModel]:
    """A model of a view's document.

    Args:
        view: A dataclass with `as_json`; the texts behind its fields describe them.
        name: Of the schema.
        **more: Fields that the document has beside the view's, as `pydantic.create_model` takes them.
    """
    hints = get_type_hints(view, localns=_IMPORTED_FOR_CHECKERS)
    texts = _descriptions(view)
    known: dict[str, Any] = {}
    for each in fields(view) if is_dataclass(view) else ():
        text = texts.get(each.name)
        # A document has all of them; only what has no value at all is left out.
        default = None if each.default is ... else ...
        known[_CALLED.get(each.name, each.name)] = (hints[each.name], Field(default, description=text))
    return create_model(name, __doc__=inspect.getdoc(view), **known, **more)


def _descriptions(view: type) -> dict[str, str]:
    """The text behind each field that has one (PEP 257: attribute docstrings)."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(view)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = " ".join(text.value.value.split())
    return found
