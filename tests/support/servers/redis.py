"""Start Redis for a test."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import redis

from .base import HOST, Server, free_port, require


def find_redis() -> str | None:
    """Give the path of redis-server, or None."""
    return shutil.which("redis-server")


def start_redis(folder: Path, *, port: int | None = None, options: Sequence[str] = ()) -> Server:
    """Start Redis with its state in `folder`, and wait until it answers: 0.1 s.

    It forgets everything when it stops. To keep data over restarts, pass `options=("--appendonly", "yes")`; with
    `"--appendfsync", "always"` over `kill()` as well.

    Raises RuntimeError with the end of the log when Redis doesn't answer within 10 s.
    """
    program = require("redis-server", find_redis())
    port = port or free_port()
    url = f"redis://{HOST}:{port}/0"
    own = ("--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no")
    server = Server(
        name="redis-server",
        url=url,
        answers=lambda: _answers(url),
        command=[program, *own, *options],
        log=folder.resolve() / "redis.log",
    )
    server.start()
    return server


def _answers(url: str) -> bool:
    # While it loads its data, Redis answers with an error that is a ConnectionError here.
    with redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, retry=None) as client:
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False
