"""How long a message may wait. A worker holds a message with a countdown until it is due; when that
and the task itself take longer than the visibility timeout, Redis delivers it once more.
https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html#visibility-timeout
"""

from datetime import UTC, datetime
from typing import Any

from celery import Celery
from celery.utils.time import maybe_iso8601


def longest_delay(task: Any) -> float | None:
    """Return the longest countdown of a task, in seconds; None where there is no such limit."""
    timeout = task.app.conf.broker_transport_options.get("visibility_timeout")
    limit = task.time_limit or task.app.conf.task_time_limit
    return None if timeout is None else float(timeout) - float(limit or 0)


def refuse_too_long(task: Any, countdown: float | None, eta: Any) -> None:
    """Refuse to send what would run twice.

    Raises:
        ValueError: The task would wait longer than the visibility timeout allows.
    """
    if countdown is None and eta is None:
        return
    longest = longest_delay(task)
    if countdown is None:
        due: Any = maybe_iso8601(eta)
        countdown = (due.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    if longest is not None and countdown > longest:
        raise ValueError(
            f"{task.name} can wait {longest:g} seconds at most, not {countdown:g}: Redis would "
            "deliver it twice; raise visibility_timeout in CELERY_BROKER_TRANSPORT_OPTIONS"
        )


def check_tasks(app: Celery) -> None:
    """Stop a worker whose tasks could outlast the visibility timeout."""
    for name, task in app.tasks.items():
        longest = longest_delay(task)
        if longest is None or name.startswith("celery."):
            continue
        if longest <= 0:
            raise SystemExit(
                f"The time limit of {name} is {task.time_limit:g} seconds; raise the "
                "visibility_timeout in CELERY_BROKER_TRANSPORT_OPTIONS, or it runs twice."
            )
        wait = max(task.default_retry_delay, getattr(task, "retry_backoff_max", 0))
        if wait > longest:
            raise SystemExit(
                f"{name} waits {wait:g} seconds before a retry, but visibility_timeout in "
                f"CELERY_BROKER_TRANSPORT_OPTIONS allows {longest:g}; raise it, or lower "
                "retry_backoff_max and default_retry_delay of the task."
            )
