"""Tasks that the behaviour tests of metrics add to a rendered project: each ends in another way."""

import contextlib
import os
import signal
import time
from pathlib import Path

from celery import current_app
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery_service.tasks.base import Task


def note(path: str, line: str) -> None:
    """Append a line at once."""
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


@current_app.task(name="counted.work")
def work(path: str, key: int) -> int:
    """Note that it ran. For every 200th number, kill the process the first time."""
    marker = Path(f"{path}.{key}")
    if key % 200 == 99 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    note(path, f"ran {key}")
    return key


@current_app.task(name="counted.fail")
def fail(message: str) -> None:
    """Fail."""
    raise LookupError(message)


@current_app.task(name="counted.fail_as")
def fail_as(name: str) -> None:
    """Fail with an exception of a class that nobody else has."""
    raise type(name, (Exception,), {})("a class of its own")


@current_app.task(name="counted.again", bind=True, max_retries=1)
def again(self: Task) -> str:
    """Retry once, then succeed."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return "done"


@current_app.task(name="counted.reject")
def reject() -> None:
    """Reject the message."""
    raise Reject("not for me", requeue=False)


@current_app.task(name="counted.hang", time_limit=3)
def hang() -> None:
    """Exceed the time limit, after the soft one."""
    with contextlib.suppress(SoftTimeLimitExceeded):
        time.sleep(60)
    time.sleep(60)


@current_app.task(name="counted.sleep")
def sleep(seconds: float) -> None:
    """Take so long."""
    time.sleep(seconds)
