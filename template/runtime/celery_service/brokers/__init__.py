"""The brokers. The scheme of CELERY_BROKER_URL chooses one, and a broker is a module with

- `SCHEMES`, how its URLs may start, and `EXAMPLE`, one of them;
- `settings(url, root)`, the Celery settings that it needs;
- `check(settings, called)`, which completes the merged settings and refuses what can't work;
  `called` gives what messages call a setting.

results.py is about the result backend, for both brokers that are servers.
"""

from types import ModuleType

from celery_service.brokers import embedded, rabbitmq, redis
from celery_service.config.addresses import scheme_of, wrong_scheme
from celery_service.config.settings import ConfigurationError

BROKERS = (redis, rabbitmq, embedded)


def by_scheme(url: str, called: str) -> ModuleType:
    """Return the broker of a URL.

    Raises:
        ConfigurationError: There is no URL, or it starts otherwise. Only its scheme is shown: the
            rest may hold a password.
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
