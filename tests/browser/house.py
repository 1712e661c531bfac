"""What the browser looks at: a store, a Valkey, a real worker and a real dashboard, shared by the tests of a module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Page, expect

from batching import BatchOptions
from batching.states import BatchState
from tests.nodes import LocalProcess, worker_process
from tests.support import eventually, free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Dialog

    from batching.queue_manager import Batch
    from tests.acceptance.stage import Stage

#: Milliseconds for what a loaded machine does late.
PATIENCE = 20_000
expect.set_options(timeout=PATIENCE)

#: What a hostile producer can put where people look: markup, a turned line, what is wide. What is invisible is refused
#: in names.
HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}${7*7}",
    "\u05e9\u05dc\u05d5\u05dd right to left \u0645\u0631\u062d\u0628\u0627 (12)",
    "W" * 255,
    "\U0001f9e8\U0001f469" * 60,
)


class House:
    """The stage of a module, and its dashboard."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.port = free_port()
        self.dashboard = LocalProcess(
            "dashboard",
            [sys.executable, "-m", "batching.cli.main", "dashboard", "--port", str(self.port)],
            log=stage.folder / "dashboard.log",
            environment=self._environment(),
            ready_prompt="dashboard: http",
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _environment(self) -> dict[str, str]:
        # That of a worker of this stage, which knows where the sources are.
        return worker_process(self.stage.folder, self.stage.environment()).environment

    def open(self) -> None:
        self.stage.worker()
        self.stage.nodes.append(self.dashboard)
        self.dashboard.start()
        self.dashboard.ready()

    def submit(self, count: int, *, name: str = "a batch", **more: Any) -> Batch:
        """A batch whose profiles return at once, unless `payload` says otherwise."""
        payload = more.pop("payload", None)
        handler = more.pop("handler", "work")
        options = more.pop("options", BatchOptions(max_attempts=1, max_passes=1, failure_budget=1_000))
        given = {f"p{number}": payload for number in range(count)}
        return self.stage.submit(handler, given, options, name=name, **more)

    def waiting(self, queue: str, *names: str) -> list[Batch]:
        """Batches in a queue that is paused, so that they wait."""
        self.stage.queue.queues.set(queue)
        self.stage.queue.queues.pause(queue)
        return [self.submit(3, name=name, queue=queue) for name in names]

    def order(self, queue: str) -> list[str]:
        """The names in the line, as SQL has it."""
        return [view.name for view in self.stage.queue.statistics.batches(queue, [BatchState.QUEUED])]

    def reaches(self, batch: Batch, state: BatchState) -> None:
        def there() -> None:
            assert self.stage.queue.statistics.batch(batch.id).state is state, self.stage.report()

        eventually(there, 30)


class Visit:
    """One browser context, and all that it did behind the page's back."""

    def __init__(self, browser: Browser, house: House, **options: Any) -> None:
        self.house = house
        self.context: BrowserContext = browser.new_context(base_url=house.address, **options)
        self.context.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        #: Words of errors that a test provokes.
        self.expected: tuple[str, ...] = ()
        self.context.on("request", self._requested)
        self.context.on("page", self._watch)
        self.page: Page = self.context.new_page()

    def _watch(self, page: Page) -> None:
        page.on("console", lambda said: self._note(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._interrupted)

    def _interrupted(self, dialog: Dialog) -> None:
        self.errors.append(f"a dialog opened: {dialog.message}")
        dialog.dismiss()

    def _note(self, text: str) -> None:
        if not any(word in text for word in self.expected):
            self.errors.append(text)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(f"{self.house.address}/"):
            self.elsewhere.append(request.url)

    def go(self, path: str) -> Page:
        answer = self.page.goto(path)
        assert answer is not None
        assert answer.status == 200, (path, answer.status)
        return self.page

    def close(self) -> None:
        self.context.close()
        assert self.errors == []
        assert self.elsewhere == []

    def width(self) -> tuple[int, int]:
        """What the page takes, and what there is."""
        found = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        return int(found[0]), int(found[1])

    def names(self, part: str) -> list[str]:
        """Of the batches that a part of the page lists."""
        return self.page.locator(f"#part-{part} .batch .name").all_inner_texts()

    def bar(self, batch: Batch, state: str) -> float:
        """How much of a batch's bar a state takes."""
        found = self.page.locator(f"#b-{batch.id} .bar .s-{state}")
        return float(found.get_attribute("width") or 0) if found.count() else 0.0
