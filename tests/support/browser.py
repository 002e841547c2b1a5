"""A real Chromium, driven by Playwright; and axe-core, which looks for barriers."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)

from npm import npm_package

AXE_VERSION = "4.14.1"
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
LONG = 60_000.0  # milliseconds: the machine may be busy
# A container has a small /dev/shm, and root no sandbox.
FLAGS = ["--disable-dev-shm-usage", "--disable-gpu", "--no-sandbox"]


def chromium() -> str:
    """The path of Debian's Chromium, or Chrome's; else skips the test."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium: on Debian, apt-get install chromium (scripts/test does as root)")


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """A browser until the block ends. No other event loop may run in this thread meanwhile."""
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def axe_source() -> str:
    """axe-core's script. Installed into a cache as root or in CI; else skips the test."""
    return npm_package("axe-core", AXE_VERSION, "axe-core/axe.min.js").read_text()


def barriers(page: Page, source: str) -> list[dict[str, Any]]:
    """What axe-core finds serious or critical: rule, elements, why."""
    page.evaluate(f"() => {{\n{source}\n}}")
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        {
            "rule": each["id"],
            "nodes": [(node["html"][:150], node["failureSummary"]) for node in each["nodes"]],
        }
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


class Visitor:
    """One page in a context of its own, and all that it complained of."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        options.setdefault("viewport", DESKTOP)
        self.context: BrowserContext = browser.new_context(
            reduced_motion="reduce", permissions=["clipboard-read", "clipboard-write"], **options
        )
        self.context.set_default_timeout(LONG)
        self.url = url
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("request", lambda request: self._see(request.url))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))

    def _hear(self, kind: str, text: str) -> None:
        # A failed fetch is told by the browser itself; the page's own words are tested.
        if kind == "error" and "Failed to load resource" not in text:
            self.complaints.append(text)

    def _see(self, url: str) -> None:
        if not url.startswith((self.url, "data:")):
            self.foreign.append(url)

    def open(self, path: str = "/") -> Page:
        self.page.goto(self.url + path)
        return self.page

    def say(self, text: str) -> None:
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")

    def settle(self, **values: str) -> None:
        """Set these fields of the settings, by their ids."""
        self.page.get_by_role("button", name="Settings", exact=True).click()
        for name, value in values.items():
            self.page.locator(f"#{name.replace('_', '-')}").fill(value)

    @property
    def answers(self) -> Any:
        return self.page.get_by_role("article", name="Answer")

    def finished(self, count: int = 1) -> str:
        """The text of the newest answer, once there are so many and it has ended."""
        expect(self.answers).to_have_count(count)
        expect(self.answers.last.locator(".tools")).to_be_visible()
        return str(self.answers.last.locator(".prose").inner_text())

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []
        assert self.foreign == []
