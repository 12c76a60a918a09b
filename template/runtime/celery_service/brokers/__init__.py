"""The brokers. The scheme of CELERY_BROKER_URL chooses one. Each broker is a module with

- `SCHEMES`, the schemes of its URLs, and `EXAMPLE`, one such URL;
- `settings(url, root)`, the Celery settings that it needs;
- `check(settings, called)`, which completes the merged settings and refuses invalid ones;
  `called` returns the name of a setting for error messages.

results.py checks the result backend of both brokers that are servers.
"""

from types import ModuleType

from celery_service.brokers import embedded, rabbitmq, redis
from celery_service.config.addresses import scheme_of, wrong_scheme
from celery_service.config.settings import ConfigurationError

BROKERS = (redis, rabbitmq, embedded)


def by_scheme(url: str, called: str) -> ModuleType:
    """Return the broker of a URL.

    Raises:
        ConfigurationError: There is no URL, or its scheme is unknown. The message shows only the
            scheme, because the rest of the URL may hold a password.
    """
    if not url:
        raise ConfigurationError(
            f"{called} is not set; name a broker such as {redis.EXAMPLE} or "
            f"{rabbitmq.EXAMPLE} (`make dev` needs none)."
        )
    for broker in BROKERS:
        if scheme_of(url) in broker.SCHEMES:
            return broker
    allowed = ", ".join(f"{name}://" for broker in BROKERS for name in broker.SCHEMES)
    reason = "; a Redis Cluster can't be a broker" if "cluster" in scheme_of(url) else ""
    raise wrong_scheme(called, url, allowed + reason)
