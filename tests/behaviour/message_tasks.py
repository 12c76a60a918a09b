"""Tasks that the behaviour tests add to a rendered project, for tests of their messages."""

import time
from pathlib import Path
from typing import Any

from celery import Task, current_app
from celery.exceptions import Reject

from .probe import note


@current_app.task(name="message.echo")
def echo(value: Any) -> Any:
    """Return what has arrived."""
    return value


@current_app.task(name="message.occupy")
def occupy(path: str) -> None:
    """Occupy a process until the file says otherwise."""
    note(path, "occupied")
    while "go on" not in Path(path).read_text():
        time.sleep(0.05)


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


@current_app.task(name="message.reject", autoretry_for=(Exception,))
def reject(*reason: str) -> None:
    """Reject the message, which no retry can change."""
    raise Reject(*reason, requeue=False)
