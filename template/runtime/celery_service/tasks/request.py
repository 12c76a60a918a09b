"""A task that a worker has received, in the worker's main process."""

from contextlib import AbstractContextManager
from typing import Any

import celery.worker.request
from celery.exceptions import Reject, WorkerLostError

from celery_service.observability import context
from celery_service.observability.signals import process_lost
from celery_service.tasks.limits import limits

_request: Any = celery.worker.request


class Request(_request.Request):  # type: ignore[misc]
    """Celery's, with these differences.

    - A hard time limit without a soft one is enforced: see limits.py.
    - A MemoryError fails only its task.
    - What the task rejects becomes a dead letter, whatever the broker.
    - Log lines and messages of callbacks have the ids of the task, though it doesn't run here.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.time_limits: Any = limits(self.task, self.request_dict.get("timelimit"))

    def _about(self) -> AbstractContextManager[None]:
        return context.about(context.of_context(self.task.name, self._context))

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Handle a task that has reached a time limit."""
        with self._about():
            super().on_timeout(soft, timeout)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """Handle a task that has raised an exception."""
        with self._about():
            self._on_failure(exc_info, *args, **options)

    def _announce_revoked(self, *args: Any) -> None:
        with self._about():
            super()._announce_revoked(*args)

    def _on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
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
