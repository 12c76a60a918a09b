"""What a worker does with messages that are no task of its own, where the broker has no exchange
for dead letters: it keeps them, and Celery would discard them.
"""

from typing import Any

from celery.worker import consumer

from celery_service.dead_letters.store import DeadLetters
from celery_service.dead_letters.story import story_of_message


class Consumer(consumer.Consumer):
    """Makes a dead letter of each message that Celery would discard."""

    def hand_back(self, *, blocked: bool) -> None:  # noqa: ARG002
        """Give back what this worker holds: lifecycle/shutdown.py asks when threads are green."""
        connection: Any = self.connection
        connection.close()

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Keep a message that has not the form of a task."""
        self._keep(message, "undecodable", "not a task")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Keep a message for a task that this worker doesn't have, as during a deployment."""
        self._keep(message, "unknown_task", f"no task is named {message.headers.get('task')!r}")
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Keep a message whose parts don't make a task."""
        self._keep(message, "undecodable", f"{type(exc).__name__}: {exc}")
        super().on_invalid_task(body, message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Keep a message whose body can't be read."""
        self._keep(message, "undecodable", f"{type(exc).__name__}: {exc}")
        super().on_decode_error(message, exc)

    def _keep(self, message: Any, reason: str, error: str) -> None:
        DeadLetters(self.app).add(story_of_message(message, reason=reason, error=error))
