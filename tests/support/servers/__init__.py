"""Start real servers for tests.

    with start_redis(tmp_path) as server:
        ...  # server.url; server.restart(), server.kill(), server.pause(), server.resume()

Each server listens on 127.0.0.1, on ports of its own, and keeps everything in one folder, so that tests run side by
side and never touch the servers of the machine.
"""

from .base import HOST, Server, free_port, listens, require, wait_until
from .postgres import find_postgres, start_postgres
from .prometheus import promtool, start_prometheus
from .rabbitmq import find_rabbitmq, start_rabbitmq
from .redis import find_redis, replica_of, start_redis, start_sentinel

__all__ = [
    "HOST",
    "Server",
    "find_postgres",
    "find_rabbitmq",
    "find_redis",
    "free_port",
    "listens",
    "promtool",
    "replica_of",
    "require",
    "start_postgres",
    "start_prometheus",
    "start_rabbitmq",
    "start_redis",
    "start_sentinel",
    "wait_until",
]
