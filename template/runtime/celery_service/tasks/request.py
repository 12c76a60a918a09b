"""A task on its way through a worker, as its main process sees it."""

from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from celery.worker import request

from celery_service.tasks.limits import limits

_Celerys: Any = request.Request


class Request(_Celerys):  # type: ignore[misc]
    """Celery's, but a hard time limit is enforced, and a MemoryError fails only its task."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.time_limits: Any = limits(self.task, self.request_dict.get("timelimit"))

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """Keep the worker: Celery ends it, though what had too little memory is another process."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, MemoryError):
            exc_info.exception = RuntimeError(f"MemoryError: {error}")
        return super().on_failure(exc_info, *args, **options)
