"""Checks the addresses of servers. No message shows an address: it may contain a password."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kombu
from kombu.utils.url import url_to_parts

from celery_service.config.settings import ConfigurationError

#: The settings of Celery that name a broker.
BROKERS = ("broker_url", "broker_read_url", "broker_write_url")

WRONG_OPTION = (
    "has an option after its ? that is unknown or has a wrong value; options are such as "
    "ssl_cert_reqs=required"
)


def scheme_of(url: str) -> str:
    """Return the scheme of an address, such as `redis`, or "" if it has no `://`."""
    scheme, separator, _ = url.partition("://")
    return scheme if separator else ""


def wrong_scheme(called: str, url: str, allowed: str) -> ConfigurationError:
    """Return the error for an address with a scheme that isn't allowed."""
    scheme = scheme_of(url)
    shown = f"starts with {scheme[:20]!r}" if scheme else "doesn't start with a scheme"
    return ConfigurationError(f"{called} {shown}; it must start with {allowed}.")


def check_server(url: str) -> None:
    """Check the address of any server.

    Raises:
        ValueError: The address is invalid. The message is the end of a sentence that begins with
            the name of its variable.
    """
    try:
        port = url_to_parts(url).port
    except ValueError:  # its message contains the address
        port = 0
    if port == 0:
        raise ValueError(
            "can't be read; its port must be a number from 1 to 65535, and its password must have "
            "%2F for /, %23 for #, %3F for ? and %5B for ["
        )


def check_redis(url: str) -> None:
    """Check the address of a Redis.

    Raises:
        ValueError: The address is invalid: see check_server.
    """
    check_server(url)
    parts = url_to_parts(url)
    database = parts.path or ""
    if scheme_of(url) == "redis+socket":
        if not database:
            raise ValueError("names no socket; write it such as redis+socket:///run/redis.sock")
        database = parts.query.get("virtual_host", "")
    if not re.fullmatch(r"/?[0-9]*", database):
        raise ValueError("must have a number as its database, such as redis://localhost:6379/0")
    if scheme_of(url) == "redis" and any(name.startswith("ssl_") for name in parts.query):
        raise ValueError("has options of TLS, so it must start with rediss://")
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        path = parts.query.get(name)
        if path and not Path(path).is_file():
            raise ValueError(f"names a file that doesn't exist, as {name}")


def check_brokers(
    settings: Mapping[str, Any], called: Callable[[str], str], check: Callable[[str], None]
) -> None:
    """Check the addresses of the broker: with `check`, and by parsing them with Kombu.

    Raises:
        ConfigurationError: An address is invalid.
    """
    for name in BROKERS:
        for url in filter(None, (settings.get(name) or "").split(";")):
            try:
                check(url)
            except ValueError as error:
                raise ConfigurationError(f"{called(name)} {error}.") from None
            try:
                kombu.Connection(url, ssl=settings.get("broker_use_ssl") or False)
            except (KeyError, TypeError, ValueError):
                raise ConfigurationError(f"{called(name)} {WRONG_OPTION}.") from None
