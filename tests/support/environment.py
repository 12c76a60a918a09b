"""What tests put into the environment of the programs that they start: what a user's shell has, and no more.

The machines that run tests export PYTHONUNBUFFERED, for example, with which a worker's output would look complete
where a user's isn't.
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
    """Give the environment of uv or pip: a user's, and what they need on this machine to reach their registry."""
    kept = {name: value for name, value in os.environ.items() if OF_PACKAGE_CLIENTS.fullmatch(name)}
    return of_a_user(kept | dict(more or {}))
