"""How messages get into RabbitMQ. The sender gets an error if no queue takes a message.

By default, RabbitMQ confirms such a message and drops it. A process that sends tasks declares their
queue once, and somebody may delete the queue afterwards. With this transport, RabbitMQ returns the
message. Kombu then declares everything again and retries, as `task_publish_retry_policy` says.
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
    """Raises an error for a message that RabbitMQ returns."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._returned = ""
        self.events["basic_return"].add(self._on_returned)

    def basic_publish_confirm(self, *args: Any, **options: Any) -> Any:
        """Send a message, and wait until RabbitMQ confirms it.

        Raises:
            Unroutable: The message was sent with `mandatory`, and no queue takes it.
            RecoverableConnectionError: The exchange doesn't exist. RabbitMQ closed the channel.
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
        """Remember it. RabbitMQ confirms a returned message too, so don't raise an error yet."""
        self._returned = f"no queue takes messages for {routing_key!r} of exchange {exchange!r}"


class Connection(_kombus.Connection):  # type: ignore[misc]
    """A connection that uses `Channel`."""

    Channel = Channel


class Transport(_kombus.Transport):  # type: ignore[misc]
    """The transport for `amqp://` and `pyamqp://`: see `brokers.rabbitmq.settings`."""

    Connection = Connection
    # Workers and beat wait if a virtual host or user is missing, as if the broker were unreachable.
    recoverable_connection_errors = (
        *_kombus.Transport.recoverable_connection_errors,
        *(AccessRefused, NotAllowed),
    )


class SSLTransport(_kombus.SSLTransport):  # type: ignore[misc]
    """The transport for `amqps://`."""

    Connection = Connection
    recoverable_connection_errors = Transport.recoverable_connection_errors
