"""What processes have counted, on its way: into the letter box of each, and from there into the sums that are kept.

A worker touches its own row alone, with its heartbeat; only the leader adds to what all share. So a process that stops
in the middle of it keeps nobody waiting. Two leaders at once are still correct: each letter is taken under its row's
lock, and whoever takes it adds to the sums in the same transaction.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Double, Integer, SmallInteger, String, bindparam, delete, func, literal, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from batching.dialects import BigNumber, Identifier, JSONText, later, now
from batching.figures import BY_HANDLER, MOST_HANDLERS, OTHER, WHOLE, as_text
from batching.models import batch_throughput, batches, durations, figure_news, figures, gauges, throughput
from batching.moves.rows import is_id, leads
from batching.parameters import encode_rows, is_among, parameter_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Table
    from sqlalchemy.sql.dml import ReturningInsert
    from sqlalchemy.types import TypeEngine

    from batching.figures import News
    from batching.interfaces import LeaderTerm

#: Letters that are taken in one transaction.
_LETTERS: Final = 200
#: Seconds of the spans in which the throughput of all batches is kept, and seconds for which; None: as batches are.
SPANS: Final[dict[int, int | None]] = {10: 3_700, 60: 90_000, 3_600: None}
#: Seconds of the spans of one batch: the shortest, until it has so many that the next ones take their place.
LADDER: Final = (10, 60, 600, 3_600, 21_600, 86_400)
MOST_SPANS: Final = 150
#: Days after which a letter box that nobody uses any more is taken down.
_UNUSED: Final = 1.0

ENDS: Final = ("settled", "succeeded", "failed", "retried")


# --- by who counts


def tell(connection: Connection, news: News) -> bool:
    """Put a letter into the box of its source; False: the one before is still there, so try again later.

    Settles what a COMMIT without an answer leaves open: the same letter again finds its number, and is not put in
    twice, whether the leader has taken it meanwhile or not.
    """
    put = connection.scalar(_put(connection.dialect.name), news._asdict())
    if put is not None:
        return True
    last = connection.scalar(select(figure_news.c.number).where(figure_news.c.source == news.source))
    return last is not None and int(last) >= news.number


@lru_cache
def _put(dialect: str) -> ReturningInsert[Any]:
    build = postgresql if dialect == "postgresql" else sqlite
    letter = build.insert(figure_news).values(
        source=bindparam("source", type_=Identifier()),
        number=bindparam("number", type_=Integer()),
        document=bindparam("document", type_=JSONText()),
        written_at=now(),
    )
    put: ReturningInsert[Any] = letter.on_conflict_do_update(
        index_elements=[figure_news.c.source],
        set_={"number": letter.excluded.number, "document": letter.excluded.document, "written_at": now()},
        where=figure_news.c.document.is_(None) & (figure_news.c.number < letter.excluded.number),
    ).returning(figure_news.c.number)
    return put


# --- by the leader


class _Sums(NamedTuple):
    """What stands in some letters, added up."""

    figures: Counter[tuple[str, str, int]]
    durations: Counter[tuple[str, int]]
    ends: dict[tuple[int, int], Counter[str]]
    """Of all batches, by the length and the beginning of a span."""
    batch_ends: dict[str, dict[int, Counter[str]]]
    """By batch and beginning of the shortest span."""


def fold(connection: Connection) -> int:
    """Empty the letter boxes into the sums; returns how many letters there were. Call it while leading."""
    letters = connection.execute(
        select(figure_news.c.source, figure_news.c.document, figure_news.c.written_at)
        .where(figure_news.c.document.is_not(None))
        .order_by(figure_news.c.source)
        .limit(_LETTERS)
        # One whose process stopped while it wrote is left for the next time.
        .with_for_update(skip_locked=True)
    ).all()
    if not letters:
        return 0
    taken = is_among(connection.dialect.name, figure_news.c.source, "taken")
    connection.execute(
        update(figure_news).where(taken).values(document=None), {"taken": [row.source for row in letters]}
    )
    sums = _sums((row.document, row.written_at.timestamp()) for row in letters)
    _add(connection, figures, [(*key, amount) for key, amount in _bounded(connection, sums.figures).items()])
    _add(connection, throughput, [(*span, *_counted(ends)) for span, ends in sums.ends.items()])
    _add(connection, durations, [(*key, amount) for key, amount in sums.durations.items()])
    _add(connection, batch_throughput, _spans_of_batches(connection, sums.batch_ends))
    return len(letters)


#: Handlers that this process has seen among the figures.
_known: set[str] = set()


def _bounded(connection: Connection, found: Counter[tuple[str, str, int]]) -> Counter[tuple[str, str, int]]:
    """The same, with handlers beyond `MOST_HANDLERS` as one: those that came first stay apart, for good."""
    seen = {handler for name, labels, _ in found if (handler := _handler(name, labels)) is not None}
    if seen <= _known:
        return found
    rows = connection.execute(
        select(figures.c.name, figures.c.labels).where(
            figures.c.name.in_(sorted(BY_HANDLER)), figures.c.bucket == WHOLE
        )
    )
    kept = {handler for name, labels in rows if (handler := _handler(name, labels)) is not None}
    room = max(0, MOST_HANDLERS - len(kept))
    kept.update(sorted(seen - kept)[:room])
    if seen <= kept:
        _known.clear()
        _known.update(kept)
        return found
    bounded: Counter[tuple[str, str, int]] = Counter()
    for (name, labels, bucket), amount in found.items():
        handler = _handler(name, labels)
        if handler is not None and handler not in kept:
            labels = as_text([OTHER, *json.loads(labels)[1:]])  # noqa: PLW2901 - the same row, under another name
        bounded[name, labels, bucket] += amount
    return bounded


def _handler(name: str, labels: str) -> str | None:
    """The handler that a figure is about; None for others."""
    if name not in BY_HANDLER or not labels.startswith("["):
        return None
    handler = str(json.loads(labels)[0])
    return None if handler == OTHER else handler


def discard(connection: Connection) -> None:
    """Empty the letter boxes to no purpose."""
    connection.execute(update(figure_news).where(figure_news.c.document.is_not(None)).values(document=None))


def _sums(letters: Iterable[tuple[Any, float]]) -> _Sums:
    sums = _Sums(Counter(), Counter(), defaultdict(Counter), defaultdict(lambda: defaultdict(Counter)))
    for document, written_at in letters:
        for name, labels, bucket, amount in _rows(document, "figures", 4):
            sums.figures[str(name)[:64], str(labels)[:512], int(bucket)] += amount
        for batch_id, bucket, amount in _rows(document, "durations", 3):
            if is_id(batch_id):
                sums.durations[batch_id, int(bucket)] += amount
        for batch_id, *numbers in _rows(document, "ends", 5):
            ends = dict(zip(ENDS, numbers, strict=True))
            for seconds in SPANS:
                sums.ends[seconds, _beginning(written_at, seconds)].update(ends)
            if is_id(batch_id):
                sums.batch_ends[batch_id][_beginning(written_at, LADDER[0])].update(ends)
    return sums


def _rows(document: Any, name: str, width: int) -> list[Any]:
    """What a letter says of something. Another version may say more, or it in another way: that must stop nobody."""
    rows = document.get(name, []) if isinstance(document, dict) else []
    return [row for row in rows if isinstance(row, list) and len(row) == width and _numbers(row)]


def _numbers(row: list[Any]) -> bool:
    return all(isinstance(each, int | float) and math.isfinite(each) for each in row[-1:])


def _beginning(moment: float, seconds: int) -> int:
    return int(moment // seconds) * seconds


def _counted(ends: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(ends.get(name, 0)) for name in ENDS)


#: What travels of each table, in the order of its columns; those before `amount` or `settled` are its key.
_COLUMNS: Final[dict[str, dict[str, TypeEngine[Any]]]] = {
    "figures": {"name": String(64), "labels": String(512), "bucket": SmallInteger(), "amount": Double()},
    "durations": {"batch_id": Identifier(), "bucket": SmallInteger(), "amount": Double()},
    "throughput": {"seconds": Integer(), "at": BigNumber, **dict.fromkeys(ENDS, BigNumber)},
    "batch_throughput": {
        "batch_id": Identifier(),
        "seconds": Integer(),
        "at": BigNumber,
        **dict.fromkeys(ENDS, BigNumber),
    },
}


def _add(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add to rows, or make them; what belongs to a batch that is gone is left out."""
    if rows:
        parameters: dict[str, Any] = {**encode_rows(connection.dialect.name, "given", _COLUMNS[table.name], rows)}
        if "batch_id" in table.c:
            parameters["wanted"] = sorted({row[0] for row in rows})
        connection.execute(_addition(connection.dialect.name, table), parameters)


