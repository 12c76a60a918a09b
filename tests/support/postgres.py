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
from typing import Any

from .servers import HOST, Server, child_pids, free_port, is_running, require, wait_until

ROLE = "postgres"


def find_postgres() -> Path | None:
    """Give the folder of initdb and postgres: the newest that Debian has, or the PATH's."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    initdb = newest or shutil.which("initdb")
    return Path(initdb).parent if initdb else None


def start_postgres(folder: Path) -> Any:
    """Start PostgreSQL with its data in `folder`, wait until it answers (1 s), give a Server.

    The URL logs in as a superuser, without a password, to the database `postgres`. What was
    committed survives `restart()` and `kill()`, though not the end of the machine: fsync is off.

    Raises RuntimeError with the end of the log when it doesn't answer within 15 s, and
    subprocess.CalledProcessError when there is no making the data folder.
    """
    programs = require("postgresql", find_postgres())
    data = folder.resolve() / "data"
    if not data.exists():
        _make_data(programs, data)
    port = free_port()
    settings = [f"listen_addresses={HOST}", "unix_socket_directories=", "fsync=off"]
    server = _Postgres(
        name="postgresql",
        url=f"postgresql://{ROLE}@{HOST}:{port}/postgres",
        answers=lambda: _answers(programs, port),
        command=[
            *_as_ordinary_user(),
            *(str(programs / "postgres"), "-D", str(data), "-p", str(port)),
            *(argument for setting in settings for argument in ("-c", setting)),
        ],
        log=folder.resolve() / "postgres.log",
        start_seconds=15,
        stop_signal=signal.SIGINT,  # "fast": ends connections instead of waiting for them
    )
    server.start()
    return server


@dataclass(kw_only=True)
class _Postgres(Server):  # type: ignore[misc, valid-type]  # loaded by path: no types
    """PostgreSQL, whose children each have a session, and so a process group, of their own."""

    def _signal_all(self, number: signal.Signals) -> None:
        if not self.process or self.process.poll() is not None:
            return
        # The parent would replace dying children, and orphans are no longer in the list.
        self.process.send_signal(signal.SIGSTOP)
        for pid in [*child_pids(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _end_now(self) -> None:
        served = child_pids(self.process.pid) if self.process else []
        super()._end_now()
        # A child that outlives its parent holds the shared memory, and the next start refuses.
        wait_until(lambda: not any(map(is_running, served)), 10, "PostgreSQL's children to end")


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
    """Give what to write before a command, since PostgreSQL refuses to run as root.

    The folders of pytest let nobody in but root, so the command keeps the right to pass through.
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


def _answers(programs: Path, port: int) -> bool:
    command = [str(programs / "pg_isready"), "-q", "-h", HOST, "-p", str(port)]
    return subprocess.run(command, check=False).returncode == 0
