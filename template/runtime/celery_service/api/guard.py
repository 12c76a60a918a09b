"""What every request passes first: its id, who may use the API, and headers of all responses."""

import hmac
import logging
import re
import time
from collections.abc import MutableMapping
from typing import Any
from uuid import uuid4

from celery import Celery
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_service.api.addresses import is_local, without_port
from celery_service.api.problems import problem
from celery_service.api.settings import Settings
from celery_service.observability import correlation, lines
from celery_service.observability.signals import request_failed

KEY, REQUEST_ID = "X-API-Key", "X-Request-ID"

#: What can be read without a key: probes, and files without data of the service.
PUBLIC = re.compile(r"/|/ops|/static/.+|/openapi\.json|(/api/v1)?/health/(live|ready)")
PROBES = re.compile(r"(/api/v1)?/health/.+")

SAFE = ("GET", "HEAD", "OPTIONS")

HEADERS = {
    # Nothing from other hosts, and no scripts or styles in the page itself.
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

logger = logging.getLogger(__name__)


class Guard:
    """Middleware around all of the application."""

    def __init__(self, app: ASGIApp, celery: Celery, settings: Settings) -> None:
        self._app = app
        self._celery = celery
        self._settings = settings
        self._key = (settings.secret or "").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _id_from(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        status, began = 500, time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                sent[REQUEST_ID] = request_id
                for name, value in HEADERS.items():
                    sent.setdefault(name, value)
                sent.setdefault("Cache-Control", "no-store")
            await send(message)

        # It is the id of all tasks that the request sends, too.
        with correlation.bind(request_id):
            try:
                app = self._refusal(scope, headers) or self._app
                await app(scope, receive, send_with_headers)
            except Exception as error:
                # The client has got a problem with status 500. A server that sees the exception
                # closes the connection, which the client may use again.
                logger.exception("request_failed", extra={"path": scope["path"]})
                request = f"{scope['method']} {scope['path']}"
                request_failed.send(sender=self._celery, exception=error, request=request)
            finally:
                if not is_probe(scope):
                    fields = {
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "seconds": round(time.perf_counter() - began, 4),
                    }
                    lines.write(logger, logging.INFO, "request_finished", fields)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        """Return a response if the request isn't served."""
        request_id = scope["state"]["request_id"]

        def refuse(status: int, detail: str, **headers: str) -> ASGIApp:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            return problem(status, detail, request_id=request_id, headers=given)

        if scope["method"] not in SAFE and headers.get("sec-fetch-site") in (
            "cross-site",
            "same-site",
        ):
            # A browser sends it for a page of another site, which knows what its user may do.
            return refuse(403, "Pages of other sites can't use this API.")
        if self._key:
            given = headers.get(KEY, "").encode()
            # A server may put the path under which a proxy has it before ours.
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            public = PUBLIC.fullmatch(path) and scope["method"] in SAFE
            if not public and not hmac.compare_digest(given, self._key):
                detail = f"The header {KEY} must have the key of this API."
                return refuse(401, detail, WWW_Authenticate=KEY)
        elif not self._settings.is_open and not _is_from_here(scope, headers):
            return refuse(403, "API_KEY is not set, so only this machine is served.")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.max_body_bytes:
            return refuse(413, f"The limit is {self._settings.max_body_bytes} bytes.")
        return None


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Return whether a request is one of the many that ask for the health."""
    return PROBES.fullmatch(scope["path"]) is not None


def _id_from(headers: Headers) -> str:
    given = headers.get(REQUEST_ID, "")
    return given if re.fullmatch(r"[\w.:/+=@-]{1,128}", given, re.ASCII) else uuid4().hex


def _is_from_here(scope: Scope, headers: Headers) -> bool:
    """Return whether a request came in on a loopback address and asks for one.

    With the second condition, a page can't give its own name an address of this machine.
    """
    server: Any = scope.get("server") or ("localhost", None)
    # A Unix socket has a path and no port.
    came_in_here = server[1] is None or is_local(server[0])
    return came_in_here and is_local(without_port(headers.get("host", "localhost")))
