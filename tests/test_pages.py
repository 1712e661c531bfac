"""The pages of the dashboard, without scripts: what they say, whom they let act, and that they escape everything."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from batching.interfaces import Ending, ErrorInfo, Outcome
from batching.models import callbacks
from batching.options import BatchOptions
from batching.queue_manager import QueueManager
from batching.settings import Settings
from batching.states import BatchState, ProfileState, StopTarget
from batching.statistics import Durations, ThroughputPoint
from batching.web.app import create_app
from batching.web.identity import make_token
from batching.web.pages import charts, finding, words
from tests.accounting import DONE, FAILED, HANDLER, Desk, end, plant_batch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2 as httpx

    from batching.database import Database
    from batching.statistics import BatchView

HOST = "http://127.0.0.1"
CANARY = "<script>alert('canary')</script>\"'><img src=x onerror=alert(2)>"
NASTY = Outcome(Ending.FAILED, error=ErrorInfo(CANARY, CANARY, "c" * 16, CANARY))


class Site:
    """A dashboard, and whoever looks at it."""

    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        self.desk = Desk(database)
        self.queue = QueueManager(database, settings=Settings(**settings))
        self.client = TestClient(create_app(self.queue, Settings(**settings)), base_url=HOST)

    def get(self, path: str, status: int = 200, **headers: str) -> str:
        answer = self.client.get(path, headers={"accept": "text/html", **headers})
        assert answer.status_code == status, (path, answer.status_code, answer.text[:2_000])
        return answer.text

    def post(self, path: str, **fields: str) -> httpx.Response:
        """Send a form as the page has it, and follow to what it leads to."""
        keyring = self.client.app.state.context.keyring  # type: ignore[attr-defined]  # it is typed as any ASGI
        return self.client.post(
            path, data={"csrf_token": keyring.form_token(""), **fields}, headers={"accept": "text/html"}
        )

    def flash(self, answer: httpx.Response) -> str:
        found = re.search(r'id="flash"[^>]*>(.*?)</p>', answer.text, re.DOTALL)
        assert found is not None, answer.text[:3_000]
        return found.group(1)


@pytest.fixture
def site(database: Database) -> Iterator[Site]:
    found = Site(database)
    found.desk.register()
    with found.client:
        yield found


def submit(site: Site, count: int = 3, **more: Any) -> str:
    options = BatchOptions(max_attempts=1, max_passes=1, pass_backoff=0, failure_budget=100)
    given = {"options": options, "name": "nightly", **more}
    return site.queue.submit(HANDLER, [(f"k{n}", {"n": n}) for n in range(1, count + 1)], **given).id


def run(site: Site, batch_id: str, outcome: Outcome = DONE, limit: int = 1_000) -> None:
    """Promote it when it waits, run what is due of it."""
    if site.desk.state(batch_id) is BatchState.QUEUED:
        assert site.desk.states.promote("default", site.desk.term) == batch_id
    site.desk.work(batch_id, lambda _: outcome, limit)


def text_of(html: str) -> str:
    """What a person reads: without markup, on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


# --- what they say


def test_the_line_shows_what_runs_what_waits_in_order_and_what_ended(site: Site) -> None:
    done = submit(site, name="done")
    run(site, done)
    running = submit(site, name="under way", count=10)
    run(site, running, limit=4)
    names = ["first", "second", "third"]
    for name in names:
        submit(site, name=name)
    page = site.get("/")
    parts = {part: page.partition(f'id="part-{part}"')[2].partition("</section>")[0] for part in _SECTIONS}
    assert "under way" in parts["running"]
    assert "40 %" in parts["running"]
    assert re.findall(r">(first|second|third)<", parts["waiting"]) == names
    assert "done" in parts["finished"]
    assert "100 %" in parts["finished"]
    assert "under way" not in parts["finished"]


_SECTIONS = ("running", "waiting", "paused", "finished")


