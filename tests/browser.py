"""A real browser for tests: headless Chromium, driven by Playwright, and what it complained of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
OpenPage = Callable[..., "WatchedPage"]


@dataclass
class WatchedPage:
    """An open page and what has happened on it so far.

    Attributes:
        page: Playwright's ``Page``.
        errors: errors on the console, and exceptions that no script caught.
        requests: addresses that were asked for, the page's own first.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate(
            "() => document.scrollingElement.scrollWidth - document.documentElement.clientWidth"
        )


def chromium() -> str:
    """Path of the system's Chromium; skips the test, or fails it where ``CI_BROWSER=1``."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = "Chromium is not installed (apt-get install chromium)"
        pytest.fail(reason) if os.environ.get("CI_BROWSER") == "1" else pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Playwright's ``Browser``, one for each module of tests.

    Not one for all: while it is open, its event loop runs in this thread, and none other can.
    """
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=executable, args=[*FLAGS])
        yield instance
        instance.close()


@pytest.fixture
def open_page(browser) -> Iterator[OpenPage]:
    """Opens an address in a new window: ``open_page(url, width=1280, height=800)``."""
    contexts = []

    def open_one(url: str, width: int = 1280, height: int = 800) -> WatchedPage:
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        watched = WatchedPage(contexts[-1].new_page())
        page = watched.page
        page.on("request", lambda request: watched.requests.append(request.url))
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on(
            "console",
            lambda line: watched.errors.append(line.text) if line.type == "error" else None,
        )
        page.goto(url, wait_until="load")
        return watched

    yield open_one
    for context in contexts:
        context.close()
