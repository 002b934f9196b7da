"""A visit to the playground: what a reader does, sees and asks the server."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, Route, expect, sync_playwright

WATCH = """
  window.seen = [];
  new MutationObserver(() => {
    for (const text of document.querySelectorAll('.committed')) window.seen.push(text.textContent);
  }).observe(document, { childList: true, subtree: true, characterData: true });
"""
"""Every state of the committed text that a reader could have seen, in their order."""


QUIET: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}
"""Of a reader who wants no motion: what moves is drawn again and again, by the processors that the engine needs."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """One page in a browser of its own. Its end fails when the page logged an error or asked another host."""

    page: Page

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self._browser: Browser = browser
        self._url = url
        self._context_options: dict[str, Any] = {**QUIET, **context}
        self.problems: list[str] = []
        self.asked: list[Request] = []

    def __enter__(self) -> Visit:
        self.context: BrowserContext = self._browser.new_context(**self._context_options)
        self.context.route(re.compile(f"^(?!{re.escape(self._url)}/|data:|blob:)"), self._refuse)
        self.context.add_init_script(WATCH)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("console", self._listen)
        self.page.on("request", lambda request: self.asked.append(request))
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.problems == []

    def _refuse(self, route: Route) -> None:
        self.problems.append(f"left the host: {route.request.url}")
        route.abort()

    def _listen(self, message: Any) -> None:
        # The browser notes every answer of 400 and above by itself.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.problems.append(f"{message.type}: {message.text}")

    def open(self) -> None:
        self.page.goto(self._url + "/")
        expect(self.page.locator("#compose")).to_be_visible(timeout=30_000)

    def choose(self, procedure: str, letter: str = "a", **parameters: object) -> None:
        """A procedure and its parameters."""
        self.page.select_option(f"#way-{letter}-procedure", procedure)
        for name, value in parameters.items():
            self.set(f"#way-{letter}-{name}", value)

    def ask(self, **fields: object) -> None:
        """Fields of the request itself."""
        for name, value in fields.items():
            self.set(f"#request-{name}", value)

    def set(self, selector: str, value: object) -> None:
        field = self.page.locator(selector)
        for summary in self.page.locator(f"details:not([open]):has({selector}) > summary").all():
            summary.click()
        if isinstance(value, bool):
            field.set_checked(value)
        elif field.evaluate("one => one.tagName") == "SELECT":
            field.select_option(str(value))
        else:
            field.fill(str(value))

    def run(self) -> None:
        self.page.click("#run")

    def panes(self, state: str) -> Locator:
        return self.page.locator(f'.pane[data-state="{state}"]')

    def until(self, state: str, count: int = 1) -> None:
        expect(self.panes(state)).to_have_count(count, timeout=60_000)

    def bodies(self) -> list[dict[str, Any]]:
        """What was sent to /v1/generate, without `stream`."""
        sent = [one.post_data_json for one in self.asked if one.url.endswith("/v1/generate")]
        return [{name: value for name, value in body.items() if name != "stream"} for body in sent]

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """What the page was sent in answer to the last of them."""
        response = [one for one in self.asked if one.url.endswith("/v1/generate")][-1].response()
        assert response is not None
        blocks = [block.split("\ndata: ") for block in response.text().strip().split("\n\n")]
        return [(name.removeprefix("event: "), json.loads(data)) for name, data in blocks]

    def figure(self, name: str, pane: int = 0) -> str:
        """A figure of a pane, by what it is called."""
        cell = self.page.locator(".pane").nth(pane).locator(".figures > div", has=self.page.locator("dt", has_text=name))
        return cell.locator("dd").inner_text()

    def overflows(self) -> bool:
        """Whether the page is wider than the screen."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
