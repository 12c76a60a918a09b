"""The queues of a service. A worker consumes all but `dead_letter`, unless `-Q` names others."""

import re
from typing import Any

from celery import Celery
from celery.signals import celeryd_init

DEAD_LETTER_QUEUE = "dead_letter"

#: The most urgent comes first.
NAMES = ("high_priority", "default", "low_priority", DEAD_LETTER_QUEUE)

# On RabbitMQ, the routing key of a delayed message begins with the delay: 28 digits, each with a
# dot.
_DELAY = re.compile(r"^(?:[01]\.){28}")


def install(app: Celery) -> None:
    """Make workers of `app` not consume the queue `dead_letter`, unless `-Q` names it."""

    def deselect(instance: Any, **kwargs: object) -> None:
        if instance.app is app:
            app.amqp.queues.deselect(DEAD_LETTER_QUEUE)

    celeryd_init.connect(deselect, weak=False)


def route_by_priority(
    name: str, args: object, kwargs: object, options: dict[str, object], **context: object
) -> dict[str, object] | None:
    """Choose the queue of a message that was sent with a `priority`: 7 to 9 high, 0 to 2 low.

    Priorities choose a queue because brokers handle them differently: RabbitMQ delivers the highest
    number first, Redis the lowest, and not every queue supports priorities.
    """
    priority = options.get("priority")
    if not isinstance(priority, int) or "queue" in options or 3 <= priority <= 6:
        return None
    return {"queue": "high_priority" if priority > 6 else "low_priority"}


def queue_of(app: Celery, delivery_info: Any) -> str | None:
    """Return the name of the queue that a message came from; None if no queue here fits.

    Args:
        app: The application of the worker that received the message.
        delivery_info: The message's `exchange` and `routing_key`.
    """
    exchange = (delivery_info or {}).get("exchange")
    key = _DELAY.sub("", str((delivery_info or {}).get("routing_key") or ""))
    if not exchange:  # the default exchange routes by the name of the queue
        return key or None
    queues = app.amqp.queues.values()
    fitting = (
        *(each for each in queues if (each.exchange.name, each.routing_key) == (exchange, key)),
        # The binding of the queue may have a wildcard.
        *(each for each in queues if each.exchange.name == exchange),
        # After a delay, `exchange` is the one that delays messages.
        *(each for each in queues if each.routing_key == key),
    )
    return str(fitting[0].name) if fitting else None
