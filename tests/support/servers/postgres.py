"""Start PostgreSQL for a test."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from support.processes import child_pids

from .base import HOST, Server, free_port, require

ROLE = "postgres"


def find_postgres() -> str | None:
    """Give the folder of PostgreSQL's programs, or None: that of Debian's newest version, or one on the PATH."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    initdb = newest or shutil.which("initdb")
    return str(Path(initdb).parent) if initdb else None


def start_postgres(folder: Path) -> Server:
    """Start PostgreSQL with its data in `folder`, and wait until it answers: 1 s.

    The URL logs in as a superuser, without a password, to the database `postgres`. What was committed survives
    `restart()` and `kill()`, though not the end of the machine: fsync is off.

    Raises RuntimeError with the end of the log when it doesn't answer within 15 s, and subprocess.CalledProcessError
    when there is no making the data folder.
    """
    programs = require("postgresql", find_postgres())
    server = _own_server(Path(programs), folder.resolve())
    server.start()
    return server


@dataclass(kw_only=True)
class _Postgres(Server):
    """PostgreSQL, whose children each have a session, and so a process group, of their own."""

    def _signal_all(self, number: signal.Signals) -> None:
        if self.process and self.process.poll() is None:
            # The parent first: it would replace its children.
            for pid in [self.process.pid, *child_pids(self.process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _end_now(self) -> None:
        if self.process and self.process.poll() is None:
            # Ends the children too, and leaves the data as a crash does. One that outlived its parent would keep the
            # next start from the shared memory.
            self._signal_all(signal.SIGCONT)
            self.process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.stop_seconds)
        super()._end_now()


def _own_server(programs: Path, folder: Path) -> Server:
    data, port = folder / "data", free_port()
    if not data.exists():
        _make_data(programs, data)
    url = f"postgresql://{ROLE}@{HOST}:{port}/postgres"
    settings = [f"listen_addresses={HOST}", "unix_socket_directories=", "fsync=off"]
    return _Postgres(
        name="postgresql",
        url=url,
        answers=lambda: _answers(url),
        command=[
            *_as_ordinary_user(),
            *(str(programs / "postgres"), "-D", str(data), "-p", str(port)),
            *(argument for setting in settings for argument in ("-c", setting)),
        ],
        log=folder / "postgres.log",
        start_seconds=15,
        stop_signal=signal.SIGINT,  # "fast": ends connections instead of waiting for them
    )


def _make_data(programs: Path, data: Path) -> None:
    data.mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(data, *_ordinary_user())
    subprocess.run(
        [
            *_as_ordinary_user(),
            *(str(programs / "initdb"), "-D", str(data), "-U", ROLE, "-A", "trust"),
            *("--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        ],
        check=True,
        cwd=data.parent,
        stdout=subprocess.DEVNULL,
    )


def _as_ordinary_user() -> Sequence[str]:
    """Return the prefix of a command, because PostgreSQL refuses to run as root.

    Only root can enter the folders of pytest, so the command keeps the capability to search them.
    """
    if os.geteuid() != 0:
        return ()
    user, group = _ordinary_user()
    return (
        *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
        *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
    )


def _ordinary_user() -> tuple[int, int]:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return user.pw_uid, user.pw_gid
    raise RuntimeError("this machine has no user postgres and no user nobody to run PostgreSQL as")


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
