"""RabbitMQ as the broker: its settings. Results stay in Redis: CELERY_RESULT_BACKEND names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import celery.app.base
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.native_delayed_delivery import (
    MAX_NUMBER_OF_BITS_TO_USE,
    calculate_routing_key,
)

from celery_service.brokers import results
from celery_service.brokers.queues import DEAD_LETTER_QUEUE, NAMES
from celery_service.config import addresses

SCHEMES = ("amqp", "amqps", "pyamqp")
EXAMPLE = "amqp://guest:guest@localhost:5672//"

#: RabbitMQ dead-letters a message after so many deliveries. dead_letters/poison.py gives up after
#: 3; this higher limit is for workers that die before they count a delivery.
BACKSTOP = 20

TRANSPORT = "celery_service.brokers.rabbitmq.transport"

# Quorum queues are replicated, and count deliveries: https://www.rabbitmq.com/docs/quorum-queues
QUORUM = {"x-queue-type": "quorum"}
WORK = QUORUM | {
    # RabbitMQ doesn't count the first delivery.
    "x-delivery-limit": BACKSTOP - 1,
    # "" is the default exchange, which routes by the name of the queue.
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD_LETTER_QUEUE,
    # Keep the message until `dead_letter` has confirmed it. By default, it can get lost.
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}

SETTINGS: dict[str, object] = {
    "task_queues": {
        name: {
            "exchange": name,
            "exchange_type": "topic",
            "queue_arguments": QUORUM if name == DEAD_LETTER_QUEUE else WORK,
        }
        for name in NAMES
    },
    # A direct exchange can't delay messages. Those with an ETA would fill the prefetch window.
    # https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/rabbitmq.html
    "task_default_exchange_type": "topic",
    # Queues that `queue="reports"` or `-Q reports` creates have the same type as the others.
    "task_default_queue_type": "quorum",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
    "worker_consumer": "celery_service.brokers.rabbitmq.consumer:Consumer",
    # A message counts as sent when the broker has confirmed it, not when it was written to the
    # socket. The timeouts keep publishers from hanging if the broker is frozen or out of memory:
    # each of two attempts waits 2 s for the confirmation and 2 s for the connection to close.
    "broker_transport_options": {"confirm_publish": True, "read_timeout": 2, "write_timeout": 2},
    # After a lost connection, RabbitMQ delivers the messages of running tasks again. By default,
    # these tasks would run here and on another worker at the same time.
    "worker_cancel_long_running_tasks_on_connection_loss": True,
}

_base: Any = celery.app.base


def settings(url: str, root: Path) -> dict[str, object]:
    """Return the settings. Register our transport, because Kombu's can lose messages.

    Also make Celery accept delays of less than a second.
    """
    _base.calculate_routing_key = _routing_key
    TRANSPORT_ALIASES.update(
        amqp=f"{TRANSPORT}:Transport",
        pyamqp=f"{TRANSPORT}:Transport",
        amqps=f"{TRANSPORT}:SSLTransport",
    )
    return dict(SETTINGS)


def check(settings: dict[str, Any], called: Callable[[str], str]) -> None:
    """Complete the settings of the result backend, and refuse invalid addresses.

    Raises:
        ConfigurationError: An address is invalid, or no Redis is configured for results.
    """
    addresses.check_brokers(settings, called, addresses.check_server)
    results.check(settings, called)


def _routing_key(countdown: int, routing_key: str) -> str:
    """Return the routing key of a message with a delay of `countdown` whole seconds.

    Kombu refuses 0. With a prefix of 28 zeros, RabbitMQ delivers the message at once, and the
    worker waits until the task is due.
    """
    if countdown >= 1:
        return calculate_routing_key(countdown, routing_key)
    digits = 2 * MAX_NUMBER_OF_BITS_TO_USE  # each has a dot
    return "0." * MAX_NUMBER_OF_BITS_TO_USE + calculate_routing_key(1, routing_key)[digits:]
