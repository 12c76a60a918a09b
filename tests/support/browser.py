"""Pages in Debian's Chromium, without a window.

    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 375, "height": 740})

A browser that isn't installed is treated like a server that isn't: see `support.servers.require`.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from support.servers import require

REPOSITORY = Path(__file__).parents[2]
#: Where screenshots are kept, for people to look at. git ignores it.
SCREENSHOTS = REPOSITORY / "artefacts" / "pages"
ARGUMENTS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Chromium talks only to the pages under test.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Chromium refuses to run as root otherwise, and containers have no namespaces for it.
    "--no-sandbox",
)


def find_chromium() -> str | None:
    """Return the path of Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium with a new, empty profile: 1 s."""
    program = require("chromium", find_chromium())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Console:
    """What a page reports to the console of its browser. A breach of the content security policy is an error there."""

    errors: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        """Record the errors of this page from now on."""
        page.on("console", self._record)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))

    def _record(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(f"{message.type}: {message.text} ({message.location.get('url')})")


def keep_screenshot(page: Page, name: str, *, whole: bool = True) -> None:
    """Keep a picture of the whole page, or else of what a user sees of it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole)
