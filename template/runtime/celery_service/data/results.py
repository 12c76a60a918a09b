"""The Redis of the results: which of its errors pass, so that a worker waits and tries again."""

import re
from typing import Any

import structlog
from celery import Celery
from celery.backends import redis as celerys
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

logger = structlog.get_logger(__name__)


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


class RedisBackend(celerys.RedisBackend):
    """Waits for what passes; Celery would wait for all that redis-py calls a lost connection."""

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Tell `result_backend_always_retry` whether this error passes."""
        return passes(exc)

    def store_result(self, task_id: Any, result: Any, state: Any, *rest: Any, **more: Any) -> Any:
        """Store a state. What Redis refuses for good is logged: the task itself goes on."""
        try:
            return super().store_result(task_id, result, state, *rest, **more)
        except (exceptions.RedisError, OperationalError) as error:
            if passes(error):
                raise
            told = {"id": task_id, "state": state, "server": self.as_uri(), "error": str(error)}
            logger.error("result_not_stored", **told)
        return result


class SentinelBackend(RedisBackend, celerys.SentinelBackend):
    """The same for the Redis that Sentinel names."""


def install(app: Celery) -> None:
    """Have `app` use these backends for `redis://`, `rediss://` and `sentinel://`."""
    ours: Any = {"redis": RedisBackend, "rediss": RedisBackend, "sentinel": SentinelBackend}
    app.loader.override_backends = {
        scheme: f"{__name__}:{backend.__name__}" for scheme, backend in ours.items()
    }
