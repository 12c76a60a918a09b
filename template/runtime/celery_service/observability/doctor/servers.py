"""The servers: whether broker and result store answer, how fast, and in which version."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from celery import Celery
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from celery_service import brokers
from celery_service.brokers import embedded, results
from celery_service.brokers.errors import broker_errors
from celery_service.config.addresses import scheme_of
from celery_service.observability.doctor.finding import Finding

#: A server that takes longer than this to answer is slow, in seconds.
SLOW = 0.1


class Redis(NamedTuple):
    """A Redis of the service, and what it is used for: "broker", "results" or both."""

    uses: str
    client: Any
    #: What the keys of messages begin with, and the key of the times of unacknowledged ones.
    prefix: str = ""
    unacked: str = ""


def uses_redis(app: Celery) -> bool:
    """Tell whether the broker is a Redis."""
    return scheme_of(_broker(app)) in results.SCHEMES


def uses_rabbitmq(app: Celery) -> bool:
    """Tell whether the broker is a RabbitMQ."""
    return scheme_of(_broker(app)) in brokers.rabbitmq.SCHEMES


def is_embedded(app: Celery) -> bool:
    """Tell whether messages are files or in memory."""
    return scheme_of(_broker(app)) in embedded.SCHEMES


def _broker(app: Celery) -> str:
    return str(app.conf.broker_read_url)


@contextmanager
def connected(app: Celery) -> Iterator[Any]:
    """Connect to the broker for the time of a block.

    Raises:
        OperationalError: The broker can't be reached.
    """
    with app.connection_for_read() as connection, broker_errors(connection):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        yield connection


@contextmanager
def redis_of_broker(app: Celery) -> Iterator[Redis]:
    """Connect to the Redis of the messages. Its client adds no prefix to keys."""
    with connected(app) as connection:
        channel: Any = connection.default_channel
        # Kombu's own client adds the prefix to the keys of some commands only.
        client = redis.Redis(connection_pool=channel.client.connection_pool)
        prefix = channel.global_keyprefix
        yield Redis("broker", client, prefix, f"{prefix}{channel.unacked_index_key}")


def redis_of_results(app: Celery) -> Redis | None:
    """Return the Redis of the results; None if results are elsewhere, as with embedded brokers."""
    if scheme_of(str(app.conf.result_backend)) not in results.SCHEMES:
        return None
    backend: Any = app.backend
    client = backend.client
    client.connection_pool.set_retry(Retry(NoBackoff(), 0))
    return Redis("results", client)


def share_a_redis(app: Celery) -> bool:
    """Tell whether messages and results are in the same Redis, whichever of its databases."""
    server = _broker(app).rpartition("/")[0] or _broker(app)
    return uses_redis(app) and str(app.conf.result_backend).startswith(server)


def check_broker(app: Celery) -> Iterator[Finding]:
    """Look whether the broker answers."""
    if is_embedded(app):
        text = f"{_broker(app).partition(':')[0]}, without a server: for one machine"
        yield Finding("ok", "broker", text)
        return
    with connected(app) as connection:
        began = time.monotonic()
        if uses_redis(app):
            with redis_of_broker(app) as found:
                yield _answer("broker", found.client)
            return
        connection.channel().close()
        took = time.monotonic() - began
        about = connection.connection.server_properties
        yield _time("broker", f"RabbitMQ {about.get('version', '')} at {host_of(connection)}", took)


def check_results(app: Celery) -> Iterator[Finding]:
    """Look whether the Redis of the results answers."""
    found = redis_of_results(app)
    if found:
        yield _answer("results", found.client)
    elif is_embedded(app):
        text = "without a Redis: dead letters are only logged, and once() holds in one process"
        yield Finding("ok", "results", text)


def _answer(use: str, client: Any) -> Finding:
    client.ping()  # opens the connection
    began = time.monotonic()
    client.ping()
    took = time.monotonic() - began
    try:
        version = str(client.info("server")["redis_version"])
    except ResponseError:  # this user may not ask
        version = ""
    place = client.connection_pool.get_connection()
    try:
        where = getattr(place, "path", "") or f"{place.host}:{place.port}"
    finally:
        client.connection_pool.release(place)
    finding = _time(use, f"Redis {version or '(version hidden)'} at {where}", took)
    if version and tuple(map(int, version.split(".")[:2])) < (6, 2):
        return Finding("broken", use, finding.text, "Use Redis 6.2 or newer.")
    return finding


def _time(use: str, server: str, took: float) -> Finding:
    text = f"{server}, answers in {1000 * took:.1f} ms"
    if took < SLOW:
        return Finding("ok", use, text)
    fix = "Look at the load of the server, and at the network between it and this machine."
    return Finding("warning", use, f"{text}: slow", fix)


def host_of(connection: Any) -> str:
    """Return host and port of a connection to RabbitMQ, without its password."""
    info = connection.info()
    return f"{info['hostname']}:{info['port']}"