def test_what_is_wrong_is_said_first(database: Database) -> None:
    site = Site(database)
    with site.client:
        page = text_of(site.get("/"))
        assert "No manager leads" in page
        assert "No worker is alive" in page
        site.desk.register(handlers=("another.handler",))
        batch_id = submit(site)
        assert site.desk.term
        site.desk.states.promote("default", site.desk.term)
        page = text_of(site.get("/"))
        assert f"1 batch cannot run: no live worker serves handler {HANDLER}" in page
        assert "No manager leads" not in page
        failing = submit(site, options=BatchOptions(max_attempts=1, max_passes=1))
        site.queue.cancel(batch_id)
        site.desk.states.conclude([batch_id])
        run(site, failing, FAILED)
        assert site.desk.state(failing) is BatchState.FAILED
        assert "1 batch failed in the last hour: nightly (pass 1 failed" in text_of(site.get("/"))


def test_a_batch_is_accounted_for(site: Site) -> None:
    batch_id = submit(site, 10, tags=["eu"], properties={"customer": 17}, key="key-1")
    run(site, batch_id, DONE, 5)
    run(site, batch_id, FAILED, 2)
    page = site.get(f"/batches/{batch_id}")
    assert "10 = 5 succeeded + 2 failed + 3 pending" in page
    text = text_of(page)
    for said in ("70 %", "key-1", "eu", "customer 17", "ValueError bad row", "2 profiles", "queued → ▶ running"):
        assert said in text, said
    assert text_of(site.get(f"/batches/{batch_id[:13]}")).count("accounted for") == 1, "a beginning of the id is enough"


def test_each_page_of_profiles_leads_to_the_next(site: Site) -> None:
    batch_id = submit(site, 120)
    seen: list[str] = []
    path: str | None = f"/batches/{batch_id}/profiles"
    while path:
        page = site.get(path)
        seen += re.findall(r"by=number\"><bdi>(k\d+)</bdi>", page)
        found = re.search(r'rel="next" href="([^"]+)"', page)
        path = found.group(1).replace("&amp;", "&") if found else None
    assert seen == [f"k{number}" for number in range(1, 121)]
    assert "k100<" in site.get(f"/batches/{batch_id}/profiles?start=100")
    assert re.findall(r"<bdi>(k\d+)</bdi></a></th>", site.get(f"/batches/{batch_id}/profiles?key=k11"))[:2] == [
        "k11",
        "k110",
    ]
    assert "No profile is like this" in site.get(f"/batches/{batch_id}/profiles?state=failed")


def test_a_profile_shows_its_payload_its_result_and_its_runs(site: Site) -> None:
    batch_id = submit(site, 3)
    run(site, batch_id, DONE, 1)
    run(site, batch_id, FAILED, 1)
    done = text_of(site.get(f"/batches/{batch_id}/profiles/k1"))
    assert "{&#34;n&#34;:1}" in done
    assert "{&#34;ok&#34;:true}" in done
    failed = text_of(site.get(f"/batches/{batch_id}/profiles/2?by=number"))
    assert "ValueError bad row" in failed
    assert site.desk.worker[:13] in failed
    assert "has none with this" in site.get(f"/batches/{batch_id}/profiles/nobody", 422)


def test_workers_tell_what_they_run_and_what_nobody_serves(site: Site) -> None:
    batch_id = submit(site, 3, name="in their hands")
    site.desk.states.promote("default", site.desk.term)
    site.desk.claim(batch_id, 2)
    site.queue.submit("nobody.has.it", ["a"])
    page = text_of(site.get("/workers"))
    assert "2 profiles in 4 prefork slots" in page
    assert "k1 of in their hands" in page
    assert "k3 of" not in page
    assert "nobody.has.it 0 0 1 nobody serves it" in page


def test_the_system_shows_queues_limits_and_callbacks_that_are_dead(site: Site) -> None:
    site.queue.queues.set("side", max_concurrency=7)
    site.queue.queues.pause("side")
    site.queue.limits.set("crm-api", "10/s")
    batch_id = submit(site, options=BatchOptions(max_attempts=1, on_finish="some.task"))
    run(site, batch_id)
    with site.database.begin() as connection:
        from batching.dialects import now

        connection.execute(callbacks.update().values(state="dead", settled_at=now(), error="refused"))
    page = text_of(site.get("/system"))
    for said in (
        "side paused",
        "7 profiles at most",
        "crm-api 10/s",
        "finish, pass 1 some.task refused dead",
        "1 dead",
    ):
        assert said in page, said


