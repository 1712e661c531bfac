"""The parts of the reference that are made from the code: settings, options, states, commands, Celery's settings."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import click

from batching import states
from batching.cli.main import cli
from batching.options import Asked, BatchOptions
from batching.settings import Settings
from tools.site.sources import attribute_docs, commented_keywords, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from enum import StrEnum

#: The first word of a setting's text tells its unit, when it is one of these.
_UNITS: Final = ("Seconds", "Bytes", "Characters", "Profiles", "Rows", "Workers", "Messages", "Days", "Deliveries")
_KINDS: Final = {"bool": "true or false", "tuple": "list, separated by commas", "Path": "folder"}


def settings() -> str:
    """Every `BATCHING_*` variable: default, unit, range, and what it is for."""
    docs = attribute_docs(Settings)
    rows = []
    for name, field in Settings.model_fields.items():
        said = docs[name]
        unit = "URL" if name.endswith("_url") else _unit(said, field)
        rows.append((f"`BATCHING_{name.upper()}`", _default(field.default), unit, said))
    return _table(("variable", "default", "unit", "what it is"), rows)


def _default(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _unit(said: str, field: Any) -> str:
    unit = next((word.lower() for word in _UNITS if said.startswith(word)), "")
    kind = next((text for name, text in _KINDS.items() if name in str(field.annotation)), unit)
    low, high = _bound(field, "ge"), _bound(field, "le")
    above = _bound(field, "gt")
    if high is None:
        return f"{kind}, from {low:,}" if low is not None else kind
    return f"{kind}, {f'over {above:,}' if low is None else f'{low:,}'} to {high:,}"


def _bound(field: Any, word: str) -> float | None:
    return next((getattr(each, word) for each in field.metadata if getattr(each, word, None) is not None), None)


def options() -> str:
    """Every option of a batch: its default, and what it is."""
    said = _arguments(BatchOptions.__doc__ or "")
    defaults = BatchOptions()
    rows = [(f"`{each.name}`", _option(getattr(defaults, each.name)), said[each.name]) for each in fields(BatchOptions)]
    return _table(("option", "default", "what it is"), rows)


def _option(value: Any) -> str:
    return "none" if value in (None, (), {}) else f"`{value:g}`" if isinstance(value, float) else _default(value)


def asked() -> str:
    """What `submit` and `open` take beside handler, profiles and options."""
    return _table(("keyword", "what it is"), [(f"`{name}`", said) for name, said in attribute_docs(Asked).items()])


def _arguments(docstring: str) -> dict[str, str]:
    """The `Args:` of a docstring, by name."""
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", docstring, flags=re.MULTILINE)
    return {name: one_line(said) for name, said in found}


def batch_states() -> str:
    """Every state of a batch, and where it goes from there."""
    docs = attribute_docs(states.BatchState)
    rows = [
        (f"`{state}`", docs[state.name], ", ".join(f"`{to}`" for to in _in_order(states.BATCH_MOVES[state])))
        for state in states.BatchState
    ]
    return _table(("state", "what it means", "goes to"), rows)


def _in_order(moves: Iterable[states.BatchState]) -> list[states.BatchState]:
    return sorted(moves, key=list(states.BatchState).index)


def profile_states() -> str:
    """Every state of a profile."""
    return _members(states.ProfileState)


def stop_targets() -> str:
    """What a batch that is stopping becomes, the weakest first."""
    return " < ".join(f"`{target}`" for target in states.STOP_STRENGTH)


def _members(enum: type[StrEnum]) -> str:
    docs = attribute_docs(enum)
    return _table(("state", "what it means"), [(f"`{member}`", docs[member.name]) for member in enum])


def celery() -> str:
    """What `workers.celery:app` sets, and why."""
    from workers import celery as module  # noqa: PLC0415 - it reads the environment when it is imported

    found = commented_keywords(module, "app.conf.update")
    rows = [
        (f"`{name}`", f"`{one_line(value)}`" if len(value) < 60 else "see below", why) for name, value, why in found
    ]
    return _table(("setting", "value", "why"), rows)


def commands() -> str:
    """Every verb of the command line, with its arguments and options."""
    context = click.Context(cli, info_name="batching")
    parts = ["## Before the verb\n", _parameters(cli, context)]
    return "\n".join([*parts, *_below(cli, context, 2)])


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}\n"
    yield f"```text\n{' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n```\n"
    yield f"{_said(command.help or '')}\n"
    yield _parameters(command, context)
    if isinstance(command, click.Group):
        yield from _below(command, context, level + 1)


def _below(group: click.Group, context: click.Context, level: int) -> Iterator[str]:
    for name in sorted(group.list_commands(context)):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            yield from _command(command, click.Context(command, info_name=name, parent=context), level)


def _said(text: str) -> str:
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(each.split()) for each in paragraphs).replace("<", "&lt;")


def _parameters(command: click.Command, context: click.Context) -> str:
    records = [each.get_help_record(context) for each in command.get_params(context)]
    # Arguments have no text of their own, and every verb has --help.
    told = [record for record in records if record and record[1] and "--help" not in record[0]]
    rows = [(f"`{one_line(name)}`", one_line(said).replace("<", "&lt;")) for name, said in told]
    return _table(("option", "what it does"), rows) if rows else ""


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


#: What `<!-- generate: NAME -->` in a page stands for.
GENERATED: Final[dict[str, Callable[[], str]]] = {
    "asked": asked,
    "batch states": batch_states,
    "celery settings": celery,
    "commands": commands,
    "options": options,
    "profile states": profile_states,
    "settings": settings,
    "stop targets": stop_targets,
}
