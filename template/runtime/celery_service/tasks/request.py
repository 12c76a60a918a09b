"""A task that a worker has received, in the worker's main process."""

from typing import Any

import celery.worker.request
from celery.exceptions import Reject

_request: Any = celery.worker.request


class Request(_request.Request):  # type: ignore[misc]
    """Celery's, and a task that rejects its message becomes a dead letter on every broker."""

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """Handle a task that has raised an exception."""
        exception = exc_info.exception
        if isinstance(exception, _request.ExceptionWithTraceback):
            exception = exception.exc
        requeue: Any = getattr(exception, "requeue", None)
        if not isinstance(exception, Reject) or requeue:
            super().on_failure(exc_info, *args, **options)
            return
        # A receiver of `task_failure` makes the dead letter, so the message is acknowledged:
        # RabbitMQ would make a second one. The receiver needs the context of the task, which Celery
        # provides after every other failure.
        self.on_reject = lambda logger, errors, _requeue: self.on_ack(logger, errors)
        self.task.request_stack.push(self._context)
        try:
            super().on_failure(exc_info, *args, **options)
        finally:
            self.task.request_stack.pop()
