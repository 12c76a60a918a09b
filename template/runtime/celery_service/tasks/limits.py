"""The time limits of a task: from its message, or else from its decorator."""

import math
from typing import Any

#: The default soft limit, as a fraction of the hard limit.
SOFT = 0.9


def limits(task: Any, of_message: Any) -> tuple[float | None, float | None]:
    """Return the hard and the soft limit of one run, in seconds. None stands for the worker's own.

    If only a hard limit is set, the soft limit is derived from it. Otherwise the pool would wait
    for the worker's soft limit of 540 s before it applies a hard limit of 60 s.

    Args:
        task: The task, with the limits of its decorator.
        of_message: The header `timelimit`. Its value may be invalid.
    """
    conf = task.app.conf
    given = of_message if isinstance(of_message, list | tuple) else ()
    of_message_hard, of_message_soft = (*given, None, None)[:2]
    hard = _seconds(of_message_hard) or _seconds(task.time_limit)
    soft = _seconds(of_message_soft) or _seconds(task.soft_time_limit)
    hard_of_either = hard or conf.task_time_limit
    if soft and hard_of_either and soft > hard_of_either:
        soft = SOFT * hard_of_either
    # CELERY_TASK_SOFT_TIME_LIMIT=none turns soft limits off.
    elif hard and not soft and (conf.task_soft_time_limit or not conf.task_time_limit):
        soft = SOFT * hard
    return hard, soft


def take_from_command_line(worker: Any) -> None:
    """Treat the options `--time-limit` and `--soft-time-limit` like the settings."""
    conf = worker.app.conf
    hard, soft = worker.time_limit, worker.soft_time_limit
    is_own = hard != conf.task_time_limit and soft == conf.task_soft_time_limit
    if hard and soft and (is_own or soft > hard):
        worker.soft_time_limit = SOFT * hard
    conf.update(task_time_limit=hard, task_soft_time_limit=worker.soft_time_limit)


def _seconds(value: Any) -> float | None:
    return value if isinstance(value, int | float) and 0 < value < math.inf else None