def test_what_is_not_there_is_a_page_too(site: Site) -> None:
    page = site.get("/batches/00000000-0000-7000-8000-000000000000", 404)
    assert "There is no such thing" in page
    assert "<!doctype html>" in page
    assert "cannot search for the state" in site.get("/?q=state:odd", 422)


@pytest.mark.parametrize("page", ["/", "/?q=nightly", "/workers", "/system", "/batches/{}"])
def test_each_part_of_a_page_can_be_had_alone_and_is_the_same(site: Site, page: str) -> None:
    batch_id = submit(site)
    run(site, batch_id, FAILED, 1)
    path = page.format(batch_id)
    whole = site.get(path)
    names = re.findall(r'data-live="(\w+)"', whole)
    assert names
    for name in names:
        part = site.get(f"{path}{'&' if '?' in path else '?'}parts={name}")
        assert f'data-live="{name}"' in part
        assert "<html" not in part
        assert re.findall(r'data-live="(\w+)"', part) == [name]
    assert "<html" in site.get(f"{path}{'&' if '?' in path else '?'}parts=../../etc/passwd")


# --- what they escape


def test_nothing_that_a_batch_carries_becomes_markup(site: Site) -> None:
    batch_id = site.queue.submit(
        HANDLER,
        [{"key": CANARY, "payload": {"evil": CANARY}}, {"key": "k/../&?#%2F", "payload": None}],
        name=CANARY,
        key=CANARY,
        group=CANARY,
        tags=[CANARY],
        properties={"customer": CANARY},
        options=BatchOptions(max_attempts=1, max_passes=1, failure_budget=10),
    ).id
    site.desk.states.promote("default", site.desk.term)
    claimed = site.desk.claim(batch_id, 2)
    site.desk.states.settle(site.desk.worker, [end(each, NASTY) for each in claimed])
    site.queue.pause(batch_id, CANARY)
    paths = [
        "/",
        f"/?q={CANARY.replace('&', '').replace('#', '')}",
        f"/batches/{batch_id}",
        f"/batches/{batch_id}/profiles",
        f"/batches/{batch_id}/profiles?key=%3Cscript%3E",
        f"/batches/{batch_id}/profiles/1?by=number",
        f"/batches/{batch_id}/profiles/2?by=number",
        f"/batches/{batch_id}/steer/cancel",
        f"/batches/{batch_id}/steer/retry?fingerprint={'c' * 16}",
        f"/batches/{batch_id}/steer/retry?profile=%3Cscript%3E&to=%22%3E%3Cscript%3E",
    ]
    for path in paths:
        answer = site.client.get(path, headers={"accept": "text/html"})
        assert "<script>alert" not in answer.text, path
        assert "<img" not in answer.text, path
        assert "&lt;script&gt;" in answer.text or answer.status_code >= 400, path
        assert not re.search(r"<[^>]+ style=", answer.text), path
        assert not re.search(r"<[^>]+ on\w+=", re.sub(r'"[^"]*"', '""', answer.text)), path


def test_every_link_to_a_profile_leads_to_that_profile(site: Site) -> None:
    keys = ["a/b", "a?b", "a#b", "a b", "ü", "2", "1"]
    batch_id = site.queue.submit(HANDLER, keys).id
    page = site.get(f"/batches/{batch_id}/profiles")
    for number, key in enumerate(keys, 1):
        assert f"/profiles/{number}?by=number" in page
        shown = site.get(f"/batches/{batch_id}/profiles/{number}?by=number")
        assert f"<h1><bdi>{key}</bdi></h1>" in shown
    quoted = site.client.app.state.context.templates.filters["path"]  # type: ignore[attr-defined]
    for key in keys:
        assert f"<h1><bdi>{key}</bdi></h1>" in site.get(f"/batches/{batch_id}/profiles/{quoted(key)}")


# --- who may act


