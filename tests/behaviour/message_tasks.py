"""Tasks that the behaviour tests add to a rendered project, for tests of their messages."""

from pathlib import Path
from typing import Any

from celery import Task, current_app
from celery.exceptions import Reject

from .probe import note


@current_app.task(name="message.echo")
def echo(value: Any) -> Any:
    """Return what has arrived."""
    return value


@current_app.task(name="message.again", bind=True)
def again(self: Task[..., Any], countdown: float) -> int:
    """Be retried once, so many seconds later."""
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    return int(self.request.retries)


@current_app.task(name="message.fail")
def fail(path: str, value: str) -> None:
    """Fail until somebody has mended it."""
    if not Path(path).read_text():
        raise RuntimeError(value)
    note(path, ascii(value))


@current_app.task(name="message.reject")
def reject(*reason: str) -> None:
    """Reject the message."""
    raise Reject(*reason, requeue=False)


@current_app.task(name="message.on_error", bind=True)
def on_error(self: Task[..., Any], path: str) -> None:
    """Note that it was called for a task that failed."""
    note(path, f"error {self.request.parent_id}")
