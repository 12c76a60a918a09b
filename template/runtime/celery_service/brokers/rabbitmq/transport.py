"""How messages get into RabbitMQ: the sender hears of one that no queue takes.

RabbitMQ confirms such a message, and drops it. A process that sends tasks declares their queue
once, and somebody may delete it afterwards. Here the message comes back, Kombu tries again as
`task_publish_retry_policy` says, and by then declares everything anew.
"""

from typing import Any

from amqp.exceptions import (
    AccessRefused,
    NotAllowed,
    NotFound,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from kombu.transport import pyamqp

_kombus: Any = pyamqp


class Unroutable(RecoverableChannelError):
    """No queue takes a message."""


class Channel(_kombus.Channel):  # type: ignore[misc]
    """Raises an error for what comes back."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._returned = ""
        self.events["basic_return"].add(self._on_returned)

    def basic_publish_confirm(self, *args: Any, **options: Any) -> Any:
        """Send a message, and wait until RabbitMQ has it.

        Raises:
            Unroutable: It was sent with `mandatory`, and no queue takes it.
            RecoverableConnectionError: Its exchange doesn't exist, so the channel is closed.
        """
        self._returned = ""
        try:
            sent = super().basic_publish_confirm(*args, **options)
        except NotFound as error:
            raise RecoverableConnectionError(error.reply_text) from error
        if self._returned:
            self.connection.client.declared_entities.clear()
            raise Unroutable(self._returned)
        return sent

    def _on_returned(self, _: Any, exchange: str, routing_key: str, __: Any) -> None:
        """Take it back. The confirmation comes afterwards, and must be read too."""
        self._returned = f"no queue takes messages for {routing_key!r} of exchange {exchange!r}"


class Connection(_kombus.Connection):  # type: ignore[misc]
    """A connection with such channels."""

    Channel = Channel


class Transport(_kombus.Transport):  # type: ignore[misc]
    """What `amqp://` and `pyamqp://` stand for: see `brokers.rabbitmq.settings`."""

    Connection = Connection
    # Workers and beat wait for a missing virtual host or user, as for a broker that is away.
    recoverable_connection_errors = (
        *_kombus.Transport.recoverable_connection_errors,
        *(AccessRefused, NotAllowed),
    )


class SSLTransport(_kombus.SSLTransport):  # type: ignore[misc]
    """What `amqps://` stands for."""

    Connection = Connection
    recoverable_connection_errors = Transport.recoverable_connection_errors
