"""The queues of a service. A worker consumes all but `dead_letter`, unless `-Q` names others."""

from typing import Any

from celery import Celery
from celery.signals import celeryd_init

DEAD_LETTER_QUEUE = "dead_letter"

#: The most urgent comes first.
NAMES = ("high_priority", "default", "low_priority", DEAD_LETTER_QUEUE)


def install(app: Celery) -> None:
    """Have workers of `app` leave the dead letters alone."""

    def deselect(instance: Any, **kwargs: object) -> None:
        if instance.app is app:
            app.amqp.queues.deselect(DEAD_LETTER_QUEUE)

    celeryd_init.connect(deselect, weak=False)


def route_by_priority(
    name: str, args: object, kwargs: object, options: dict[str, object], **context: object
) -> dict[str, object] | None:
    """Choose the queue of a message that was sent with a `priority`: 7 to 9 high, 0 to 2 low.

    The queue carries the priority: brokers agree neither on which number is the most urgent nor on
    whether there are priorities inside a queue.
    """
    priority = options.get("priority")
    if not isinstance(priority, int) or "queue" in options or 3 <= priority <= 6:
        return None
    return {"queue": "high_priority" if priority > 6 else "low_priority"}
