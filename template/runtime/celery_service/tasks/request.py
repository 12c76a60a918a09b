"""A task that a worker has received, in the worker's main process."""

from typing import Any

import celery.worker.request
from celery.exceptions import Reject, WorkerLostError

from celery_service.observability.signals import process_lost
from celery_service.tasks.limits import limits

_request: Any = celery.worker.request


class Request(_request.Request):  # type: ignore[misc]
    """Celery's, with these differences.

    - A hard time limit without a soft one is enforced: see limits.py.
    - A MemoryError fails only its task.
    - What the task rejects becomes a dead letter, whatever the broker.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.time_limits: Any = limits(self.task, self.request_dict.get("timelimit"))

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """Handle a task that has raised an exception."""
        exception = exc_info.exception
        if isinstance(exception, _request.ExceptionWithTraceback):
            exception = exception.exc
        if isinstance(exception, MemoryError):
            # Celery would end the worker, though what had too little memory is another process.
            exc_info.exception = RuntimeError(f"MemoryError: {exception}")
        requeue: Any = getattr(exception, "requeue", None)
        if not isinstance(exception, Reject) or requeue:
            super().on_failure(exc_info, *args, **options)
            if isinstance(exception, WorkerLostError):
                process_lost.send(sender=self.task, request=self, exception=exception)
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
