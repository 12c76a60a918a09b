"""The task request in gevent and eventlet: green.py sets it in workers with these pools."""

from typing import Any

from celery_service.tasks import request


class Request(request.Request):
    """A request whose timeouts can become dead letters and that isn't acknowledged if cancelled."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Push the request again: the handlers of `task_failure` read it from the task."""
        self.task.request_stack.push(self._context)
        try:
            super().on_timeout(soft, timeout)
        finally:
            self.task.request_stack.pop()

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Mark the request as cancelled first: the green thread then ends as if it succeeded."""
        self._already_cancelled = True
        super().cancel(pool, signal, emit_retry)

    def acknowledge(self) -> None:
        """Acknowledge the message, unless the task was cancelled: the broker redelivers it then."""
        if not self._already_cancelled:
            super().acknowledge()
