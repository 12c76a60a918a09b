"""Redis as the broker: its settings. transport.py fetches the messages."""

import math
from collections.abc import Callable
from pathlib import Path
from ssl import CERT_REQUIRED
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

from celery_service.brokers import results
from celery_service.brokers.queues import NAMES
from celery_service.config import addresses
from celery_service.config.defaults import REDIS_SOCKET
from celery_service.config.settings import ConfigurationError

SCHEMES = results.SCHEMES
EXAMPLE = results.EXAMPLE

#: Seconds for which a worker holds a message unless it renews the lease: see lease.py.
LEASE = 60.0

#: The options that a client of a Sentinel needs.
SENTINEL_OPTIONS = ("master_name", "min_other_sentinels", "sentinel_kwargs")

TRANSPORT = "celery_service.brokers.redis.transport"

SETTINGS: dict[str, object] = {
    "task_queues": {name: {"exchange": name} for name in NAMES},
    "worker_consumer": "celery_service.brokers.redis.consumer:Consumer",
    # A worker that starts or reconnects while Redis can't write also waits. By default, it exits.
    "broker_channel_error_retry": True,
    # On Redis, this setting would acknowledge the messages of cancelled tasks and lose the tasks.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_transport_options": {
        **REDIS_SOCKET,
        # Always fetch from the most urgent queue first.
        "queue_order_strategy": "priority",
        # One list for each queue, so that LLEN is the number of waiting messages. By default there
        # are four lists, for priorities.
        "priority_steps": [0],
        "visibility_timeout": LEASE,
    },
}


def settings(url: str, root: Path) -> dict[str, object]:
    """Return the settings. Register our transport, because Kombu's can lose messages."""
    TRANSPORT_ALIASES.update(
        redis=f"{TRANSPORT}:Transport",
        rediss=f"{TRANSPORT}:Transport",
        sentinel=f"{TRANSPORT}:SentinelTransport",
    )
    return SETTINGS | {"result_backend": url}


def check(settings: dict[str, Any], called: Callable[[str], str]) -> None:
    """Complete the settings of the broker and the result backend, and refuse invalid ones.

    Raises:
        ConfigurationError: An address is invalid, `visibility_timeout` isn't a number of seconds,
            or `master_name` is missing for a Sentinel.
    """
    options = settings["broker_transport_options"]
    lease = options["visibility_timeout"]
    if not isinstance(lease, int | float) or not 1 <= lease < math.inf:
        raise ConfigurationError(
            f"{called('broker_transport_options')} has visibility_timeout {lease!r}; "
            "it must be a number of seconds, 1 or more."
        )
    url = str(settings["broker_url"])
    is_sentinel = url.startswith("sentinel")
    if ";" in url and not is_sentinel:
        raise ConfigurationError(
            f"{called('broker_url')} names several servers; only Sentinels can be several."
        )
    ssl = settings.get("broker_use_ssl")
    if ssl is True or (not ssl and url.startswith("rediss")):
        # By default, Kombu doesn't verify certificates, and with True it doesn't use TLS at all.
        settings["broker_use_ssl"] = {"ssl_cert_reqs": CERT_REQUIRED}
    addresses.check_brokers(settings, called, addresses.check_redis)
    if is_sentinel and "master_name" not in options:
        raise ConfigurationError(
            f'{called("broker_transport_options")} must hold a "master_name" when '
            f"{called('broker_url')} names a Sentinel."
        )
    if settings["result_backend"] == url:
        # Results use the same Redis, so connect with the same options.
        settings.setdefault("redis_backend_use_ssl", settings.get("broker_use_ssl"))
        settings["result_backend_transport_options"] = {
            name: options[name] for name in SENTINEL_OPTIONS if name in options
        } | settings["result_backend_transport_options"]
    results.check(settings, called)
