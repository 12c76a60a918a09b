"""Errors as problem details, `application/problem+json`: https://www.rfc-editor.org/rfc/rfc9457"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from celery_service.tasks.arguments import InvalidArguments

MEDIA_TYPE = "application/problem+json"

#: Seconds after which a client should ask again when a server is away.
RETRY_AFTER = 2

logger = structlog.get_logger(__name__)


class FieldProblem(BaseModel):
    """What is wrong with a field."""

    field: str
    message: str


class Problem(BaseModel):
    """Problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    request_id: str | None = None
    errors: list[FieldProblem] | None = None


class Unavailable(Exception):
    """A server doesn't answer in time. The message is for clients: it names no addresses."""


def problem(
    status: int,
    detail: str | None = None,
    *,
    request_id: str | None = None,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return a response with problem details."""
    content = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        request_id=request_id,
        errors=errors,
    )
    return JSONResponse(
        content.model_dump(exclude_none=True), status, headers=headers, media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Make all errors of `app` problem details."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InvalidArguments, _invalid_arguments)
    app.add_exception_handler(Exception, _failed)
    away: tuple[type[Exception], ...] = (Unavailable, OperationalError, RedisError)
    for kind in away + _of_the_database():
        app.add_exception_handler(kind, _unavailable)


def _of_the_database() -> tuple[type[Exception], ...]:
    try:
        from celery_service.data.database import TRANSIENT
    except ImportError:  # without the extra
        return ()
    return TRANSIENT


def _id(request: Request) -> str | None:
    found = request.scope.get("state", {}).get("request_id")
    return str(found) if found else None


def _http(request: Request, error: Any) -> JSONResponse:
    standard = HTTPStatus(error.status_code).phrase
    detail = None if error.detail == standard else str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    return problem(error.status_code, detail, request_id=_id(request), headers=headers)


def _allowed(request: Request) -> list[str]:
    """Return the methods of a path. Each method has a route of its own, and names only itself."""
    routes = request.app.router.routes
    methods = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
    return [
        method
        for method in methods
        if any(
            each.matches({**request.scope, "method": method})[0] is Match.FULL for each in routes
        )
    ]


def _invalid(request: Request, error: Any) -> JSONResponse:
    errors = []
    for each in error.errors():
        # The first part says where the field is, such as "body"; a body that is no JSON has a
        # position instead of a field.
        place, *inside = each["loc"]
        field = place if each["type"] == "json_invalid" or not inside else _path(inside)
        errors.append(FieldProblem(field=str(field), message=each["msg"]))
    detail = "; ".join(f"{each.field}: {each.message}" for each in errors[:3])
    return problem(422, detail, request_id=_id(request), errors=errors)


def _path(parts: list[Any]) -> str:
    return ".".join(str(part) for part in parts)


def _invalid_arguments(request: Request, error: Any) -> JSONResponse:
    return problem(422, str(error), request_id=_id(request))


def _unavailable(request: Request, error: Any) -> JSONResponse:
    logger.warning("server_unavailable", path=request.url.path, error=str(error))
    # The error itself names servers, which is nobody's business outside.
    detail = (
        str(error)
        if isinstance(error, Unavailable)
        else "A server that this service needs can't be reached."
    )
    headers = {"Retry-After": str(RETRY_AFTER)}
    return problem(503, detail, request_id=_id(request), headers=headers)


def _failed(request: Request, error: Any) -> JSONResponse:
    # guard.py logs the traceback.
    return problem(500, request_id=_id(request))
