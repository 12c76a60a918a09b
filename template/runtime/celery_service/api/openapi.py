"""The OpenAPI document: what FastAPI generates, with problem details and the key."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from celery_service.api.guard import KEY, PUBLIC
from celery_service.api.problems import MEDIA_TYPE, Problem

REFERENCE = {"schema": {"$ref": "#/components/schemas/Problem"}}

#: What routes may answer beside their own responses.
ERRORS = {
    "404": "It isn't known.",
    "422": "A parameter or a field is invalid: `errors` names it.",
    "503": "A server is away. Try again after the seconds of `Retry-After`.",
    "default": "Another error.",
}


def document(app: FastAPI, *, needs_key: bool) -> dict[str, Any]:
    """Return the document of an application."""
    found = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {}) | {"Problem": problem}
    found["components"]["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": KEY}
    }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _complete(operation, has_parameters="{" in path)
            if needs_key and not PUBLIC.fullmatch(path):
                operation["security"] = [{"key": []}]
    return found


def _complete(operation: dict[str, Any], *, has_parameters: bool) -> None:
    responses = operation["responses"]
    for status, description in ERRORS.items():
        if status == "422":
            if "422" not in responses:  # it has no parameters
                continue
        elif status in responses or (status == "404" and not has_parameters):
            continue
        responses[status] = {"description": description, "content": {MEDIA_TYPE: REFERENCE}}
