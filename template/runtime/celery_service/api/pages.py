"""The pages `/`, which submits reports and shows their progress, and `/ops`, which shows queues,
workers and dead letters.

They are static files without a build step: HTML, a style sheet, and modules of JavaScript that call
the API. They hold no data, so they are served without a key; the calls need it. Their links are
relative, so that a proxy can serve them below a prefix.
"""

from collections.abc import Callable, Collection, Coroutine
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

STATIC = Path(__file__).with_name("static")

#: The pages, and their files.
PAGES = {"/": "index.html", "/ops": "ops.html"}


def router_of(pages: Collection[str]) -> APIRouter:
    """Return the routes of these pages and of the files that they use.

    Raises:
        ValueError: There is no such page.
    """
    router = APIRouter(include_in_schema=False)
    for path in pages:
        if path not in PAGES:
            raise ValueError(f"pages: {path!r} is none of {', '.join(PAGES)}")
        router.add_api_route(path, _page(STATIC / PAGES[path]), response_class=HTMLResponse)
    if pages:
        router.frontend("/static", directory=STATIC, fallback=None)
    return router


def _page(file: Path) -> Callable[[Request], Coroutine[Any, Any, HTMLResponse]]:
    template = Template(file.read_text(encoding="utf-8"))

    async def page(request: Request) -> HTMLResponse:
        text = template.substitute(service=escape(request.app.title))
        # Browsers ask each time, so that they get the new page when the service is updated.
        return HTMLResponse(text, headers={"Cache-Control": "no-cache"})

    return page
