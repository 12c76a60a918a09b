"""A task that a worker has received, as its main process sees it."""

from typing import Any

import celery.worker.request
from celery.exceptions import Reject

_request: Any = celery.worker.request


class Request(_request.Request):  # type: ignore[misc]
    """Celery's, with a dead letter for what the task rejects, whatever the broker."""

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """Deal with a task that has raised an exception."""
        exception = exc_info.exception
        if isinstance(exception, _request.ExceptionWithTraceback):
            exception = exception.exc
        requeue: Any = getattr(exception, "requeue", None)
        if not isinstance(exception, Reject) or requeue:
            super().on_failure(exc_info, *args, **options)
            return
        # The handlers of `task_failure` make the dead letter, so RabbitMQ must not make another
        # one. Celery shows them the context of the task after every other failure.
        self.on_reject = lambda logger, errors, _requeue: self.on_ack(logger, errors)
        self.task.request_stack.push(self._context)
        try:
            super().on_failure(exc_info, *args, **options)
        finally:
            self.task.request_stack.pop()
