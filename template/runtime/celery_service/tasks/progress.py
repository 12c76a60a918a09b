"""Tell how far a task is, to whoever follows it."""

from typing import Any

from celery import Task

#: The state of a task that has reported its progress.
PROGRESS = "PROGRESS"


def report_progress(task: Task[..., Any], current: int, total: int, message: str = "") -> None:
    """Store how far a task is, as the meta data of its state PROGRESS.

    A plain call of a task reports nothing. Each report is a write to the result store, so a task
    with many short steps should report some of them only.
    """
    meta = {
        "current": current,
        "total": total,
        "percent": 100 * current // total if total else 100,
        "message": message,
    }
    if not task.request.called_directly:
        task.update_state(state=PROGRESS, meta=meta)
