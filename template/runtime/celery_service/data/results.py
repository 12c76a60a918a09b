"""The Redis of the results: which of its errors pass, so that a worker waits and tries again."""

import re

from kombu.exceptions import OperationalError
from redis import exceptions

#: What passes without anybody changing the configuration.
PASSING = (
    OSError,
    exceptions.ClusterDownError,
    exceptions.ConnectionError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.TimeoutError,
    exceptions.TryAgainError,
)
#: And what doesn't, although redis-py counts it among the lost connections.
PERMANENT = (exceptions.AuthenticationError, exceptions.AuthorizationError)

# Errors that pass and have no class of their own in redis-py. A script may put "-" before them.
CODES = re.compile(r"(^|-)(BUSY|MISCONF|NOREPLICAS|OOM|READONLY) ")


def passes(error: BaseException) -> bool:
    """Tell whether Redis will do later what it has refused: it is away, full, or no master.

    Missing permissions, a wrong password or a key of another type don't pass.
    """
    if isinstance(error, OperationalError) and error.__cause__:
        error = error.__cause__
    # Before it, a pipeline tells the command with its arguments.
    text = str(error).rpartition("caused error: ")[2]
    return (isinstance(error, PASSING) and not isinstance(error, PERMANENT)) or bool(
        isinstance(error, exceptions.ResponseError) and CODES.search(text)
    )
