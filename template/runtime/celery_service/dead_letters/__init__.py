"""Dead letters: what became of messages that can't succeed. Each keeps the story of its message, in
the Redis of the result backend, until it is replayed, purged or too old: docs/dev/dead-letters.md.

story.py makes a record of a message, store.py keeps it, chords.py makes one of the callback of its
chord, poison.py counts deliveries, command.py is `celery dead-letters`.
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
    """Keep what fails for good in a worker of `app`. What is retried doesn't come here."""

    def keep_failure(sender: Any, **failure: Any) -> None:
        context: Context = sender.request
        # Without an id it is a plain call, whose caller sees the exception, or an internal error.
        if sender.app is app and context.id is not None:
            _keep(sender, context, **failure)

    def keep_internal_error(sender: Any, request: Record, **failure: Any) -> None:
        # It has ended, but with a result that can't be stored, as before its time limit.
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
    """Keep a record. The message is acknowledged after this: while Redis is away, both wait."""

    def wait(error: Exception, intervals: Any, retries: int) -> float:
        if retries == 0:
            logger.warning(
                "dead_letter_waits", id=record["id"], server=store.server, error=str(error)
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
