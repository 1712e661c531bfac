from __future__ import annotations

import json
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.worker.strategy import default as celery_strategy
from kombu import Connection
from kombu.utils.json import loads as kombu_loads

from batching.errors import BrokerUnavailableError, ConfigurationError
from batching.interfaces import Dispatch, Lane, Publisher, RunId
from workers.publisher import RedisPublisher, lane_key, message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import ValkeyServer

LANE = Lane("default", "tests.echo")


def a_dispatch(number: int = 1, *, key: str = "k", alone: bool = False, lane: Lane = LANE) -> Dispatch:
    return Dispatch(RunId(str(uuid.uuid4()), number, 3), key, lane, 2, 1, alone)


@pytest.fixture
def publisher(broker_url: str, key_prefix: str) -> Iterator[RedisPublisher]:
    made = RedisPublisher(broker_url, key_prefix)
    yield made
    made.close()


def test_it_keeps_the_contract(publisher: RedisPublisher) -> None:
    contract: Publisher = publisher
    assert isinstance(contract, Publisher)


@pytest.mark.parametrize("key", ["k", 'quo"te', "ünï\u2028code", "new\nline", "it's"])
def test_celery_and_kombu_read_the_message(key: str) -> None:
    app = Celery("reader", broker="memory://", set_as_current=False)
    dispatch = a_dispatch(key=key)
    task_id = dispatch.run.task_id
    kwargs = {"batch": dispatch.run.batch_id, "number": 1, "run": 3}
    expected = app.amqp.as_task_v2(
        task_id, "tests.echo", (), kwargs, retries=1, root_id=dispatch.run.batch_id, ignore_result=True, argsrepr="()",
        kwargsrepr=repr({"batch": dispatch.run.batch_id, "profile": key, "attempt": 2, "pass": 1}), origin="me",
    )  # fmt: skip
    envelope = kombu_loads(message(dispatch, "lane", "me"))

    with Connection("memory://") as connection:
        channel: Any = connection.channel()
        read = channel.message_to_python(envelope)
        assert read.headers.items() <= expected.headers.items()
        # What is left out is optional in the protocol, and says nothing.
        silent = [expected.headers[name] for name in expected.headers.keys() - read.headers.keys()]
        assert {"lang", "task", "id", "root_id", "parent_id", "group"} <= read.headers.keys()
        assert not any(any(value) if isinstance(value, list) else value for value in silent)
        args, given, embed = read.decode()
        assert (args, given) == ([], kwargs)
        assert not any(value for value in (expected.body[2] | embed).values())
        assert read.properties["correlation_id"] == task_id
        # kombu's own envelope has these keys, and no others.
        ours = set(envelope)
        assert ours == set(channel.prepare_message("", headers={}, properties={}))


def test_a_plain_celery_worker_accepts_the_message() -> None:
    app = Celery("reader", broker="memory://", set_as_current=False)
    app.finalize()
    ran: list[Any] = []

    def echo(**given: Any) -> None:
        ran.append(given)

    task = app.task(name="tests.echo", shared=False)(echo)
    consumer: Any = SimpleNamespace(
        hostname="h", connection_errors=(), event_dispatcher=None, timer=SimpleNamespace(call_at=None), pool=_Pool(),
        apply_eta_task=None, disable_rate_limits=True, task_buckets={}, on_task_request=ran.append, _limit_task=None,
        _limit_post_eta=None, controller=SimpleNamespace(state=SimpleNamespace(revoked=())), app=app,
    )  # fmt: skip
    dispatch = a_dispatch()
    with Connection("memory://") as connection:
        channel: Any = connection.channel()
        read = channel.message_to_python(kombu_loads(message(dispatch, "lane", "me")))
        celery_strategy(app.tasks[task.name], app, consumer)(read, None, None, None, [])
    (request,) = ran
    assert request.id == dispatch.run.task_id
    assert request.root_id == dispatch.run.batch_id
    assert request.kwargs == {"batch": dispatch.run.batch_id, "number": 1, "run": 3}


class _Pool:
    def apply_async(self, *_: Any, **__: Any) -> None: ...


def test_lanes_are_lists_in_the_order_of_dispatch(publisher: RedisPublisher, key_prefix: str) -> None:
    other = Lane("night", "tests.nap")
    first = [a_dispatch(number) for number in range(1, 1203)]
    publisher.publish([*first, a_dispatch(lane=other)])
    assert publisher.lengths([LANE, other, Lane("none", "none")]) == {LANE: 1202, other: 1, Lane("none", "none"): 0}
    popped: Any = publisher.client.rpop(lane_key(key_prefix, LANE), 1202)
    assert [json.loads(raw)["headers"]["id"] for raw in popped] == [dispatch.run.task_id for dispatch in first]


def test_what_is_put_back_is_popped_next(publisher: RedisPublisher, key_prefix: str) -> None:
    publisher.publish([a_dispatch(number) for number in (1, 2, 3)])
    key = lane_key(key_prefix, LANE)
    popped: Any = publisher.client.rpop(key, 2)
    publisher.put_back([(key, raw) for raw in popped])
    again: Any = publisher.client.rpop(key, 2)
    assert again == popped


def test_only_runs_that_go_alone_say_so() -> None:
    assert json.loads(message(a_dispatch(alone=True), "lane", "me"))["headers"]["alone"] is True
    assert "alone" not in json.loads(message(a_dispatch(), "lane", "me"))["headers"]


def test_the_message_carries_no_payload_and_stays_small() -> None:
    assert len(message(a_dispatch(key="k" * 255), "lane", "me")) < 2_000


def test_discard_empties_one_lane_only(publisher: RedisPublisher) -> None:
    other = Lane("night", "tests.nap")
    publisher.publish([a_dispatch(), a_dispatch(lane=other)])
    publisher.discard(LANE)
    assert publisher.lengths([LANE, other]) == {LANE: 0, other: 1}


def test_the_incarnation_changes_with_a_flush_and_a_restart(own_valkey: ValkeyServer) -> None:
    publisher = RedisPublisher(own_valkey.url, "p:")
    first = publisher.incarnation()
    assert publisher.incarnation() == first
    own_valkey.flush()
    second = publisher.incarnation()
    assert second != first
    own_valkey.restart()
    assert publisher.incarnation() not in {first, second}
    publisher.close()


def test_hints_do_not_pile_up(publisher: RedisPublisher) -> None:
    for _ in range(5):
        publisher.hint()
    assert publisher.wait_hint(1.0) is True
    assert publisher.wait_hint(0.05) is False


def test_a_server_that_is_away_is_an_error_of_ours(own_valkey: ValkeyServer) -> None:
    publisher = RedisPublisher(own_valkey.url, "p:")
    publisher.check()
    own_valkey.kill()
    for call in (lambda: publisher.publish([a_dispatch()]), publisher.hint, publisher.incarnation, publisher.check):
        with pytest.raises(BrokerUnavailableError, match="cannot reach the broker"):
            call()
    publisher.close()


@pytest.mark.parametrize("url", ["amqp://guest:secret@host//", "memory://", "sqs://", "nonsense"])
def test_brokers_without_lists_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="lanes need Redis or Valkey") as refused:
        RedisPublisher(url)
    assert "secret" not in str(refused.value)
