"""Start Redis for a test, and a Sentinel that watches one."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

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


def start_sentinel(folder: Path, master: Server, *, name: str = "mymaster", replicas: int = 1) -> Server:
    """Start the only Sentinel of a master, under this name, and wait until it knows all replicas of it: 1 s.

    When the master doesn't answer for a second, a replica takes its place within a few.

        with start_redis(one) as master, start_redis(two, options=replica_of(master)):
            with start_sentinel(three, master) as sentinel:
                ...  # sentinel.url, for clients that know the name
    """
    program = require("redis-server", find_redis())
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    # A Sentinel writes to its file what it learns.
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"bind {HOST}\n"
        f"port {port}\n"
        f"dir {folder.resolve()}\n"
        f"sentinel monitor {name} {HOST} {urlsplit(master.url).port} 1\n"
        f"sentinel down-after-milliseconds {name} 1000\n"
        f"sentinel failover-timeout {name} 5000\n"
    )

    def is_ready() -> bool:
        with redis.Redis.from_url(f"redis://{HOST}:{port}", socket_timeout=1, retry=None) as client:
            try:
                return bool(client.sentinel_master(name)["num-slaves"] == replicas)
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    server = Server(
        name="redis-sentinel",
        url=f"sentinel://{HOST}:{port}/0",
        answers=is_ready,
        command=[program, str(settings.resolve()), "--sentinel"],
        log=folder.resolve() / "sentinel.log",
        start_seconds=30,
    )
    server.start()
    return server


def replica_of(master: Server) -> Sequence[str]:
    """Give the options of `start_redis` for a replica."""
    return ("--replicaof", HOST, str(urlsplit(master.url).port))


def _answers(url: str) -> bool:
    # While it loads its data, Redis answers with an error that is a ConnectionError here.
    with redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, retry=None) as client:
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False
