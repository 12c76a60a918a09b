"""Start RabbitMQ for a test."""

import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .base import HOST, Server, free_port, listens, require

# Debian's /usr/sbin/rabbitmq-server insists on the user rabbitmq and on /var/lib/rabbitmq; this is the one behind it.
DEBIAN_SCRIPT = "/usr/lib/rabbitmq/bin/rabbitmq-server"

# Erlang's own traffic stays on this machine, and idle schedulers don't burn the processor that the tests need.
# https://www.rabbitmq.com/docs/runtime
ERLANG_ARGUMENTS = "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none"


def find_rabbitmq() -> str | None:
    """Give the path of rabbitmq-server, or None."""
    return shutil.which(DEBIAN_SCRIPT) or shutil.which("rabbitmq-server")


def start_rabbitmq(folder: Path, *, options: Sequence[str] = ()) -> Server:
    """Start RabbitMQ with its state in `folder`, and wait until it answers: 5 to 10 s.

    Durable queues and their persistent messages survive `restart()`. `options` are lines of rabbitmq.conf, such as
    `"consumer_timeout = 60000"`.

    Raises RuntimeError with the end of the log when RabbitMQ doesn't answer within 90 s.
    """
    script = require("rabbitmq-server", find_rabbitmq())
    server = _own_server(script, folder.resolve(), options)
    server.start()
    return server


@dataclass(kw_only=True)
class _RabbitMQ(Server):
    """RabbitMQ with an epmd, the name service that Erlang nodes need, of its own.

    Erlang would start epmd by itself, in the background and for ever; found running, it is used.
    """

    epmd: Server

    def start(self) -> None:
        if not self.epmd.process:
            self.epmd.start()
        super().start()

    def _end_now(self) -> None:
        super()._end_now()
        self.epmd.stop()


def _own_server(script: str, folder: Path, options: Sequence[str]) -> Server:
    port, epmd_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    # A nearly full disk would make RabbitMQ block every publisher.
    settings = ["disk_free_limit.absolute = 10MB", *options]
    (folder / "rabbitmq.conf").write_text("\n".join([*settings, ""]), encoding="utf-8")
    (folder / "enabled_plugins").write_text("[].\n", encoding="utf-8")
    environment = _environment(folder, port, epmd_port)
    epmd = Server(
        name="epmd",
        url=f"epmd://{HOST}:{epmd_port}",
        answers=lambda: listens(epmd_port),
        command=[_find_epmd(), "-port", str(epmd_port), "-address", HOST],
        environment=environment,
        log=folder / "epmd.log",
    )
    return _RabbitMQ(
        name="rabbitmq-server",
        url=f"amqp://guest:guest@{HOST}:{port}//",
        answers=lambda: _answers(HOST, port),
        command=[script],
        environment=environment,
        log=folder / "rabbitmq.log",
        data=folder / "mnesia",
        start_seconds=90,
        stop_seconds=60,
        epmd=epmd,
    )


def _environment(folder: Path, port: int, epmd_port: int) -> dict[str, str]:
    """Give the variables that keep this node apart from every other one on the machine."""
    others = {
        name: value
        for name, value in os.environ.items()
        # With NOTIFY_SOCKET the script believes that systemd started it, and handles signals anew.
        if not name.startswith(("RABBITMQ_", "ERL_")) and name != "NOTIFY_SOCKET"
    }
    return others | {
        "HOME": str(folder),  # of .erlang.cookie
        "ERL_CRASH_DUMP_SECONDS": "0",  # no dump: the log says enough
        "ERL_EPMD_ADDRESS": HOST,
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_NODENAME": f"test{port}@localhost",  # names the data folder: keep it on restart
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG_ARGUMENTS,
    }


def _find_epmd() -> str:
    """Find epmd: on the PATH, or inside Erlang where only `erl` is on it."""
    if found := shutil.which("epmd"):
        return found
    erl = Path(shutil.which("erl") or "/usr/lib/erlang/bin/erl").resolve()
    inside = sorted(erl.parents[1].glob("erts-*/bin/epmd"))
    if not inside:
        raise FileNotFoundError("epmd, a part of Erlang, is neither on the PATH nor beside erl")
    return str(inside[-1])


def _answers(host: str, port: int) -> bool:
    """Whether RabbitMQ greets a client: it listens only when it has started completely."""
    method_frame = b"\x01"  # the first byte of Connection.Start
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == method_frame
    except OSError:
        return False
