"""RabbitMQ as the broker: its settings. Results stay in Redis: CELERY_RESULT_BACKEND names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery_service.brokers import results
from celery_service.brokers.queues import DEAD_LETTER_QUEUE, NAMES
from celery_service.config import addresses

SCHEMES = ("amqp", "amqps", "pyamqp")
EXAMPLE = "amqp://guest:guest@localhost:5672//"

#: How often RabbitMQ itself delivers a message before it gives up. We count as well, and sooner:
#: dead_letters/poison.py. This is for what dies before it gets there.
BACKSTOP = 20

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


def settings(url: str, root: Path) -> dict[str, object]:
    """Return the settings, and have Kombu try again also when RabbitMQ refuses a connection.

    Workers and beat then wait for a missing virtual host or user, as for a broker that is away.
    """
    # Imported here: they need the extra.
    from amqp import AccessRefused, Connection, NotAllowed
    from kombu.transport import pyamqp

    transport: Any = pyamqp.Transport
    transport.recoverable_connection_errors = (
        *Connection.recoverable_connection_errors,
        *(AccessRefused, NotAllowed),
    )
    return dict(SETTINGS)


def check(settings: dict[str, Any], called: Callable[[str], str]) -> None:
    """Complete the settings of the results, and refuse what can't work.

    Raises:
        ConfigurationError: An address can't work, or there is no Redis for results.
    """
    addresses.check_brokers(settings, called, addresses.check_server)
    results.check(settings, called)
