"""The time limits of a task: those of its message, else those of its decorator."""

import math
from typing import Any

#: What a soft limit is of the hard limit that it comes with, unless it is named.
SOFT = 0.9


def limits(task: Any, of_message: Any) -> tuple[float | None, float | None]:
    """Return the hard and the soft limit of one run, in seconds. None stands for the worker's own.

    A hard limit brings a soft limit with it. Otherwise the pool would wait for the worker's soft
    limit of 540 s before it looks at a hard limit of 60 s.

    Args:
        task: The task, with the limits of its decorator.
        of_message: The header `timelimit`, which somebody else may have written.
    """
    conf = task.app.conf
    given = of_message if isinstance(of_message, list | tuple) else ()
    of_message_hard, of_message_soft = (*given, None, None)[:2]
    hard = _seconds(of_message_hard) or _seconds(task.time_limit)
    soft = _seconds(of_message_soft) or _seconds(task.soft_time_limit)
    hard_of_either = hard or conf.task_time_limit
    if soft and hard_of_either and soft > hard_of_either:
        soft = SOFT * hard_of_either
    # Soft limits may be switched off: CELERY_TASK_SOFT_TIME_LIMIT=none.
    elif hard and not soft and (conf.task_soft_time_limit or not conf.task_time_limit):
        soft = SOFT * hard
    return hard, soft


def take_from_command_line(worker: Any) -> None:
    """Have the options `--time-limit` and `--soft-time-limit` count as the settings do."""
    conf = worker.app.conf
    hard, soft = worker.time_limit, worker.soft_time_limit
    is_own = hard != conf.task_time_limit and soft == conf.task_soft_time_limit
    if hard and soft and (is_own or soft > hard):
        worker.soft_time_limit = SOFT * hard
    conf.update(task_time_limit=hard, task_soft_time_limit=worker.soft_time_limit)


def _seconds(value: Any) -> float | None:
    return value if isinstance(value, int | float) and 0 < value < math.inf else None
