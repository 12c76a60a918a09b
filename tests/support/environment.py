"""The environment of programs that tests start: only variables that a user's shell has.

The machines that run tests may export PYTHONUNBUFFERED, for example. With it, the output of a worker would appear at
once, although a user's worker may buffer it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

#: How package clients reach their registry: their own settings, proxies, certificates.
OF_PACKAGE_CLIENTS = re.compile(
    r"(UV_(?!PROJECT|PYTHON|COMPILE)\w+|PIP_\w+|\w+_PROXY|\w*_CA_BUNDLE|\w*_CA_CERTS|SSL_CERT_\w+|XDG_CACHE_HOME)",
    re.IGNORECASE,
)


def of_a_user(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give a user's environment, with these variables too."""
    bare = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(Path.home()), "LANG": "C.UTF-8"}
    return bare | dict(more or {})


def of_a_package_client(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of uv or pip: a user's, and the variables to reach the registry on this machine."""
    kept = {name: value for name, value in os.environ.items() if OF_PACKAGE_CLIENTS.fullmatch(name)}
    return of_a_user(kept | dict(more or {}))