def test_verbs_act_and_say_what_came_of_it(site: Site) -> None:
    first, second = submit(site, name="one"), submit(site, name="two")
    assert "Paused “one”: it is paused" in site.flash(site.post(f"/batches/{first}/steer/pause", to="/", reason="why"))
    assert site.queue.statistics.batch(first).reason == "why"
    assert "Resumed “one”: it is queued, place 1" in site.flash(site.post(f"/batches/{first}/steer/resume", to="/"))
    said = site.flash(site.post(f"/batches/{second}/steer/move", to="/", place="before", other=first))
    assert "Moved “two” before “one”: it is queued, place 1" in said
    assert [view.name for view in site.queue.statistics.batches()] == ["two", "one"]
    site.post(f"/batches/{second}/steer/move", place="down", to="/")
    assert [view.name for view in site.queue.statistics.batches()] == ["one", "two"]
    site.post(f"/batches/{second}/steer/move", place="up", to="/")
    site.post(f"/batches/{second}/steer/move", place="up", to="/")
    assert [view.name for view in site.queue.statistics.batches()] == ["two", "one"], "up of the first stays"
    site.post(f"/batches/{second}/steer/move", place="end", to="/")
    site.post(f"/batches/{second}/steer/execute", to="/")
    assert [view.name for view in site.queue.statistics.batches()] == ["two", "one"]
    assert "Cancelled “two”" in site.flash(site.post(f"/batches/{second}/steer/cancel", to="/"))
    assert "Will retry “two”: it is queued" in site.flash(site.post(f"/batches/{second}/steer/retry", to="/"))


def test_what_is_refused_is_said_in_the_words_of_the_refusal(site: Site) -> None:
    batch_id = submit(site)
    answer = site.post(f"/batches/{batch_id}/steer/resume", to=f"/batches/{batch_id}")
    assert str(answer.url) == f"{HOST}/batches/{batch_id}"
    assert "Cannot resume" in site.flash(answer)
    assert 'class="banner bad" id="flash" role="alert"' in answer.text
    assert 'id="flash"' not in site.get(f"/batches/{batch_id}"), "said once"
    other = submit(site, priority=5)
    said = site.flash(site.post(f"/batches/{batch_id}/steer/move", place="before", other=other, to="/"))
    assert "one queue, priority, group and deadline" in said
    answer = site.client.post(f"/batches/{batch_id}/steer/cancel", data={"to": "/"})
    assert answer.status_code == 403, "without the token of a form'"
    assert site.desk.state(batch_id) is BatchState.QUEUED


def test_failures_alike_are_retried_skipped_and_cancelled_and_others_are_not_touched(site: Site) -> None:
    batch_id = submit(site, 6)
    run(site, batch_id, FAILED, 2)
    run(site, batch_id, NASTY, 2)
    path, chosen = f"/batches/{batch_id}/steer", "f" * 16
    assert "Skip 2 profiles?" in text_of(site.get(f"{path}/skip?fingerprint={chosen}"))
    said = site.flash(site.post(f"{path}/skip", fingerprint=chosen, to="/"))
    assert "2 profiles skipped, of “nightly”" in said
    view = site.queue.statistics.batch(batch_id)
    assert (view.skipped, view.failed) == (2, 2)
    site.post(f"{path}/retry", profile="k3", to="/")
    assert site.queue.statistics.profile(batch_id, "k3").profile.state is ProfileState.PENDING
    assert site.queue.statistics.profile(batch_id, "k4").profile.state is ProfileState.FAILED
    assert "fails with" in site.get(f"{path}/retry?fingerprint=nobody", 422)
    assert "say which of its profiles" in site.get(f"{path}/skip", 422)


