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

#: How often RabbitMQ itself delivers a message before it gives up. We count as well, and sooner:
#: dead_letters/poison.py. This is for what dies before it gets there.
BACKSTOP = 20

TRANSPORT = "celery_service.brokers.rabbitmq.transport"

# Quorum queues are replicated, and count deliveries: https://www.rabbitmq.com/docs/quorum-queues
QUORUM = {"x-queue-type": "quorum"}
WORK = QUORUM | {
    # RabbitMQ counts what comes after the first one.
    "x-delivery-limit": BACKSTOP - 1,
    # "" is the exchange that knows every queue by its name.
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD_LETTER_QUEUE,
    # Keep the message until `dead_letter` has confirmed it. By default it can get lost.
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
    # A direct exchange can't delay a message: an ETA would then block a worker's prefetch window.
    # https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/rabbitmq.html
    "task_default_exchange_type": "topic",
    # A queue made on the fly, by `queue="reports"` or `-Q reports`, is like the others.
    "task_default_queue_type": "quorum",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
    "worker_consumer": "celery_service.brokers.rabbitmq.consumer:Consumer",
    # A message counts as sent when the broker has written it down, not when it has left our socket.
    # And a broker that is frozen, or has no memory left, must not freeze publishers: each of two
    # attempts waits so long for the confirmation, and again for the end of the connection.
    "broker_transport_options": {"confirm_publish": True, "read_timeout": 2, "write_timeout": 2},
    # A lost connection gives running tasks back to the broker: by default they then run here and
    # elsewhere at the same time.
    "worker_cancel_long_running_tasks_on_connection_loss": True,
}

_base: Any = celery.app.base


def settings(url: str, root: Path) -> dict[str, object]:
    """Return the settings; have Kombu use our transport, and Celery send delays below a second.

    Kombu's own transport can lose messages.
    """
    _base.calculate_routing_key = _routing_key
    TRANSPORT_ALIASES.update(
        amqp=f"{TRANSPORT}:Transport",
        pyamqp=f"{TRANSPORT}:Transport",
        amqps=f"{TRANSPORT}:SSLTransport",
    )
    return dict(SETTINGS)


def check(settings: dict[str, Any], called: Callable[[str], str]) -> None:
    """Complete the settings of the results, and refuse what can't work.

    Raises:
        ConfigurationError: An address can't work, or there is no Redis for results.
    """
    addresses.check_brokers(settings, called, addresses.check_server)
    results.check(settings, called)


def _routing_key(countdown: int, routing_key: str) -> str:
    """Return the routing key of a message with a delay of so many whole seconds.

    Kombu refuses 0. With 28 zeros in front, RabbitMQ delivers the message at once, and the worker
    waits until it is due.
    """
    if countdown >= 1:
        return calculate_routing_key(countdown, routing_key)
    digits = 2 * MAX_NUMBER_OF_BITS_TO_USE  # each has a dot
    return "0." * MAX_NUMBER_OF_BITS_TO_USE + calculate_routing_key(1, routing_key)[digits:]