@lru_cache
def _addition(dialect: str, table: Table) -> Any:
    build = postgresql if dialect == "postgresql" else sqlite
    columns = _COLUMNS[table.name]
    keys = [key.name for key in table.primary_key]
    given = parameter_rows(dialect, "given", columns)
    chosen = select(*(given.c[name] for name in columns)).order_by(*(given.c[key] for key in keys))
    if "batch_id" in columns:
        # Under this lock nobody deletes the batch, and everybody else goes on.
        chosen = chosen.join(batches, batches.c.id == given.c.batch_id).where(is_among(dialect, batches.c.id, "wanted"))
        chosen = chosen.with_for_update(read=True, key_share=True, of=batches)
    adding = build.insert(table).from_select(list(columns), chosen)
    grown: dict[str, Any] = {name: table.c[name] + adding.excluded[name] for name in columns if name not in keys}
    if "changed_at" in table.c:
        grown["changed_at"] = now()
    return adding.on_conflict_do_update(index_elements=[table.c[key] for key in keys], set_=grown)


def _spans_of_batches(connection: Connection, ends: Mapping[str, Mapping[int, Counter[str]]]) -> list[tuple[Any, ...]]:
    """The rows to add, in spans of the length that each batch has by now."""
    rows: dict[tuple[str, int, int], Counter[str]] = defaultdict(Counter)
    lengths = _lengths(connection, ends)
    for batch_id, by_beginning in ends.items():
        length, number = lengths.get(batch_id, (LADDER[0], 0))
        if number >= MOST_SPANS:
            length = next((each for each in LADDER if each > length), length)
            for at, *numbers in _take_spans(connection, batch_id):
                rows[batch_id, length, _beginning(at, length)].update(dict(zip(ENDS, numbers, strict=True)))
        for at, numbers_ in by_beginning.items():
            rows[batch_id, length, _beginning(at, length)].update(numbers_)
    return [(*key, *_counted(numbers)) for key, numbers in rows.items()]


