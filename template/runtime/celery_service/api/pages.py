"""The page `/`, which submits reports and shows their progress, and `/ops`, which shows queues, workers
and dead letters.

Both are static files without a build step: HTML, a style sheet and modules of JavaScript that call
the API. They hold no data, so they are served without a key; the calls need it. Paths are relative,
so that a proxy can serve them below a prefix.
"""

from html import escape
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

STATIC = Path(__file__).with_name("static")

router = APIRouter(include_in_schema=False)
router.frontend("/static", directory=STATIC, fallback=None)


@router.get("/")
async def index(request: Request) -> HTMLResponse:
    """Give the page that submits a report and draws its progress."""
    return _page("index.html", request)


@router.get("/ops")
async def ops(request: Request) -> HTMLResponse:
    """Give the page of queues, workers and dead letters."""
    return _page("ops.html", request)


def _page(name: str, request: Request) -> HTMLResponse:
    text = PAGES[name].substitute(service=escape(request.app.title))
    # A browser asks for it each time, so that an update of the service reaches it.
    return HTMLResponse(text, headers={"Cache-Control": "no-cache"})


PAGES = {
    name: Template((STATIC / name).read_text(encoding="utf-8"))
    for name in ("index.html", "ops.html")
}
