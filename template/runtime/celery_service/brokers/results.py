"""The result backend. It must be a Redis, whatever the broker is, because it also stores dead
letters and counts of deliveries.
"""

from collections.abc import Callable
from ssl import CERT_REQUIRED
from typing import Any

from celery import Celery
from redis.exceptions import RedisError

from celery_service.config import addresses
from celery_service.config.settings import ConfigurationError

SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")
EXAMPLE = "redis://localhost:6379/0"


def check(settings: dict[str, Any], called: Callable[[str], str]) -> None:
    """Complete the settings of the result backend, and refuse invalid ones.

    Raises:
        ConfigurationError: No Redis is configured for results, or its address is invalid.
    """
    url = str(settings.get("result_backend") or "")
    variable = called("broker_url" if url == settings["broker_url"] else "result_backend")
    if not url:
        raise ConfigurationError(
            f"{variable} is not set; name a Redis such as {EXAMPLE}: it keeps results, dead "
            "letters and counts of deliveries."
        )
    scheme = addresses.scheme_of(url)
    if scheme not in SCHEMES:
        allowed = ", ".join(f"{name}://" for name in SCHEMES)
        raise addresses.wrong_scheme(
            variable, url, f"{allowed}: results and dead letters need a Redis that is not a cluster"
        )
    for part in url.split(";"):
        try:
            addresses.check_redis(part)
        except ValueError as error:
            raise ConfigurationError(f"{variable} {error}.") from None
    if scheme == "sentinel" and "master_name" not in settings["result_backend_transport_options"]:
        raise ConfigurationError(
            f'{called("result_backend_transport_options")} must hold a "master_name" when '
            f"{variable} names a Sentinel."
        )
    if scheme == "rediss" or settings.get("redis_backend_use_ssl"):
        # Celery has no default for this option and refuses an address without it.
        verify = {"ssl_cert_reqs": CERT_REQUIRED}
        settings["redis_backend_use_ssl"] = verify | (settings.get("redis_backend_use_ssl") or {})
    if scheme == "redis+socket":
        # A Unix socket has no TCP keepalive.
        settings["redis_socket_keepalive"] = False
    try:
        _have_celery_read(settings)
    except (KeyError, TypeError, ValueError, RedisError):
        raise ConfigurationError(f"{variable} {addresses.WRONG_OPTION}.") from None


def _have_celery_read(settings: dict[str, Any]) -> None:
    """Create a connection to the result backend without opening it."""
    app = Celery("of the check", set_as_current=False)
    app.config_from_object(settings)
    backend: Any = app.backend
    backend.client.connection_pool.make_connection()
