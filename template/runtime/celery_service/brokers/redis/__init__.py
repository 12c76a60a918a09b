"""Redis as the broker: its settings. transport.py is how messages come out of it."""

from pathlib import Path
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

from celery_service.brokers.queues import NAMES
from celery_service.config.defaults import REDIS_SOCKET
from celery_service.config.settings import ConfigurationError

SCHEMES = ("redis", "rediss", "sentinel")
EXAMPLE = "redis://localhost:6379/0"

#: The longest that a retry or a countdown may wait: beyond it Redis delivers the message twice.
LONGEST_DELAY = 600.0
#: What a worker needs around a task: to fetch it, to store its result, to acknowledge it.
GRACE = 60.0

TRANSPORT = "celery_service.brokers.redis.transport"

SETTINGS: dict[str, object] = {
    "task_queues": {name: {"exchange": name} for name in NAMES},
    "worker_consumer": "celery_service.brokers.redis.consumer:Consumer",
    # A worker that starts or reconnects while Redis can't write waits, too: by default it ends.
    "broker_channel_error_retry": True,
    # On Redis, this one would acknowledge what it cancels, and lose the task.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_transport_options": {
        **REDIS_SOCKET,
        # Always look into the most urgent queue first.
        "queue_order_strategy": "priority",
        # One list for each queue, whose length is what waits there. By default there are four, and
        # priority 0 is the most urgent.
        "priority_steps": [0],
        # Look for messages of dead workers every 10 seconds instead of every 100.
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
    },
}


def settings(url: str, root: Path) -> dict[str, object]:
    """Return the settings, and have Kombu use our transport: its own can lose messages."""
    TRANSPORT_ALIASES.update(
        redis=f"{TRANSPORT}:Transport",
        rediss=f"{TRANSPORT}:Transport",
        sentinel=f"{TRANSPORT}:SentinelTransport",
    )
    return SETTINGS | {"result_backend": url}


def check(settings: dict[str, Any]) -> None:
    """Derive the visibility timeout, and refuse what can't work.

    Redis delivers a message again that isn't acknowledged within the visibility timeout:
    https://docs.celeryq.dev/en/stable/getting-started/backends-and-brokers/redis.html#visibility-timeout

    Raises:
        ConfigurationError: Redis would deliver running tasks again, or a Sentinel has no master.
    """
    options = settings["broker_transport_options"]
    limit, timeout = settings["task_time_limit"], options.get("visibility_timeout")
    is_limited = isinstance(limit, int | float)
    if timeout is None:
        if not is_limited:
            raise ConfigurationError(
                "CELERY_TASK_TIME_LIMIT is none; then CELERY_BROKER_TRANSPORT_OPTIONS must hold "
                'a "visibility_timeout" that is longer than any task.'
            )
        options["visibility_timeout"] = limit + LONGEST_DELAY + GRACE
    elif is_limited and isinstance(timeout, int | float) and timeout <= limit:
        raise ConfigurationError(
            f"CELERY_BROKER_TRANSPORT_OPTIONS has visibility_timeout {timeout:g}; it must be above "
            f"CELERY_TASK_TIME_LIMIT, {limit:g}, or Redis delivers running tasks again."
        )
    if str(settings["broker_url"]).startswith("sentinel") and "master_name" not in options:
        raise ConfigurationError(
            'CELERY_BROKER_TRANSPORT_OPTIONS must hold a "master_name" when CELERY_BROKER_URL '
            "names a Sentinel."
        )