@pytest.mark.parametrize("to", ["https://example.org/", "//example.org", "/\\example.org", "javascript:alert(1)", ""])
def test_nobody_is_sent_away_from_here(site: Site, to: str) -> None:
    batch_id = submit(site)
    answer = site.post(f"/batches/{batch_id}/steer/pause", to=to)
    assert str(answer.url).startswith(f"{HOST}/")


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("kind", ["viewer", "read-only"])
def test_who_may_not_act_sees_no_button_and_is_refused(request: pytest.FixtureRequest, engine: str, kind: str) -> None:
    from batching.database import Database

    database = Database(request.getfixturevalue(f"{engine}_url"))
    token, entry = make_token("watcher", "viewer" if kind == "viewer" else "operator")
    site = Site(database, web_tokens=(entry,), web_read_only=kind == "read-only")
    site.desk.register()
    with site.client:
        site.client.headers["Authorization"] = f"Bearer {token}"
        running = submit(site, 3, name="runs")
        run(site, running, FAILED, 1)
        waiting = submit(site, name="waits")
        paths = ["/", f"/batches/{running}", f"/batches/{waiting}", f"/batches/{running}/profiles/k1", "/system"]
        for path in paths:
            page = site.get(path)
            assert "/steer/" not in page, path
            assert "data-handle" not in page, path
        assert ("{&#34;n&#34;:1}" in site.get(f"/batches/{running}/profiles/k1")) is (kind == "read-only")
        assert "<button" not in site.get(f"/batches/{running}/steer/cancel").partition("<main")[2]
        answer = site.client.post(f"/batches/{running}/steer/cancel", data={"to": "/"})
        assert answer.status_code == 403
        assert site.desk.state(running) is BatchState.RUNNING
    database.close()


def test_queues_and_callbacks_are_steered_too(site: Site) -> None:
    site.queue.queues.set("default")
    assert "Pause this queue?" in text_of(site.get("/queues/default/steer/pause"))
    assert "Paused the queue default" in site.flash(site.post("/queues/default/steer/pause"))
    assert site.queue.queues.get("default").paused
    assert "Resumed" in site.flash(site.post("/queues/default/steer/resume"))
    assert not site.queue.queues.get("default").paused
    site.get("/queues/nobody/steer/pause", 404)
    site.get("/queues/default/steer/odd", 422)
    said = site.flash(site.post("/callbacks/00000000-0000-7000-8000-000000000000/steer/retry"))
    assert "callback" in said


# --- words and drawings


def view_of(site: Site, batch_id: str) -> BatchView:
    return site.queue.statistics.batch(batch_id)


def test_a_bar_is_never_full_before_the_end(site: Site) -> None:
    batch_id = submit(site, 3)
    run(site, batch_id, DONE, 2)
    plant_batch(site.database, batch_id, total=3)
    view = view_of(site, batch_id)
    drawn = charts.segments(view)
    assert [each.state for each in drawn] == ["succeeded", "pending"]
    assert abs(sum(each.width for each in drawn) - 1_000) < 0.1
    claimed = site.desk.claim(batch_id, 1)
    site.desk.states.settle(site.desk.worker, [end(each) for each in claimed])
    full = view_of(site, batch_id)
    assert (full.succeeded, full.state, full.percent) == (3, BatchState.RUNNING, 99)
    assert charts.segments(full)[-1].state == "pending", "all settled, and not ended"
    site.desk.states.conclude([batch_id])
    assert [each.state for each in charts.segments(view_of(site, batch_id))] == ["succeeded"]


def test_a_single_failure_among_many_can_be_seen(site: Site) -> None:
    batch_id = submit(site, 2_000)
    site.desk.states.promote("default", site.desk.term)
    claimed = site.desk.claim(batch_id, 2_000)
    site.desk.states.settle(site.desk.worker, [end(each, FAILED if each.run.number == 7 else DONE) for each in claimed])
    widths = {each.state: each.width for each in charts.segments(view_of(site, batch_id))}
    assert widths["failed"] >= 3


