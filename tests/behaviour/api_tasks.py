"""Tasks that the tests of the HTTP API add to a project. A file says how far they may go."""

import time
from pathlib import Path
from typing import Any

from celery import Task, current_app
from celery_service.tasks.progress import report_progress


@current_app.task(name="api.steps", bind=True)
def steps(self: Task[..., Any], path: str, key: str, count: int) -> str:
    """Report each step when there is a line that allows it."""
    note = Path(path)
    with note.open("a") as file:
        file.write(f"start {key}\n")
    end = time.monotonic() + 60
    for number in range(1, count + 1):
        while f"{key} {number}" not in note.read_text().splitlines() and time.monotonic() < end:
            time.sleep(0.02)
        report_progress(self, number, count, f"step {number}")
    return key


@current_app.task(name="api.fail", max_retries=0)
def fail(path: str) -> str:
    """Fail, unless there is a line "mended"."""
    if "mended" not in Path(path).read_text().splitlines():
        raise ValueError("a secret/path.py is missing")
    return "done"


@current_app.task(name="api.odd")
def odd() -> list[Any]:
    """Return what JSON can't represent: a text that is no valid Unicode, and no number."""
    return ["\ud800", float("nan")]
