"""The dashboard in a real Chromium: it is live, it steers, and everybody can use it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from batching import BatchOptions
from batching.states import BatchState
from tests.browser.house import HOSTILE, PATIENCE, House, Visit
from tests.support import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from batching.queue_manager import Batch

    Begin = Callable[..., Visit]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
DESK = {"viewport": {"width": 1280, "height": 900}}
#: WCAG 2.2 to AA, and what axe calls best practice.
RULES = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
}


@pytest.fixture(scope="module")
def paths(house: House) -> dict[str, str]:
    """Every page, with something on it: hostile names, failures, a key that is none, what waits and what is paused."""
    odd = BatchOptions(max_attempts=1, max_passes=1, failure_budget=100)
    failed = house.submit(3, name="mixed", handler="odd", payload="raise", options=odd, tags=["nightly"], key="mixed-1")
    hostile = house.stage.queue.submit(
        "acceptance.work",
        [{"key": text, "payload": {"answer": f"{text}\u202e\x1b[31m\ttail"}} for text in HOSTILE],
        name=HOSTILE[0] + HOSTILE[3],
        key=HOSTILE[4],
        group=HOSTILE[1],
        tags=["<b>bold</b>"],
        properties={"customer": HOSTILE[1]},
    )
    house.reaches(hostile, BatchState.SUCCEEDED)
    eventually(lambda: house.stage.queue.statistics.batch(failed.id).terminal, 30)
    house.waiting("shut", *HOSTILE[1:6])
    paused = house.submit(4, name="put aside", queue="shut")
    house.stage.queue.pause(paused.id)
    return {
        "queue": "/",
        "search": "/?q=tag:nightly",
        "batch": f"/batches/{failed.id}",
        "hostile batch": f"/batches/{hostile.id}",
        "profiles": f"/batches/{hostile.id}/profiles",
        "profile": f"/batches/{hostile.id}/profiles/2?by=number",
        "failed profile": f"/batches/{failed.id}/profiles/1?by=number",
        "workers": "/workers",
        "system": "/system",
        "question": f"/batches/{paused.id}/steer/cancel",
    }


def violations(page: Page) -> list[str]:
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{each['id']}: {each['help']}: {[node['html'] for node in each['nodes'][:3]]}" for each in found]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_every_page_fits_and_is_accessible(
    visit: Begin, paths: dict[str, str], theme: str, size: dict[str, Any]
) -> None:
    visitor = visit(color_scheme=theme, **size)
    for name, path in paths.items():
        page = visitor.go(path)
        taken, there = visitor.width()
        assert taken <= there, f"{name} scrolls to the side: {taken} of {there} pixels"
        assert violations(page) == [], name


def test_the_theme_can_be_chosen_and_is_kept(visit: Begin) -> None:
    page = visit(color_scheme="light").go("/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    toggle = page.get_by_role("button", name="Theme")
    toggle.click()
    expect(toggle).to_contain_text("light")
    toggle.click()
    expect(toggle).to_contain_text("dark")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    expect(page.get_by_role("button", name="Theme")).to_contain_text("dark")


# --- live


def test_a_bar_fills_while_a_worker_works_and_is_full_only_at_the_end(visit: Begin, house: House) -> None:
    visitor = visit(**DESK)
    page = visitor.go("/")
    page.evaluate("window.stays = true")
    batch = house.stage.submit(
        "work",
        {f"p{number}": {"gate": "bar"} if number % 2 else None for number in range(40)},
        BatchOptions(max_attempts=1, max_passes=1),
        name="fills",
    )
    row = page.locator(f"#b-{batch.id}")
    expect(row).to_be_visible()
    # Two pool children are at gates before half of it is done; what is done by then shows.
    eventually(lambda: 0 < visitor.bar(batch, "succeeded") < 1000, 30)
    first = visitor.bar(batch, "succeeded")
    expect(row.locator(".progress b")).to_have_text(re.compile(r"^\d{1,2} %$"))
    expect(page.locator(f"#part-running #b-{batch.id}")).to_be_visible()
    house.stage.open("bar")
    house.reaches(batch, BatchState.SUCCEEDED)
    expect(page.locator(f"#part-finished #b-{batch.id} .progress b")).to_have_text("100 %")
    assert visitor.bar(batch, "succeeded") > first
    assert page.evaluate("window.stays"), "the page was loaded again"


def test_updates_leave_focus_and_open_menus_alone(visit: Begin, house: House) -> None:
    visitor = visit(**DESK)
    batch = house.stage.submit(
        "work",
        {f"p{number}": {"gate": f"focus{number}"} for number in range(4)},
        BatchOptions(max_attempts=1, max_passes=1),
        name="keeps the focus",
    )
    house.reaches(batch, BatchState.RUNNING)
    page = visitor.go("/")
    row = page.locator(f"#part-running #b-{batch.id}")
    row.locator("summary").click()
    link = row.get_by_role("link", name="keeps the focus")
    link.focus()
    link.evaluate("element => { element.same = true }")
    before = row.locator(".progress p").inner_text()
    for number in range(3):
        house.stage.open(f"focus{number}")
    expect(row.locator(".progress p")).not_to_have_text(before)
    assert page.evaluate("document.activeElement.same"), "another element took its place"
    assert row.locator("details").evaluate("element => element.open")
    house.stage.open("focus3")
    house.reaches(batch, BatchState.SUCCEEDED)


# --- steering


def test_drag_and_drop_moves_a_batch_after_a_question(visit: Begin, house: House) -> None:
    house.waiting("drag", "one", "two", "three")
    visitor = visit(**DESK)
    page = visitor.go("/?queue=drag")
    assert visitor.names("waiting") == ["one", "two", "three"]
    rows = page.locator("#waiting-line .batch")
    # Its upper half: before it.
    rows.nth(2).locator("[data-handle]").drag_to(rows.nth(0), target_position={"x": 300, "y": 6})
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("before one")
    assert house.order("drag") == ["one", "two", "three"], "moved before it was confirmed"
    dialog.get_by_role("button", name="Move").click()
    expect(page.locator("#flash")).to_contain_text("Moved “three” before “one”")
    assert house.order("drag") == ["three", "one", "two"]
    assert visitor.names("waiting") == ["three", "one", "two"]


def test_what_was_dropped_can_still_be_left_as_it_is(visit: Begin, house: House) -> None:
    house.waiting("drop", "one", "two")
    page = visit(**DESK).go("/?queue=drop")
    rows = page.locator("#waiting-line .batch")
    rows.nth(0).locator("[data-handle]").drag_to(rows.nth(1), target_position={"x": 300, "y": 60})
    expect(page.get_by_role("dialog")).to_contain_text("behind two")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert house.order("drop") == ["one", "two"]


def test_a_batch_is_moved_with_the_keyboard_alone_again_and_again(visit: Begin, house: House) -> None:
    batches = house.waiting("keys", "one", "two", "three")
    page = visit(**DESK).go("/?queue=keys")
    up = page.locator(f"#up-{batches[2].id}")
    up.focus()
    page.keyboard.press("Enter")
    eventually(lambda: house.order("keys") == ["one", "three", "two"], 20)
    expect(page.locator("#flash")).to_contain_text("one place up")
    expect(up).to_be_focused()
    page.keyboard.press("Enter")
    eventually(lambda: house.order("keys") == ["three", "one", "two"], 20)
    expect(page.locator(f"#b-{batches[2].id} .number")).to_contain_text("1")
    expect(up).to_be_focused()
    down = page.locator(f"#down-{batches[2].id}")
    down.focus()
    page.keyboard.press("Enter")
    eventually(lambda: house.order("keys") == ["one", "three", "two"], 20)
    expect(page.locator("#flash")).to_contain_text("one place down")


def press_until(page: Page, key: str, found: str, most: int = 60) -> None:
    """Press a key until what has the focus fits."""
    for _ in range(most):
        page.keyboard.press(key)
        if page.evaluate("selector => Boolean(document.activeElement?.matches(selector))", found):
            return
    raise AssertionError(f"{most} times {key} did not lead to {found}")


def test_a_batch_is_found_and_cancelled_with_the_keyboard_alone(visit: Begin, house: House) -> None:
    (batch,) = house.waiting("tab", "to be cancelled")
    page = visit(**DESK).go("/?queue=tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    press_until(page, "Tab", f"#b-{batch.id} a.name")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("to be cancelled")
    press_until(page, "Tab", "#act-cancel")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Cancel this batch?")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.locator("#act-cancel")).to_be_focused()
    page.keyboard.press("Enter")
    press_until(page, "Tab", "dialog input[name=reason]")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    expect(page.locator("#flash")).to_contain_text("Cancelled")
    expect(page.locator("#flash")).to_be_focused()
    assert house.stage.queue.statistics.batch(batch.id).reason == "by keyboard"


def test_cancel_asks_first_and_names_what_it_takes(visit: Begin, house: House) -> None:
    (batch,) = house.waiting("ask", "asked about")
    page = visit(**DESK).go(f"/batches/{batch.id}")
    page.get_by_role("link", name="Cancel").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("3 profiles wait")
    dialog.get_by_role("link", name="Leave it as it is").click()
    expect(dialog).to_have_count(0)
    assert house.stage.queue.statistics.batch(batch.id).state is BatchState.QUEUED
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator(".title .state-cancelled")).to_be_visible()
    assert house.stage.queue.statistics.batch(batch.id).state is BatchState.CANCELLED


def test_without_scripts_everything_works_as_pages_and_forms(visit: Begin, house: House) -> None:
    first, second = house.waiting("plain", "first", "second")
    page = visit(java_script_enabled=False, **DESK).go("/?queue=plain")
    page.locator(f"#up-{second.id}").click()
    expect(page.locator("#flash")).to_contain_text("Moved “second” one place up")
    assert house.order("plain") == ["second", "first"]
    page.locator(f"#menu-{first.id} summary").click()
    page.locator(f"#menu-{first.id}").get_by_role("link", name="Cancel").click()
    expect(page.get_by_role("heading", name="Cancel this batch?")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#flash")).to_contain_text("Cancelled")
    assert house.order("plain") == ["second"]


# --- when something is away


def test_it_goes_on_without_redis_says_so_and_recovers(visit: Begin, house: House) -> None:
    visitor = visit(**DESK)
    page = visitor.go("/")
    banner = page.locator("#stale")
    expect(page.locator("#liveness")).to_have_text("Live.")
    expect(banner).to_have_text("")
    house.stage.valkey.stop()
    try:
        expect(banner).to_contain_text("Redis is away")
        batch: Batch = house.stage.queue.submit("acceptance.work", ["a"], name="submitted without redis")
        expect(page.locator(f"#b-{batch.id}")).to_be_visible()
    finally:
        house.stage.valkey.start()
    expect(banner).to_have_text("", timeout=2 * PATIENCE)
    expect(page.locator("#liveness")).to_have_text("Live.")
    house.reaches(batch, BatchState.SUCCEEDED)
    expect(page.locator(f"#part-finished #b-{batch.id}")).to_be_visible()


def test_it_says_when_the_dashboard_itself_is_gone_and_goes_on_when_it_is_back(visit: Begin, house: House) -> None:
    visitor = visit(**DESK)
    visitor.expected = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET")
    page = visitor.go("/")
    expect(page.locator("#liveness")).to_have_text("Live.")
    house.dashboard.kill()
    banner = page.locator("#stale")
    expect(banner).to_contain_text("cannot be reached")
    batch = house.submit(1, name="submitted meanwhile")
    house.dashboard.stop()
    house.dashboard.start()
    house.dashboard.ready()
    expect(banner).to_have_text("", timeout=2 * PATIENCE)
    expect(page.locator(f"#b-{batch.id}")).to_be_visible()


def test_who_wants_less_motion_gets_none(visit: Begin, house: House, paths: dict[str, str]) -> None:
    page = visit(reduced_motion="reduce", **DESK).go(paths["batch"])
    seconds = page.locator(".bar rect").first.evaluate("element => getComputedStyle(element).transitionDuration")
    assert set(seconds.replace("s", "").split(", ")) == {"0"}