def test_a_stopping_batch_can_be_cancelled_and_a_cancelled_one_not_twice(site: Site) -> None:
    from batching.web.pages.steering import verbs_of

    batch_id = submit(site)
    site.desk.states.promote("default", site.desk.term)
    site.desk.claim(batch_id, 1)
    site.desk.states.stop(batch_id, StopTarget.PAUSED, "p")
    assert verbs_of(view_of(site, batch_id)) == ["cancel"]
    site.desk.states.stop(batch_id, StopTarget.CANCELLED, "c")
    assert verbs_of(view_of(site, batch_id)) == []


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("nightly run", {"name": "nightly run"}),
        ('"two words" tag:eu tag:"a b"', {"name": "two words", "tags": ["eu", "a b"]}),
        ("state:failed key:k-1 handler:h queue:q", {"states": ["failed"], "key": "k-1", "handler": "h", "queue": "q"}),
        ("customer=17 paid=true city=Bern", {"properties": {"customer": 17, "paid": True, "city": "Bern"}}),
        ("it's: fine", {"name": "it's: fine"}),
        ("0192f0c1", {"batch_id": "0192f0c1", "name": "0192f0c1"}),
    ],
)
def test_what_is_typed_is_understood(typed: str, expected: dict[str, Any]) -> None:
    asked = finding.read(typed)
    assert {name: getattr(asked, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.25, "250 ms"),
        (7.3, "7.3 s"),
        (45, "45 s"),
        (200, "3 min 20 s"),
        (900, "15 min"),
        (7_500, "2 h 05 min"),
        (None, "-"),
    ],
)
def test_durations_are_worded(seconds: float | None, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (59, "59 s"), (90, "2 min"), (9_000, "2.5 h"), (90_000_000, "1,042 d")]
)
def test_estimates_are_worded_as_they_deserve(seconds: float, said: str) -> None:
    assert words.about(seconds) == said


def test_what_shows_nothing_is_shown() -> None:
    assert words.shown("a\u202eb\x00c\u200b") == "a\\u202eb\\x00c\\u200b"
    assert words.shown("ü \u0645 \U0001f600") == "ü \u0645 \U0001f600"


def points(*settled: int, seconds: int = 10) -> list[ThroughputPoint]:
    start = datetime(2026, 11, 23, 3, tzinfo=UTC)
    return [
        ThroughputPoint(start + timedelta(seconds=seconds * n), seconds, count, count - count // 10, count // 10, 0)
        for n, count in enumerate(settled)
    ]


def test_throughput_is_drawn_to_a_round_scale_and_told_in_numbers() -> None:
    drawn = charts.throughput(points(100, 0, 430), over=True)
    assert drawn is not None
    assert (drawn.top, drawn.left, drawn.right) == ("50/s", "03:00:00", "03:00:30")
    heights = [sum(block.height for block in column.blocks) for column in drawn.columns]
    assert heights == [pytest.approx(20), 0, pytest.approx(86)]
    assert drawn.columns[2].cells == ("03:00:20", "10", "430", "387", "43", "43/s")
    assert drawn.summary == "530 profiles settled in 30 s, 53 of them failed; 18/s on average, at most 43/s"


def test_a_span_that_has_just_begun_is_no_collapse() -> None:
    assert [each.settled for each in charts.spans(points(100, 90, 1), over=False)] == [100, 90]
    assert [each.settled for each in charts.spans(points(100, 90, 1), over=True)] == [100, 90, 1]
    assert charts.throughput(points(0, 0, 0)) is None
    assert charts.throughput([]) is None
    assert charts.failures(points(5, 5, 5)) is None


@pytest.mark.parametrize("count", [1, 89, 90, 91, 180, 361, 1_441])
def test_no_more_columns_than_can_be_told_apart_and_the_latest_is_always_there(count: int) -> None:
    found = charts.spans(points(*range(1, count + 1)), over=True)
    assert len(found) <= 90
    assert len({each.seconds for each in found}) == 1
    assert found[-1].end == points(*range(count))[-1].at + timedelta(seconds=10)
    assert sum(each.settled for each in found) >= sum(range(1, count + 1)) * 0.9


def test_durations_tell_where_half_and_nearly_all_are() -> None:
    drawn = charts.histogram(Durations((0.01, 0.1, 1.0, 10.0, float("inf")), (0, 60, 30, 9, 1), 130.0))
    assert drawn is not None
    assert drawn.summary == "100 runs: half took up to 100 ms, 95 % up to 10 s; 1.3 s on average"
    assert [column.cells[0] for column in drawn.columns] == [
        "up to 10 ms", "10 ms to 100 ms", "100 ms to 1.0 s", "1.0 s to 10 s", "over 10 s",
    ]  # fmt: skip
    assert charts.histogram(Durations((1.0, float("inf")), (0, 0), 0.0)) is None
