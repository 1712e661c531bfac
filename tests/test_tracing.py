from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, current_task, signals
from celery.app.trace import setup_worker_optimizations

from batching import handlers as marks
from batching.errors import BatchingError, ConfigurationError
from batching.handlers import Handler, Profile
from batching.interfaces import Ending, Outcome
from workers.failures import MESSAGE_LIMIT, TRACEBACK_LIMIT, fingerprint, storable
from workers.tasks import bind, check_pool
from workers.tracing import Assignment, Surroundings, outcome_of, trace_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

marks.load(["tests.worker_handlers"])


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("traced", broker="memory://", set_as_current=False)
    app.set_current()
    app.finalize()
    bind(app, marks.registered().values())
    yield app
    app.close()


def an_assignment(handler: str, payload: Any, **changes: Any) -> Assignment:
    given = Assignment(
        handler, str(uuid.uuid4()), 2, 65_536, "node@host", "w1", None, 7, 1, "k7", json.dumps(payload), 1
    )
    return given._replace(**changes)


def run(app: Celery, handler: str, payload: Any, **changes: Any) -> Outcome:
    assert app.tasks[handler].name == handler
    answer = trace_run(an_assignment(handler, payload, **changes))
    return outcome_of(pickle.loads(pickle.dumps(answer)))


def bound(app: Celery, function: Callable[[Profile], Any]) -> str:
    handler = Handler(f"tests.{uuid.uuid4().hex}", function)
    bind(app, [handler])
    return handler.name


def test_a_handler_gets_its_profile_and_its_result_is_json(app: Celery) -> None:
    seen: list[Profile] = []

    def look(profile: Profile) -> Any:
        seen.append(profile)
        return {"ü": [1, None, 0.5]}

    name = bound(app, look)
    given = an_assignment(name, {"a": 1}, run=4, attempt=2)
    outcome = outcome_of(trace_run(given))
    assert outcome == Outcome(Ending.SUCCEEDED, '{"ü":[1,null,0.5]}')
    assert seen == [Profile("k7", {"a": 1}, given.batch_id, 2, 4, 2, f"{given.batch_id}.7")]


@pytest.mark.parametrize(
    ("how", "ending", "kind", "message"),
    [
        ("raise", Ending.FAILED, "ValueError", "no use for 'it'"),
        ("skip", Ending.SKIPPED, "SkipProfile", "nothing to do"),
        ("retry", Ending.RETRY, "batching.errors.RetryProfile", "not yet"),
        ("fail batch", Ending.FAILED_BATCH, "batching.errors.FailBatch", "no more of these"),
        ("memory", Ending.FAILED, "MemoryError", "no room"),
        ("exit", Ending.FAILED, "SystemExit", "3"),
        ("interrupt", Ending.FAILED, "KeyboardInterrupt", ""),
        ("set", Ending.FAILED, "batching.errors.ResultNotJSONError", "handler tests.odd returned a set"),
        ("nan", Ending.FAILED, "batching.errors.ResultNotJSONError", "handler tests.odd returned a float"),
        ("large", Ending.FAILED, "batching.errors.ResultTooLargeError", "returned 100,002 bytes"),
        ("surrogate", Ending.FAILED, "batching.errors.ResultNotJSONError", "lone surrogate"),
    ],
)
def test_every_way_to_end_is_contained(app: Celery, how: str, ending: Ending, kind: str, message: str) -> None:
    outcome = run(app, "tests.odd", how)
    assert outcome.ending is ending
    assert outcome.result is None
    assert outcome.error is not None
    assert outcome.error.type == kind
    assert message in outcome.error.message


def test_a_retry_brings_its_delay(app: Celery) -> None:
    assert run(app, "tests.odd", "retry").delay == 0.01
    assert run(app, "tests.odd", "raise").delay is None


def test_the_traceback_is_the_handlers_own(app: Celery) -> None:
    error = run(app, "tests.odd", "raise").error
    assert error is not None
    assert "worker_handlers.py" in error.traceback
    assert "celery" not in error.traceback
    assert "tracing.py" not in error.traceback


def test_bounds_hold_for_endless_messages(app: Celery) -> None:
    def boast(profile: Profile) -> None:
        raise RuntimeError("\x00\ud800" + "x" * 100_000)

    error = run(app, bound(app, boast), None).error
    assert error is not None
    assert len(error.message) <= MESSAGE_LIMIT
    assert len(error.traceback) <= TRACEBACK_LIMIT
    assert "\x00" not in error.message + error.traceback
    (error.message + error.traceback).encode("utf-8")


def test_an_exception_that_cannot_be_printed_or_pickled_is_a_failure_like_any(app: Celery) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise TypeError("no words")

        def __reduce__(self) -> Any:
            raise TypeError("no pickle")

    def fail(profile: Profile) -> None:
        raise MuteError

    error = run(app, bound(app, fail), None).error
    assert error is not None
    assert "Mute" in error.type
    assert "could not be made" in error.message


def test_fingerprints_ignore_what_varies() -> None:
    one = fingerprint("ValueError", f"row 17 of 'a.csv' at 0xdeadbeef, {uuid.uuid4()}", "f.py:go")
    other = fingerprint("ValueError", f"row 4 of 'b.csv' at 0x1234, {uuid.uuid4()}", "f.py:go")
    assert one == other
    assert len(one) == 16
    assert fingerprint("ValueError", "row 17 of 'a.csv'", "f.py:gone") != one
    assert fingerprint("KeyError", "row 17 of 'a.csv' at 0xdeadbeef", "f.py:go") != one


def test_the_same_failure_of_two_profiles_has_one_fingerprint(app: Celery) -> None:
    errors = [run(app, "tests.odd", "raise", run=number).error for number in (1, 22)]
    assert errors[0] is not None
    assert errors[1] is not None
    assert errors[0].message != errors[1].message
    assert errors[0].fingerprint == errors[1].fingerprint


