"""Dead letters: records of messages that can't succeed. They are stored in the Redis of the result
backend until they are replayed, purged or too old: see docs/dev/dead-letters.md.

story.py makes the record of a message, store.py stores it, chords.py makes the record of a chord's
callback, poison.py counts deliveries, command.py is `celery dead-letters`.
"""

from typing import Any

import structlog
from celery import Celery
from celery.app.task import Context
from celery.exceptions import Reject, TimeLimitExceeded, WorkerLostError
from celery.signals import task_failure, task_internal_error
from kombu.exceptions import OperationalError
from kombu.utils.functional import retry_over_time
from redis.exceptions import RedisError

from celery_service.dead_letters.poison import DELIVERY_LIMIT, PoisonMessage
from celery_service.dead_letters.store import DeadLetters
from celery_service.dead_letters.story import Record, story

logger = structlog.get_logger(__name__)


def install(app: Celery) -> None:
    """Keep tasks as dead letters that fail in a worker of `app`, and that are not retried."""

    def keep_failure(sender: Any, **failure: Any) -> None:
        context: Context = sender.request
        # A plain call, whose caller sees the exception, and an internal error have no id.
        if sender.app is app and context.id is not None:
            _keep(sender, context, **failure)

    def keep_internal_error(sender: Any, request: Record, **failure: Any) -> None:
        # The task has ended, but its result can't be stored.
        if sender.app is app:
            _keep(sender, Context(request), **failure)

    task_failure.connect(keep_failure, weak=False)
    task_internal_error.connect(keep_internal_error, weak=False)


def _keep(
    task: Any, context: Context, exception: BaseException, einfo: Any = None, **failure: Any
) -> None:
    if context.is_eager:
        return
    text = exception.args[0] if isinstance(exception, Reject) else exception
    error = f"{type(exception).__name__}: {text}"
    record = story(context, reason=_reason(exception), error=error)
    record |= {
        "task": task.name,
        "args": failure.get("args"),
        "kwargs": failure.get("kwargs"),
        "traceback": str(getattr(einfo, "traceback", "")),
    }
    if isinstance(exception, PoisonMessage):
        record["deliveries"] = DELIVERY_LIMIT
    _add(DeadLetters(task.app), record)


def _add(store: DeadLetters, record: Record) -> None:
    """Store a record; wait while Redis is unreachable. The message is acknowledged afterwards."""

    def wait(error: Exception, intervals: Any, retries: int) -> float:
        if retries == 0:
            logger.warning(
                "dead_letter_waits", task_id=record["id"], server=store.server, error=str(error)
            )
        return float(next(intervals))

    retry_over_time(
        store.add,
        (RedisError, OperationalError),
        args=(record,),
        errback=wait,  # type: ignore[arg-type]  # it takes three arguments
        interval_start=0.2,
        interval_step=0.2,
        interval_max=2.0,
    )


def _reason(exception: BaseException) -> str:
    if isinstance(exception, PoisonMessage | WorkerLostError):
        return "poison"
    if isinstance(exception, Reject):
        return "rejected"
    return "time_limit" if isinstance(exception, TimeLimitExceeded) else "failure"
