"""The brokers. The scheme of CELERY_BROKER_URL chooses one, and a broker is a module with

- `SCHEMES`, how its URLs may start, and `EXAMPLE`, one of them;
- `settings(url, root)`, the Celery settings that it needs;
- `check(settings)`, which completes the merged settings and refuses what can't work.
"""

from types import ModuleType

from celery_service.brokers import embedded, rabbitmq, redis
from celery_service.config.settings import ConfigurationError

BROKERS = (redis, rabbitmq, embedded)


def by_scheme(url: str) -> ModuleType:
    """Return the broker of a URL.

    Raises:
        ConfigurationError: There is no URL, or it starts otherwise. Only its scheme is shown: the
            rest may hold a password.
    """
    if not url:
        raise ConfigurationError(
            f"CELERY_BROKER_URL is not set; name a broker such as {redis.EXAMPLE} or "
            f"{rabbitmq.EXAMPLE} (`make dev` needs none)."
        )
    scheme = url.partition("://")[0].partition("+")[0]
    for broker in BROKERS:
        if scheme in broker.SCHEMES:
            return broker
    allowed = ", ".join(f"{name}://" for broker in BROKERS for name in broker.SCHEMES)
    raise ConfigurationError(
        f"CELERY_BROKER_URL starts with {scheme[:20]!r}; it must start with {allowed}."
    )
