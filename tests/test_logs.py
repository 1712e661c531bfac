"""Structured logs: what each line carries, in JSON and for people, and what it never does."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from batching import logs
from batching.errors import ConfigurationError
from batching.logs import FIELDS, Log, RunFields, about, formatter
from batching.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import Processor

RUN = dict(zip(FIELDS, ("b1", "key\n1", 2, 1, 3, "h.one", "w1"), strict=True))


class Run:
    """What lines can be about."""

    def log_fields(self) -> dict[str, Any]:
        return dict(RUN)


@contextmanager
def written(form: str) -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger of the standard library, and what it writes with our formatter."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(form))
    logger = logging.getLogger("tests.logs")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield logger, stream
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_about_a_run_carries_its_fields_and_no_other_line_does() -> None:
    with written("json") as (logger, stream):
        logger.info("before %s", "it")
        with about(Run()):
            logger.warning("inside", extra={"attempt": 9, "more": [1]})
        logger.info("after")
    before, inside, after = lines(stream)
    assert {name: inside[name] for name in FIELDS} == RUN | {"attempt": 9}, "what the line says itself goes first"
    assert (inside["more"], inside["level"], inside["logger"], inside["event"]) == (
        [1], "warning", "tests.logs", "inside",
    )  # fmt: skip
    assert inside["timestamp"].endswith("Z")
    for other in (before, after):
        assert not other.keys() & set(FIELDS)
    assert before["event"] == "before it"


def test_celerys_own_lines_show_neither_arguments_nor_results() -> None:
    with written("json") as (logger, stream):
        data = {"id": "t1", "name": "h.one", "args": "(secret,)", "kwargs": "{}", "return_value": "secret"}
        logger.info("Task %(name)s[%(id)s] received", data, extra={"data": data})
    (line,) = lines(stream)
    assert (line["task_id"], line["task"], line["event"]) == ("t1", "h.one", "Task h.one[t1] received")
    assert "secret" not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_variables_and_no_password(form: str) -> None:
    with written(form) as (logger, stream):
        try:
            fail("canary-variable", "canary-password")
        except ValueError:
            logger.exception("failed for %s", "redis://:canary-other@host/0")
    text = stream.getvalue().replace('\\"', '"')
    assert "ValueError" in text
    assert "test_logs.py" in text
    assert "redis://:***@host/0" in text
    assert "postgresql://me:***@db/x" in text
    assert "canary-" not in text.replace('fail("canary-variable", "canary-password")', "")


def fail(variable: str, password: str) -> None:
    del variable
    raise ValueError(f"cannot reach postgresql://me:{password}@db/x")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_has_an_end_whatever_was_raised(form: str) -> None:
    with written(form) as (logger, stream):
        logger.error("x" * 10_000_000, exc_info=ValueError("y" * 10_000_000), extra={"batch": "b1"})
    text = stream.getvalue()
    assert len(text) < 2 * logs.TEXT_LIMIT + 1_000
    assert "(cut: 10,000,000 characters)" in text
    assert "b1" in text


@pytest.mark.parametrize("end", [0, 1, 20, 24, 25, 28, 35])
def test_a_url_that_is_cut_shows_no_password(end: int) -> None:
    url = "redis://somebody:password@host:6379/0"
    with written("json") as (logger, stream):
        logger.info("%s %s and more", "x" * (logs.TEXT_LIMIT - 1 - end), url)
    (line,) = lines(stream)
    assert "cut: 1" in line["event"]
    assert "pass" not in line["event"]
    assert len(line["event"]) > logs.TEXT_LIMIT - 50


def test_a_key_cannot_forge_a_line_or_steer_a_terminal() -> None:
    with written("console") as (logger, stream), about(Run()):
        logger.info("odd \x1b[31m name\n2026 [info] forged")
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert r"key\n1" in line
    assert r"\x1b[31m name\n2026" in line


def test_events_and_fields_go_through_the_standard_library(caplog: pytest.LogCaptureFixture) -> None:
    log = Log("tests.events")
    with caplog.at_level(logging.INFO, "tests.events"):
        log.info("leads", manager="m1", epoch=7)
        log.warning("is away", error="x")
    first, second = caplog.records
    assert (first.getMessage(), vars(first)["manager"], vars(first)["epoch"]) == ("leads", "m1", 7)
    assert second.levelno == logging.WARNING


def test_an_applications_own_format_can_name_the_fields() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(batch)s %(run)s %(message)s"))
    handler.addFilter(RunFields())
    logger = logging.getLogger("tests.host")
    logger.addHandler(handler)
    try:
        with about(Run()):
            logger.error("inside")
        logger.error("outside")
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue().splitlines() == ["b1 2 inside", "None None outside"]


@pytest.fixture
def own_structlog() -> Iterator[None]:
    """structlog as nobody has set it up, and so again afterwards."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("own_structlog")
def test_what_a_handler_logs_with_structlog_carries_them_too() -> None:
    logs.configure_structlog()
    with written("json") as (_, stream), about(Run()):
        structlog.get_logger("tests.logs").info("hello", mine=1)
    (line,) = lines(stream)
    assert {name: line[name] for name in FIELDS} == RUN
    assert (line["event"], line["mine"], line["level"]) == ("hello", 1, "info")


@pytest.mark.usefixtures("own_structlog")
def test_a_program_that_has_set_structlog_up_keeps_it() -> None:
    chain: list[Processor] = [structlog.processors.KeyValueRenderer()]
    structlog.configure(processors=chain)
    logs.configure_structlog()
    assert structlog.get_config()["processors"] == chain


@pytest.mark.parametrize(("name", "value"), [("LOG_FORMAT", "xml"), ("LOG_LEVEL", "loud")])
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"BATCHING_{name}", value)
    with pytest.raises(ConfigurationError, match=f"BATCHING_{name}"):
        get_settings()


def test_settings_take_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHING_LOG_FORMAT", "JSON")
    monkeypatch.setenv("BATCHING_LOG_LEVEL", "debug")
    settings = get_settings()
    assert (settings.log_format, settings.log_level) == ("json", "DEBUG")


def test_producers_load_no_structlog() -> None:
    code = "import sys; import batching.queue_manager, batching.sweeper; sys.exit('structlog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
