"""What a green pool says of a task that has run: green.py names this to Celery, in such workers."""

from typing import Any

from celery_service.tasks import request


class Request(request.Request):
    """Ours. Time-outs can become dead letters; what is cancelled is not acknowledged."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Have the task know its request once more: those who hear of the failure look there."""
        self.task.request_stack.push(self._context)
        try:
            super().on_timeout(soft, timeout)
        finally:
            self.task.request_stack.pop()

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Remember it first: the green thread then ends, which looks like success."""
        self._already_cancelled = True
        super().cancel(pool, signal, emit_retry)

    def acknowledge(self) -> None:
        """Leave a message that was cancelled to the broker."""
        if not self._already_cancelled:
            super().acknowledge()
