"""The pages `/` and `/ops` in a browser, at the width of a phone and of a desktop.

Screenshots are kept in artefacts/pages/.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Locator, Page, expect

from support.browser import Console, find_chromium, keep_screenshot, open_browser
from support.distribution import on_one_worker
from support.servers import Server, require
from support.service import api_project, service_on_redis
from support.site import serve_api

PHONE, DESKTOP, NARROWEST = 375, 1280, 320
KEY = "a-key-of-some-length"
#: A report on the most folders that the API takes, each with so many files, runs for some seconds.
FOLDERS, FILES = 100, 8000
#: Nothing may run that a task brings.
HOSTILE = '<img src=x onerror="document.title=1">'

expect.set_options(timeout=30_000)


@dataclass
class Site:
    """A service with a worker: its FILES_DIR, and its API without a key and with one."""

    files: Path
    redis: Server
    api: Server
    api_with_key: Server


@pytest.fixture(scope="module", params=on_one_worker("pages"))
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require("chromium", find_chromium())  # before anything starts
    folder = tmp_path_factory.mktemp("pages")
    files = folder / "files"
    (files / "large").mkdir(parents=True)
    for number in range(FILES):
        (files / "large" / str(number)).touch()
    with (
        service_on_redis(api_project(), folder) as service,
        service.worker(FILES_DIR=str(files)) as worker,
        ThreadPoolExecutor() as pool,
    ):
        with_key = pool.submit(serve_api, service, "api-with-key", API_KEY=KEY)
        with serve_api(service) as api, with_key.result() as api_with_key:
            worker.wait_ready()
            yield Site(files, service.redis, api, api_with_key)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def console() -> Console:
    """The console of the page. A test fails if an error is left there."""
    return Console()


@pytest.fixture
def page(browser: Browser, site: Site, console: Console) -> Iterator[Page]:
    """A page at the width of a phone, in a browser that has seen nothing before. It stays on the site."""
    with browser.new_context(viewport={"width": PHONE, "height": 740}, reduced_motion="reduce") as context:
        page = context.new_page()
        console.watch(page)
        yield page
        assert page.url.startswith((site.api.url, site.api_with_key.url))
        assert console.errors == []


def send_report(page: Page, *folders: str) -> Locator:
    """Fill in the form, and return the task in the list."""
    page.get_by_label("Folders").fill("\n".join(folders))
    page.get_by_role("button", name="Create report").click()
    first = "FILES_DIR" if folders[0] == "." else folders[0]
    return page.get_by_role("listitem").filter(has=page.get_by_role("heading", name=f"Report on {first}")).first


def badge(task: Locator, text: str) -> Locator:
    return task.get_by_text(text, exact=True)


def accessibility(page: Page) -> dict[str, Any]:
    """Return what axe-core finds: names, labels, roles, landmarks, contrast and so on. Nothing moves sidewards."""
    found = Axe().run(page)
    wide = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
    assert wide <= 0, f"the page is {wide} pixels too wide"
    return {each["id"]: [node["html"] for node in each["nodes"]] for each in found.response["violations"]}


def both_schemes(page: Page, name: str) -> None:
    """Check the page as it is now, light and narrow, dark and wide, and keep pictures of it."""
    schemes: dict[Literal["light", "dark"], int] = {"light": NARROWEST, "dark": DESKTOP}
    for scheme, width in schemes.items():
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        assert accessibility(page) == {}, f"{scheme}, {width}"
        for kind, width in {"phone": PHONE, "desktop": DESKTOP}.items():
            page.set_viewport_size({"width": width, "height": 800})
            keep_screenshot(page, f"{name}-{kind}-{scheme}")


def test_a_report_runs_to_its_end(page: Page, site: Site) -> None:
    page.goto(site.api.url)
    task = send_report(page, "large", ".")
    expect(badge(task, "Done")).to_be_visible()
    expect(task.get_by_role("progressbar", name="Progress of Report on large, FILES_DIR")).to_have_js_property(
        "value", 100
    )
    expect(page.get_by_role("status")).to_have_text("Report on large, FILES_DIR: Done")
    task.get_by_text("Result").click()
    expect(task.get_by_role("group")).to_contain_text(f'"files": {2 * FILES}')

    failed = send_report(page, "../elsewhere")
    expect(badge(failed, "Failed")).to_be_visible()
    expect(failed).to_contain_text("ValueError: folder must be in FILES_DIR")

    # This browser remembers both, and another tab has them too.
    page.reload()
    expect(badge(page.get_by_role("listitem"), "Done")).to_be_visible()
    expect(badge(page.get_by_role("listitem"), "Failed")).to_be_visible()
    other = page.context.new_page()
    other.goto(site.api.url)
    other.get_by_role("button", name="Remove Report on ../elsewhere from the list").click()
    expect(page.get_by_role("listitem")).to_have_count(1)
    page.bring_to_front()


def test_progress_and_cancelling(page: Page, site: Site) -> None:
    page.goto(site.api.url)
    task = send_report(page, *["large"] * FOLDERS)
    expect(badge(task, "Running")).to_be_visible()
    bar = task.get_by_role("progressbar")
    expect(task).to_contain_text(re.compile(rf"[1-9]\d* of {FOLDERS} · Measured large"))
    assert 0 < bar.evaluate("bar => bar.value") < 100
    waits = send_report(page, "next")
    expect(badge(waits, "Waiting")).to_be_visible()
    both_schemes(page, "tasks")

    cancel = task.get_by_role("button", name="Cancel Report on large")
    cancel.focus()
    page.keyboard.press("Enter")
    expect(badge(task, "Cancelled")).to_be_visible()
    # The worker is free for the next one. The focus is on the button in the place of the last one.
    expect(badge(waits, "Done")).to_be_visible()
    expect(task.get_by_role("button", name="Remove Report on large")).to_be_focused()


def test_a_stream_goes_on_after_a_restart_of_the_api(page: Page, site: Site, console: Console) -> None:
    resumed = list[str]()
    page.on("request", lambda request: resumed.append(request.headers.get("last-event-id", "")))
    page.goto(site.api.url)
    task = send_report(page, *["large"] * 30)
    expect(task).to_contain_text("Measured large")
    site.api.kill()
    expect(task).to_contain_text("The service can't be reached.")
    site.api.start()
    expect(badge(task, "Done")).to_be_visible()
    assert any(resumed)
    assert console.errors
    assert all("ERR_" in error for error in console.errors), console.errors
    console.errors.clear()


def test_an_outage_is_told_and_passes(page: Page, site: Site, console: Console) -> None:
    page.goto(site.api.url)
    site.redis.pause()
    try:
        page.get_by_role("button", name="Create report").click()
        expect(page.get_by_role("alert")).to_contain_text(re.compile("answer|reach"))
        expect(page.get_by_label("Folders")).to_have_attribute("aria-invalid", "false")
    finally:
        site.redis.resume()
    task = send_report(page, ".")
    expect(badge(task, "Done")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    assert [error for error in console.errors if "503" not in error] == []
    console.errors.clear()


def test_the_form_says_what_is_wrong(page: Page, site: Site, console: Console) -> None:
    page.goto(site.api.url)
    field = page.get_by_label("Folders")
    field.fill(" \n")
    page.get_by_role("button", name="Create report").click()
    expect(field).to_have_accessible_description(re.compile(r"Enter at least one folder\.$"))
    expect(field).to_be_focused()
    field.fill("x\n" * (FOLDERS + 1))
    page.get_by_role("button", name="Create report").click()
    expect(field).to_have_accessible_description(re.compile(rf"folders: .*at most {FOLDERS} items"))
    expect(field).to_have_attribute("aria-invalid", "true")
    assert accessibility(page) == {}
    assert [error for error in console.errors if "422" not in error] == []
    console.errors.clear()


def test_dead_letters_are_replayed_and_dropped(page: Page, site: Site) -> None:
    # Links may not lead out of FILES_DIR.
    (site.files / HOSTILE).symlink_to(site.files.parent)
    page.goto(site.api.url)
    task = send_report(page, HOSTILE)
    expect(badge(task, "Failed")).to_be_visible()
    expect(task).to_contain_text(f"ValueError: folder must be in FILES_DIR, not {HOSTILE!r}")

    page.get_by_role("link", name="Operations").click()
    expect(page.get_by_role("row", name=re.compile(r"^default 0"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile(r"^worker@\S+ 0"))).to_be_visible()
    letter = page.get_by_role("listitem").filter(has_text=HOSTILE)
    summary = letter.locator("summary")
    summary.focus()
    page.keyboard.press("Enter")
    expect(letter.get_by_role("group", name="Traceback")).to_contain_text("in measure_folder")

    # A new one comes by itself, and the chosen one stays open and focused.
    newest = page.get_by_role("listitem").filter(has_text="not '..'")
    page.request.post(f"{site.api.url}/api/v1/reports", data={"folders": [".."]})
    expect(newest).to_be_visible()
    expect(letter.get_by_role("group", name="Traceback")).to_be_visible()
    expect(summary).to_be_focused()
    assert page.title().startswith("Operations")
    both_schemes(page, "ops")

    (site.files / HOSTILE).unlink()
    (site.files / HOSTILE).mkdir()
    letter.get_by_role("button", name="Replay").click()
    dialog = page.get_by_role("dialog", name="Replay this dead letter?")
    page.keyboard.press("Enter")  # the safe answer has the focus
    expect(dialog).to_be_hidden()
    letter.get_by_role("button", name="Replay").click()
    assert accessibility(page) == {}
    keep_screenshot(page, "ops-replay", whole=False)
    dialog.get_by_role("button", name="Replay").click()
    expect(letter).to_have_count(0)

    newest.locator("summary").click()
    newest.get_by_role("button", name="Drop").click()
    page.get_by_role("dialog", name="Drop this dead letter?").get_by_role("button", name="Drop").click()
    expect(newest).to_have_count(0)
    page.reload()
    expect(page.get_by_text("Updated at")).to_be_visible()
    expect(newest).to_have_count(0)
    page.get_by_role("link", name="Tasks").click()
    expect(badge(task, "Done")).to_be_visible()


def test_the_pages_ask_for_the_key(page: Page, site: Site, console: Console) -> None:
    page.goto(site.api_with_key.url)
    task = send_report(page, "large", "large")
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key of this service").fill("another-key-of-some-length")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("The service refuses this key.")
    assert accessibility(page) == {}
    keep_screenshot(page, "key", whole=False)
    dialog.get_by_label("Key of this service").fill(KEY)
    page.keyboard.press("Enter")
    expect(badge(task, "Done")).to_be_visible()

    # The tab knows the key from now on. Closing the dialog elsewhere leaves the page in peace.
    page.goto(f"{site.api_with_key.url}/ops")
    expect(page.get_by_text("Updated at")).to_be_visible()
    other = page.context.new_page()
    other.goto(f"{site.api_with_key.url}/ops")
    other.get_by_role("dialog", name="API key").get_by_role("button", name="Cancel").click()
    expect(other.get_by_role("alert")).to_have_text("The service wants its API key.")
    assert [error for error in console.errors if "401" not in error] == []
    console.errors.clear()


def test_streams_are_read_as_the_standard_says(page: Page, site: Site) -> None:
    """Chunks end anywhere, lines in three ways, and comments keep the connection open."""
    page.goto(site.api.url)
    found = page.evaluate(
        """async (chunks) => {
            const bytes = chunks.map((chunk) => new Uint8Array(chunk));
            window.fetch = async () => new Response(new ReadableStream({
                pull(stream) { bytes.length ? stream.enqueue(bytes.shift()) : stream.close(); },
            }));
            const { events } = await import("./static/common.js");
            const found = [];
            for await (const { id, type, data } of events("x", {})) found.push([id, type, data]);
            return found;
        }""",
        [
            [byte]
            for byte in ": ping\n\nid: 1\r\nevent:state\r\ndata: ä:b\r\ndata\r\n\r\ndata: c\r\rdata: lost".encode()
        ],
    )
    assert found == [["1", "state", "ä:b\n"], ["1", None, "c"]]


def test_the_keyboard_reaches_everything_in_its_order(page: Page, site: Site) -> None:
    for path in ("/", "/ops"):
        page.goto(f"{site.api.url}{path}")
        expect(page.locator("html")).to_have_attribute("lang", "en")
        expect(page.get_by_role("heading", level=1)).to_have_count(1)
        usable = page.locator("a:visible, button:visible, input:visible, textarea:visible, summary:visible")
        for position in range(usable.count()):
            page.keyboard.press("Tab")
            expect(usable.nth(position)).to_be_focused()
            assert usable.nth(position).evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def test_the_files_are_what_they_say(site: Site, browser: Browser) -> None:
    """Browsers refuse scripts of another type, and nothing beside the files can be read."""
    with browser.new_context() as context:
        for name, kind in {"index.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}.items():
            response = context.request.get(f"{site.api.url}/static/{name}")
            assert response.headers["content-type"].partition(";")[0] == kind
            assert response.headers["content-security-policy"].startswith("default-src 'self'")
        for name in ("..%2fpages.py", "nothing.js", "..%2f..%2f__init__.py"):
            assert context.request.get(f"{site.api.url}/static/{name}").status == 404
