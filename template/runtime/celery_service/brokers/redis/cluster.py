"""Refuse a Redis Cluster. Its nodes have the scheme `redis://` too, so the URL doesn't show it.

Messages and results use several keys in one command. In a cluster, these keys are on different
nodes, and most commands fail.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from celery import Celery
from celery.signals import beat_init, celeryd_init
from kombu.exceptions import OperationalError
from redis.exceptions import AskError, ClusterCrossSlotError, ClusterDownError, RedisError

from celery_service.brokers import results
from celery_service.config.addresses import scheme_of
from celery_service.config.settings import ConfigurationError


def install(app: Celery) -> None:
    """Make workers and beat of `app` exit with one line if the Redis is a node of a cluster."""

    def check(app_that_starts: Any) -> None:
        if app_that_starts is app:
            _refuse_cluster(app)

    celeryd_init.connect(lambda instance, **_: check(instance.app), weak=False)
    beat_init.connect(lambda sender, **_: check(sender.app), weak=False)


def _refuse_cluster(app: Celery) -> None:
    # If a server is unreachable, it isn't checked. The worker waits for it later.
    with contextlib.suppress(OperationalError):
        for variable, client in _clients(app):
            try:
                client.execute_command("EVAL", "return 0", 2, *_keys(app))
            except (AskError, ClusterCrossSlotError, ClusterDownError):
                raise ConfigurationError(
                    f"{variable} names a node of a Redis Cluster; "
                    "name a Redis that is not a cluster."
                ) from None
            except RedisError:
                continue


def _clients(app: Celery) -> Iterator[tuple[str, Any]]:
    """Yield the variable that names a Redis, and a client, for each Redis of `app`."""
    broker, backend = app.conf.broker_read_url, app.conf.result_backend
    if scheme_of(backend) in results.SCHEMES:
        store: Any = app.backend
        yield "CELERY_BROKER_URL" if backend == broker else "CELERY_RESULT_BACKEND", store.client
    if scheme_of(broker) in results.SCHEMES and broker != backend:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            channel: Any = connection.default_channel
            yield "CELERY_BROKER_URL", channel.client


def _keys(app: Celery) -> tuple[bytes, bytes]:
    """Return two keys of different slots. They have the prefix that ACL rules may require."""
    backend: Any = app.backend
    return backend.get_key_for_task("a"), backend.get_key_for_task("b")
