"""Clients, such as web processes and shells, never wait for a server that is unreachable.

They get an `OperationalError` within 10 seconds, which names the server. Only workers wait.
brokers/redis/backend.py does the same for reading results.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

from celery import Celery
from celery.app import amqp, control
from kombu.common import Broadcast
from kombu.exceptions import OperationalError

from celery_service.brokers.errors import broker_errors

_amqp: Any = amqp
_control: Any = control

RESULTS = "celery_service.brokers.redis.backend"


def install(app: Celery) -> None:
    """Make errors of `app` name the server, and make only workers wait for the result backend."""
    app.amqp_cls = AMQP  # type: ignore[assignment]  # a class will do
    app.control_cls = Control  # type: ignore[assignment]
    app.loader.override_backends = {
        "redis": f"{RESULTS}:RedisBackend",
        "rediss": f"{RESULTS}:RedisBackend",
        "sentinel": f"{RESULTS}:SentinelBackend",
    }


class AMQP(_amqp.AMQP):  # type: ignore[misc]
    """Sends tasks."""

    def _create_task_sender(self) -> Any:
        send = super()._create_task_sender()

        def send_task_message(
            producer: Any, name: str, message: Any, *args: Any, queue: Any = None, **options: Any
        ) -> Any:
            known = self.queues.get(queue, queue) if isinstance(queue, str) else queue
            # RabbitMQ then returns a message that no queue takes; rabbitmq/transport.py handles it.
            # A broadcast may go to no queue: perhaps no worker runs.
            if options.get("mandatory") is None:
                options["mandatory"] = not isinstance(known, Broadcast)
            with broker_errors(producer.connection):
                return send(producer, name, message, *args, queue=queue, **options)

        return send_task_message


class Mailbox(_control.Mailbox):  # type: ignore[misc]
    """Sends commands and replies. Kombu would retry for ever."""

    #: As in `task_publish_retry_policy`.
    retry_policy: Mapping[str, Any] = MappingProxyType({})

    @contextmanager
    def producer_or_acquire(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Yield a producer that retries as `retry_policy` says."""
        with super().producer_or_acquire(*args, **options) as producer:
            yield SimpleNamespace(publish=partial(producer.publish, retry_policy=self.retry_policy))


class Control(_control.Control):  # type: ignore[misc]
    """Sends commands to workers, such as `revoke`."""

    Mailbox = Mailbox

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self.mailbox.retry_policy = app.conf.task_publish_retry_policy

    def broadcast(
        self,
        command: Any,
        arguments: Any = None,
        destination: Any = None,
        connection: Any = None,
        **options: Any,
    ) -> Any:
        """Send a command.

        Raises:
            OperationalError: The broker is unreachable. With a `connection`, errors of this
                connection are raised instead: a worker that starts waits when it gets one.
        """
        if connection is not None:
            try:
                return super().broadcast(command, arguments, destination, connection, **options)
            except OperationalError as error:
                # Kombu's own error, which would end a worker that connects again.
                raise error.__cause__ or error from None
        with broker_errors(self.app.connection_for_write()):
            return super().broadcast(command, arguments, destination, **options)
