"""The error that clients get when a server fails: an `OperationalError` that names the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from kombu.exceptions import OperationalError


def unavailable(server: str, error: BaseException) -> OperationalError:
    """Return the error to raise for a server that has failed with `error`."""
    # Kombu wraps an error in an OperationalError of its own, which may lack the text.
    while isinstance(error, OperationalError) and error.__cause__:
        error = error.__cause__
    # str() of an error of RabbitMQ begins with the number of a method; `reply_text` doesn't.
    text = getattr(error, "reply_text", None) or str(error) or type(error).__name__
    # redis-py quotes the command, and Kombu's commands contain control characters.
    line = "".join(each if each.isprintable() else " " for each in text)
    return OperationalError(f"{server}: {' '.join(line.split())}")


@contextmanager
def broker_errors(connection: Any) -> Iterator[None]:
    """Convert all exceptions of a broker and of the connection to it into `OperationalError`.

    Raises:
        OperationalError: The broker can't be reached, refuses the client or can't do what it asked.
    """
    try:
        yield
    except KeyError:  # which Kombu counts among the errors of a connection to Redis
        raise
    except (
        OperationalError,
        *connection.recoverable_connection_errors,
        *connection.connection_errors,
        *connection.channel_errors,
    ) as error:
        raise unavailable(f"broker {_hosts(connection)}", error) from error


def _hosts(connection: Any) -> str:
    """Return host and port of the broker, or of each if CELERY_BROKER_URL names several."""
    urls = connection.alt or [connection.as_uri()]
    found = [urlsplit(url if "://" in url else f"//{url}") for url in urls]
    port = connection.transport.default_port
    return ", ".join(
        f"{url.hostname}:{url.port or port}" if url.hostname else url.path for url in found
    )
