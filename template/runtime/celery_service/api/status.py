"""What is known of a task: its state, progress, result or error. Never a traceback."""

import json
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from celery import Celery, states
from celery.backends.base import KeyValueStoreBackend
from pydantic import BaseModel

from celery_service.api.keys import Keys
from celery_service.tasks.progress import PROGRESS

T = TypeVar("T")

#: A task whose state is one of these doesn't change any more.
ENDS = states.READY_STATES


class Progress(BaseModel):
    """How far a task is."""

    current: int | None = None
    total: int | None = None
    percent: int | None = None
    message: str | None = None


class TaskError(BaseModel):
    """Why a task has failed, or why it runs again."""

    type: str
    message: str


class TaskStatus(BaseModel):
    """The state of a task: https://docs.celeryq.dev/en/stable/userguide/tasks.html#states"""

    task_id: str
    status: str
    progress: Progress | None = None
    result: Any = None
    error: TaskError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it doesn't change any more."""
        return self.status in ENDS

    @property
    def as_json(self) -> str:
        """The JSON that clients get."""
        return self.model_dump_json(exclude_unset=True)

    @property
    def version(self) -> str:
        """A short text that differs when the status does."""
        return f"{zlib.crc32(self.as_json.encode()):08x}"


def key_of(app: Celery, task_id: str) -> Any:
    """Return the key of a task's state in the result store, and its channel."""
    return cast(KeyValueStoreBackend, app.backend).get_key_for_task(task_id)


def read(app: Celery, keys: Keys, task_id: str) -> TaskStatus | None:
    """Return the status of a task; None if it was never sent, or was forgotten.

    Raises:
        OperationalError: The result store can't be reached.
    """
    # Celery's own `AsyncResult` would import the classes of exceptions, and keeps what it has read.
    backend: Any = app.backend
    if stored := backend.get(key_of(app, task_id)):
        return status_of(task_id, backend.decode(stored))
    if keys.knows(task_id):
        return TaskStatus(task_id=task_id, status=states.PENDING)
    return None


def status_of(task_id: str, stored: Mapping[str, Any]) -> TaskStatus:
    """Return the status that a worker has stored, so that it can be sent as JSON."""
    found = _read(task_id, stored)
    try:
        _ = found.as_json
    except ValueError:  # a text is no valid Unicode
        found = _read(task_id, plain(stored))
    return found


def plain(value: T) -> T:
    """Return a value that any JSON can represent: tasks may have dates, NaN and odd text."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    cleaned: T = json.loads(text.encode(errors="replace"), parse_constant=lambda _: None)
    return cleaned


def _read(task_id: str, stored: Mapping[str, Any]) -> TaskStatus:
    status, result = str(stored["status"]), stored.get("result")
    if status == states.SUCCESS:
        return TaskStatus(task_id=task_id, status=status, result=result)
    if status in states.EXCEPTION_STATES:
        return TaskStatus(task_id=task_id, status=status, error=_error(result))
    if status == PROGRESS and isinstance(result, Mapping):
        return TaskStatus(task_id=task_id, status=status, progress=_progress(result))
    return TaskStatus(task_id=task_id, status=status)


def _error(result: Any) -> TaskError:
    if not isinstance(result, Mapping):
        return TaskError(type="Exception", message=str(result))
    message = result.get("exc_message")
    if isinstance(message, list | tuple):
        message = ", ".join(map(str, message))
    return TaskError(type=str(result.get("exc_type")), message=str(message))


def _progress(meta: Mapping[str, Any]) -> Progress:
    """Return what a task has reported. It may have reported anything."""
    numbers = {name: _whole(meta.get(name)) for name in ("current", "total", "percent")}
    known: dict[str, Any] = {name: number for name, number in numbers.items() if number is not None}
    if "percent" not in known and known.get("total"):
        known["percent"] = 100 * known.get("current", 0) // known["total"]
    if meta.get("message") is not None:
        known["message"] = str(meta["message"])
    return Progress(**known)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value == value else None
