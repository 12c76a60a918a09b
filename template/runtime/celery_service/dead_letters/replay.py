"""Send a dead letter again: for `celery dead-letters replay` and for the API."""

from collections.abc import Callable
from functools import partial

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.dead_letters import chords
from celery_service.dead_letters.store import DeadLetters
from celery_service.dead_letters.story import Record, headers_of
from celery_service.tasks.arguments import InvalidArguments

# What belongs to the run that failed.
NOT_AGAIN = {"expires", "origin", "retries"}

#: Seconds in which no second `replay` touches a record that one is about to send.
CLAIM = 60


class NotSent(Exception):
    """Why a record stays."""


def replay(app: Celery, store: DeadLetters, record: Record) -> bool:
    """Send the task of a record, under its old id, and remove the record.

    Returns:
        Whether the task was sent by this call. Otherwise, another replay sends it.

    Raises:
        NotSent: It can't be sent. If a server is away, this is the error's `__cause__`.
        RedisError: The Redis of dead letters can't be reached.
    """
    if not store.claim(record, CLAIM):
        return False
    try:
        sender(app, record)()
    except NotSent:
        store.release(record["id"])
        raise
    except (OperationalError, RedisError, OSError, InvalidArguments) as error:
        store.release(record["id"])
        raise NotSent(f"it can't be sent: {error}") from error
    store.remove(record)
    return True


def sender(app: Celery, record: Record) -> Callable[[], object]:
    """Return what sends a record again.

    Raises:
        NotSent: It can't be sent.
    """
    if "bytes" in record:
        raise NotSent(f"it had {record['bytes']} bytes, so its arguments were not kept")
    if "args" not in record:
        raise NotSent("it is no task" if record["task"] is None else "its arguments can't be read")
    if record["reason"] == chords.CHORD:
        try:
            return chords.sender(app, record)
        except chords.CanNotRun as reason:
            raise NotSent(str(reason)) from None
    options = {name: value for name, value in record["options"].items() if name not in NOT_AGAIN}
    options["headers"] |= headers_of(record)
    queue = record["queue"] or None
    return partial(
        app.send_task, record["task"], record["args"], record["kwargs"], queue=queue, **options
    )
