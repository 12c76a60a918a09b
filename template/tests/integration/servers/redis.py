"""Start Redis for a test.

Owned by the template: `copier update` changes it.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import redis

from . import HOST, Server, free_port, require


def find_redis() -> str | None:
    """Give the URL in TEST_REDIS_URL, or else the path of redis-server, or else None."""
    return os.environ.get("TEST_REDIS_URL") or shutil.which("redis-server")


def start_redis(folder: Path, *, port: int | None = None, options: Sequence[str] = ()) -> Server:
    """Start Redis with its state in `folder`, and wait until it answers.

    It forgets everything when it stops. To keep data over restarts, pass
    `options=("--appendonly", "yes")`; with `"--appendfsync", "always"` over `kill()` as well.
    Where TEST_REDIS_URL is set, that server is used and `port` and `options` count for nothing.

    Raises RuntimeError with the end of the log when Redis doesn't answer within 10 s.
    """
    found = require("redis-server", find_redis())
    if "://" in found:
        server = Server(name="redis-server", url=found, answers=lambda: _answers(found))
    else:
        port = port or free_port()
        url = f"redis://{HOST}:{port}/0"
        own = ("--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no")
        server = Server(
            name="redis-server",
            url=url,
            answers=lambda: _answers(url),
            command=[found, *own, *options],
            log=folder.resolve() / "redis.log",
        )
    server.start()
    return server


def _answers(url: str) -> bool:
    # While it loads its data, Redis answers with an error that is a ConnectionError here.
    with redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as client:
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False
