"""Commands to workers, from a worker that connects."""

import pytest
from celery import Celery
from kombu import Connection


@pytest.mark.parametrize("url", ["amqp://guest:guest@127.0.0.1:1//", "redis://127.0.0.1:1/0"])
def test_a_worker_can_tell_that_its_broker_has_gone(app: Celery, url: str) -> None:
    """A worker sends a command when it connects. Any other error than those of its connection would end it."""
    with Connection(url) as connection, pytest.raises(connection.connection_errors):
        app.control.broadcast("hello", connection=connection)
