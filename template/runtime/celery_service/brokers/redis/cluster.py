"""Refuse a Redis Cluster, whose nodes have the scheme `redis://`, too. Messages and results need
several keys at a time, which lie on different nodes: most commands would fail for ever.
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
    """Have workers and beat of `app` end with one line when they start on a cluster."""

    def check(app_that_starts: Any) -> None:
        if app_that_starts is app:
            _refuse_cluster(app)

    celeryd_init.connect(lambda instance, **_: check(instance.app), weak=False)
    beat_init.connect(lambda sender, **_: check(sender.app), weak=False)


def _refuse_cluster(app: Celery) -> None:
    # A server that is away is waited for, later. Then it isn't checked.
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
    """Yield each Redis of `app`, by the variable that names it."""
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
    """Return two keys of different slots, with the prefix that a user may be limited to."""
    backend: Any = app.backend
    return backend.get_key_for_task("a"), backend.get_key_for_task("b")
