"""How a worker receives messages. It survives any message and discards none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import celery.worker.consumer
from celery import Celery
from celery.exceptions import InvalidTaskError, NotRegistered, Reject
from celery.signals import task_rejected
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.brokers.messages import check, is_task
from celery_service.dead_letters.store import DeadLetters
from celery_service.dead_letters.story import context_of, story_of_message
from celery_service.observability import context

logger = get_logger(__name__)

#: Seconds for which events of tasks wait for others, to be sent in one message with them, and how
#: many of them are sent at once. Celery would wait for the next turn of its loop, or for 24.
EVENTS_WAIT, MOST_EVENTS = 0.25, 250

_celerys: Any = celery.worker.consumer.Consumer


class Consumer(_celerys):  # type: ignore[misc]
    """Keeps messages as dead letters that Celery would discard, or that would end the worker."""

    _events_due = 0.0

    def on_send_event_buffered(self) -> None:
        """Send the events of tasks together: each task has three, and a message costs most."""
        now = time.monotonic()
        # A time, not a flag: a worker that loses its broker loses its timers.
        if self.hub and now >= self._events_due:
            self._events_due = now + EVENTS_WAIT
            self.event_dispatcher.buffer_limit = MOST_EVENTS
            self.hub.call_later(EVENTS_WAIT, self._flush_events)

    def on_close(self) -> None:
        """Keep the events that wait until the worker has its broker again."""
        self._flush_events()
        super().on_close()

    def shutdown(self) -> None:
        """Send the events of the tasks that have ended during the shutdown."""
        self._flush_events()
        super().shutdown()

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """Return the function that is called with each message."""
        handle = super().create_task_handler(*args, **options)

        def on_task_received(message: Any) -> None:
            try:
                check(message)
                handle(message)
            except Exception as error:
                lost = isinstance(error, (*self.connection_errors, *self.channel_errors))
                # Kombu's transport for Redis has KeyError among them.
                if lost and not isinstance(error, KeyError):
                    raise
                if message.acknowledged:
                    logger.exception("error after a message was settled")
                else:
                    self.on_invalid_task(None, message, error)

        return on_task_received

    def hand_back(self, *, blocked: bool) -> None:  # noqa: ARG002
        """Give unfinished messages back; lifecycle/shutdown.py calls this if threads are green."""
        connection: Any = self.connection
        connection.close()

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Keep a message that doesn't have the form of a task."""
        with context.about(about(message, self.hostname)):
            self.keep(message, "undecodable", InvalidTaskError("not a task"))
            super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Keep a message for a task that this worker doesn't know, as during a deployment."""
        with context.about(about(message, self.hostname)):
            self.keep(message, "unknown_task", unknown(message))
            super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, _body: Any, message: Any, exc: Exception) -> None:
        """Keep a message whose headers or body are invalid."""
        with context.about(about(message, self.hostname)):
            self.keep(message, "undecodable", exc)
            message.reject_log_error(logger, self.connection_errors)
            task_rejected.send(sender=self, message=message, exc=exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Keep a message whose body can't be decoded."""
        self.on_invalid_task(None, message, exc)

    def keep(self, message: Any, reason: str, exception: Exception) -> None:
        """Keep a message as a dead letter. The caller rejects the message afterwards."""
        keep(self.app, message, reason, exception)


def about(message: Any, worker: str | None) -> context.Fields:
    """Return what log lines about a message have that can't run."""
    headers = message.headers if is_task(message.headers or {}) else {}
    return context.of_headers(headers, message.delivery_info, worker)


def unknown(message: Any) -> NotRegistered:
    """Return the error for a message whose task is unknown."""
    return NotRegistered(f"no task is named {message.headers.get('task')!r}")


def keep(app: Celery, message: Any, reason: str, exception: Exception, **more: object) -> None:
    """Keep a message as a dead letter. If it is for a task, mark the task as failed.

    Args:
        app: The application.
        message: The message, a `kombu.Message`.
        reason: The reason that `celery dead-letters` shows.
        exception: The exception that the task fails with.
        more: Further fields of the record.

    Raises:
        RedisError: Redis is unreachable, or refuses to write.
    """
    # str() of these two puts quotes or brackets around the message.
    text = exception.args[0] if isinstance(exception, KeyError | Reject) else exception
    record = story_of_message(message, reason=reason, error=f"{type(exception).__name__}: {text}")
    DeadLetters(app).add(record | more)
    # Celery marks a task as failed before it rejects its message.
    if record["task"] and reason != "rejected":
        with logged("can't mark a task as failed"):
            app.backend.mark_as_failure(record["id"], exception, request=context_of(message))


@contextmanager
def logged(text: str) -> Iterator[None]:
    """Log exceptions. Raise those of Redis and the broker, after which the caller tries again."""
    try:
        yield
    except (RedisError, OperationalError):
        raise
    except Exception:
        logger.exception(text)