def _lengths(connection: Connection, batch_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The length of the spans that each of these batches has, and their number."""
    if not (wanted := list(batch_ids)):
        return {}
    known = connection.execute(
        select(batch_throughput.c.batch_id, func.max(batch_throughput.c.seconds), func.count())
        .where(is_among(connection.dialect.name, batch_throughput.c.batch_id, "wanted"))
        .group_by(batch_throughput.c.batch_id),
        {"wanted": wanted},
    )
    return {batch_id: (int(length), int(number)) for batch_id, length, number in known}


def _take_spans(connection: Connection, batch_id: str) -> Sequence[Any]:
    ends = (batch_throughput.c[name] for name in ENDS)
    return connection.execute(
        delete(batch_throughput).where(batch_throughput.c.batch_id == batch_id).returning(batch_throughput.c.at, *ends)
    ).all()


def note_gauges(connection: Connection, term: LeaderTerm, name: str, document: Mapping[str, Any]) -> None:
    """Write what the leader sees, in place of what it saw before; an old leader writes nothing."""
    build = postgresql if connection.dialect.name == "postgresql" else sqlite
    seen = select(literal(name), literal(dict(document), JSONText()), now()).where(leads(term))
    noting = build.insert(gauges).from_select(["name", "document", "written_at"], seen)
    connection.execute(
        noting.on_conflict_do_update(
            index_elements=[gauges.c.name], set_={"document": noting.excluded.document, "written_at": now()}
        )
    )


def forget(connection: Connection, retention_days: float) -> None:
    """Delete what is too old to be looked at: short spans, boxes without a process, handlers that are no more."""
    at = connection.execute(select(now().label("at"))).one().at.timestamp()
    for seconds, kept in SPANS.items():
        oldest = at - (retention_days * 86_400.0 if kept is None else kept)
        connection.execute(delete(throughput).where(throughput.c.seconds == seconds, throughput.c.at < oldest))
    unused = figure_news.c.document.is_(None) & (figure_news.c.written_at < later(literal(-86_400.0 * _UNUSED)))
    connection.execute(delete(figure_news).where(unused))
    # The whole series or none of it, or a histogram would shrink. Its sum changes whenever one of its buckets does.
    still = (
        select(figures.c.name, figures.c.labels)
        .where(figures.c.bucket == WHOLE, figures.c.labels != "")
        .where(figures.c.changed_at < later(literal(-86_400.0 * max(1.0, retention_days))))
    )
    connection.execute(delete(figures).where(tuple_(figures.c.name, figures.c.labels).in_(still)))
