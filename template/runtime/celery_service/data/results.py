"""Decides which errors of the result backend are temporary: a worker waits and retries then."""

import re

from kombu.exceptions import OperationalError
from redis import exceptions

#: Temporary errors, which end without a change of the configuration.
PASSING = (
    OSError,
    exceptions.ClusterDownError,
    exceptions.ConnectionError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.TimeoutError,
    exceptions.TryAgainError,
)
#: Permanent errors, although they are subclasses of redis-py's ConnectionError.
PERMANENT = (exceptions.AuthenticationError, exceptions.AuthorizationError)

# Temporary errors without a class in redis-py. Those from a script may begin with "-".
CODES = re.compile(r"(^|-)(BUSY|MISCONF|NOREPLICAS|OOM|READONLY) ")


def passes(error: BaseException) -> bool:
    """Tell whether an error is temporary: Redis is unreachable, out of memory, or not a master.

    Missing permissions, a wrong password or a key of another type are permanent.
    """
    if isinstance(error, OperationalError) and error.__cause__:
        error = error.__cause__
    # In a pipeline, the message begins with the command and its arguments.
    text = str(error).rpartition("caused error: ")[2]
    return (isinstance(error, PASSING) and not isinstance(error, PERMANENT)) or bool(
        isinstance(error, exceptions.ResponseError) and CODES.search(text)
    )