def test_logs_and_signals_show_sizes_not_results(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    setup_worker_optimizations(app, "node@host")
    secret = "payload-and-result"
    told: list[Any] = []
    receivers = {
        signals.task_prerun: lambda **given: told.append(given),
        signals.task_postrun: lambda **given: told.append(given),
        signals.task_success: lambda **given: told.append(given),
    }
    for signal, receiver in receivers.items():
        signal.connect(receiver, weak=False)
    try:
        app.tasks["tests.echo"].__trace__ = None
        assert run(app, "tests.echo", secret).result == f'"{secret}"'
    finally:
        for signal, receiver in receivers.items():
            signal.disconnect(receiver)
    assert len(told) == 3
    assert secret not in repr(told)
    assert "succeeded in" in caplog.text
    assert "<20 bytes>" in caplog.text
    assert secret not in caplog.text


def test_each_thread_is_at_its_own_run(app: Celery) -> None:
    both = threading.Barrier(2)

    def look(profile: Profile) -> Any:
        both.wait(20)
        found = current_task.request.id
        both.wait(20)
        return found

    name = bound(app, look)
    given = [an_assignment(name, None), an_assignment(name, None)]
    around = Surroundings(app.tasks, None)
    with ThreadPoolExecutor(2) as pool:
        outcomes = [outcome_of(answer) for answer in pool.map(lambda each: trace_run(each, around), given)]
    assert [outcome.result for outcome in outcomes] == [f'"{each.task_id}"' for each in given]
    assert not app.tasks[name].request_stack


GREENLETS = """
from gevent import monkey

monkey.patch_all()
import gevent
from celery import Celery, current_task
from batching.handlers import Handler
from workers.tasks import bind
from workers.tracing import Assignment, Surroundings, outcome_of, trace_run

app = Celery("traced", broker="memory://")


def look(profile):
    before = current_task.request.id
    gevent.sleep(0.01)  # the other one runs meanwhile
    assert current_task.request.id == before
    return before


bind(app, [Handler("tests.look", look)])
given = [Assignment("tests.look", f"b{n}", 1, 1_000, "node@host", "w1", None, 7, 1, "k", "null", 1) for n in range(2)]
jobs = [gevent.spawn(trace_run, each, Surroundings(app.tasks, None)) for each in given]
gevent.joinall(jobs)
assert [outcome_of(job.value).result for job in jobs] == [f'"{each.task_id}"' for each in given]
"""


def test_each_greenlet_is_at_its_own_run() -> None:
    done = subprocess.run([sys.executable, "-c", GREENLETS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("backend", "asked"), [(None, True), ("cache+memory://", False)])
def test_an_applications_result_backend_stays_its_own(backend: str | None, asked: bool) -> None:
    app = Celery("traced", broker="memory://", backend=backend, set_as_current=False)
    name = bound(app, lambda profile: None)
    assert (vars(app.tasks[name]).get("_backend") is not None) is asked
    app.close()


def test_failures_and_retries_reach_celerys_signals(app: Celery) -> None:
    told: list[str] = []

    def failed(**given: Any) -> None:
        told.append("failed")

    def retried(**given: Any) -> None:
        told.append("retried")

    signals.task_failure.connect(failed)
    signals.task_retry.connect(retried)
    for how in ("raise", "exit", "retry", "skip"):
        run(app, "tests.odd", how)
    signals.task_failure.disconnect(failed)
    signals.task_retry.disconnect(retried)
    assert told == ["failed", "failed", "retried"]


def test_a_task_called_by_itself_says_what_to_do(app: Celery) -> None:
    with pytest.raises(BatchingError, match="submit one"):
        app.tasks["tests.echo"]()


def test_a_handler_that_calls_its_own_task_fails_alone(app: Celery) -> None:
    name = bound(app, lambda _: app.tasks["tests.echo"]())
    error = run(app, name, 1).error
    assert error is not None
    assert "submit one" in error.message


def test_binding_twice_keeps_the_task(app: Celery) -> None:
    first = dict(bind(app, marks.registered().values()))
    assert bind(app, marks.registered().values()) == first


def test_a_handler_may_have_any_legal_name(app: Celery) -> None:
    handler = Handler("9-lives.of-a_cat", lambda profile: profile.payload)
    bind(app, [handler])
    assert run(app, handler.name, 9).result == "9"


def test_a_task_of_the_applications_own_is_not_replaced(app: Celery) -> None:
    def mine() -> None: ...

    app.task(name="own.task", shared=False)(mine)
    with pytest.raises(ConfigurationError, match="has a task of that name"):
        bind(app, [Handler("own.task", lambda profile: None)])


@pytest.mark.parametrize("option", ["autoretry_for", "bind", "rate_limit"])
def test_options_that_would_act_behind_the_queues_back_are_refused(app: Celery, option: str) -> None:
    with pytest.raises(ConfigurationError, match=option):
        bind(app, [Handler("tests.refused", lambda profile: None, {option: (ValueError,)})])


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent"])
@pytest.mark.parametrize("option", ["time_limit", "soft_time_limit"])
def test_time_limits_need_prefork(pool: str, option: str) -> None:
    limited = [Handler("tests.limited", lambda profile: None, {option: 5})]
    check_pool(limited, "prefork")
    with pytest.raises(ConfigurationError, match=rf"tests.limited in the {pool} pool"):
        check_pool(limited, pool)


def test_texts_are_storable() -> None:
    assert storable("a\x00b", 10) == "a\\x00b"
    assert storable("abcdef", 4) == "abc…"
    assert len(storable("\ud800" * 50, 20)) <= 20
