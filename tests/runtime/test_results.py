"""Which errors of the result store a worker waits for."""

import json
from typing import Any, cast

import celery_service
import pytest
from celery import Celery
from celery_service.brokers.redis.backend import RedisBackend
from celery_service.data.results import passes
from celery_service.dead_letters.store import deliveries_key
from kombu.utils.encoding import bytes_to_str
from redis import exceptions
from redis._parsers.base import BaseParser


def answered(text: str) -> Exception:
    """The error that redis-py raises for an answer of Redis."""
    parser: Any = BaseParser
    return cast(Exception, parser.parse_error(text))


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ConnectionError("Error 111 connecting to localhost:6379. Connection refused."),
        exceptions.TimeoutError("Timeout reading from socket"),
        BrokenPipeError(),
        answered("LOADING Redis is loading the dataset in memory"),
        answered("OOM command not allowed when used memory > 'maxmemory'."),
        answered("MISCONF Errors writing to the AOF file: No space left on device"),
        answered("READONLY You can't write against a read only replica."),
        answered("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        answered("CLUSTERDOWN The cluster is down"),
        answered("TRYAGAIN Multiple keys request during rehashing of slot"),
        answered("NOREPLICAS Not enough good replicas to write."),
        answered("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
        answered("ERR max number of clients reached"),
        exceptions.ResponseError("Command # 1 (SET a b) of pipeline caused error: MISCONF Errors writing"),
        # A script of Redis 6.
        answered("ERR Error running script: @user_script:1: -OOM command not allowed when used memory > 'maxmemory'."),
    ],
    ids=str,
)
def test_a_worker_waits_after_a_temporary_error(error: Exception) -> None:
    assert passes(error)


@pytest.mark.parametrize(
    "error",
    [
        answered("NOPERM this user has no permissions to access one of the keys used as arguments"),
        answered("WRONGPASS invalid username-password pair or user is disabled."),
        answered("NOAUTH Authentication required."),
        answered("WRONGTYPE Operation against a key holding the wrong kind of value"),
        answered("ERR DB index is out of range"),
        answered("ERR unknown command 'HSTRLEN'"),
        exceptions.ResponseError("Command # 1 (SET a -OOM error) of pipeline caused error: WRONGTYPE Operation"),
        KeyError("result"),
    ],
    ids=str,
)
def test_a_worker_does_not_wait_after_a_permanent_error(error: Exception) -> None:
    assert not passes(error)


@pytest.mark.parametrize(
    ("prefix", "start"), [("", ""), ("acme:", "acme:"), ("acme", "acme_")], ids=["none", "with a colon", "without one"]
)
def test_our_keys_have_the_prefix_of_the_result_backend(
    monkeypatch: pytest.MonkeyPatch, prefix: str, start: str
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://localhost")
    monkeypatch.setenv("CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS", json.dumps({"global_keyprefix": prefix}))
    app = Celery("tests", set_as_current=False)
    celery_service.install(app, tasks="celery_service.observability")
    assert isinstance(app.backend, RedisBackend)
    assert bytes_to_str(app.backend.get_key_for_task("a")) == f"{start}celery-task-meta-a"
    assert deliveries_key(app, "a") == f"{start}tests:deliveries:a"
