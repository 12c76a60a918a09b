"""Publishers: processes with the code and the environment of a service, which run code that sends tasks.

    with Publisher(project, {"CELERY_BROKER_URL": server.url}, output=tmp_path / "publisher") as publisher:
        publisher.run("from my_service.celery import hello_world; hello_world.delay().id")

Each is a fork of a Python that has imported Celery, not the project: see zygote.py.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from support import environment
from support.project import InstalledProject
from support.servers import wait_until

ZYGOTE = Path(__file__).with_name("zygote.py")
#: Seconds that the first one may take to import Celery, on a busy machine.
START_SECONDS = 60


@functools.cache
def _zygote(python: str) -> str:
    """Start the process that forks, once for each virtual environment; give the path of its socket."""
    folder = tempfile.TemporaryDirectory(prefix="publishers-")
    path = f"{folder.name}/socket"
    process = subprocess.Popen(
        [python, "-c", ZYGOTE.read_text(encoding="utf-8"), path],
        env=environment.of_a_user(),
        stdin=subprocess.PIPE,
        start_new_session=True,
    )

    def end() -> None:
        process.kill()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    wait_until(lambda: process.poll() is not None or Path(path).exists(), START_SECONDS, "the start of publishers")
    return path


class _Child:
    """A connection to a fork."""

    def __init__(self, project: InstalledProject, variables: Mapping[str, str], output: Path) -> None:
        self.output = output
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(START_SECONDS)
        self._socket.connect(_zygote(project.program("python")))
        self._file = self._socket.makefile("rw", encoding="utf-8")
        about = {"environment": environment.of_a_user(variables), "folder": str(project.folder), "output": str(output)}
        self.pid: int = self.ask(about, START_SECONDS)["pid"]

    def ask(self, request: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """Give its answer. Raises TimeoutError, or RuntimeError when it has ended instead."""
        self._socket.settimeout(timeout_seconds)
        self._file.write(json.dumps(request) + "\n")
        self._file.flush()
        line = self._file.readline()
        if not line:
            raise RuntimeError(f"the process has ended; it printed:\n{self.printed('stdout')}{self.printed('stderr')}")
        found: dict[str, Any] = json.loads(line)
        return found

    def printed(self, stream: str) -> str:
        """Give what it has printed to `stdout` or `stderr`."""
        return Path(f"{self.output}.{stream}").read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """Let it end."""
        self._file.close()
        self._socket.close()

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.close()


class Publisher:
    """A process that runs one piece of code after the other."""

    def __init__(self, project: InstalledProject, variables: Mapping[str, str], *, output: Path) -> None:
        """Start it in a user's environment with these variables; it prints to files that begin like `output`."""
        self._child = _Child(project, variables, output)
        self._lock = threading.Lock()

    def run(self, code: str, *, timeout_seconds: float = 150) -> Any:
        """Run a script, and give the value of its last line when that is an expression; JSON must be able to hold it.

        Raises RuntimeError with the traceback when the code fails, and TimeoutError when it takes too long; the process
        is killed then.
        """
        with self._lock:
            try:
                answer = self._child.ask({"code": code}, timeout_seconds)
            except TimeoutError:
                self.kill()
                raise TimeoutError(f"a publisher took more than {timeout_seconds:g} s for:\n{code}") from None
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}\nin:\n{code}")
        return answer["value"]

    def close(self) -> None:
        """Stop the process after the code that it runs."""
        self._child.close()

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()

    def __enter__(self) -> Self:
        """Use it until the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let it end."""
        self.close()


def run_command(
    project: InstalledProject,
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    output: Path,
    timeout_seconds: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a program of the project's environment, such as `["celery", …]`, without the time that imports take.

    Raises TimeoutError when it takes too long.
    """
    for stream in ("stdout", "stderr"):
        Path(f"{output}.{stream}").unlink(missing_ok=True)
    child = _Child(project, variables, output)
    try:
        status = child.ask({"command": list(command)}, timeout_seconds)["status"]
    except TimeoutError:
        child.kill()
        raise TimeoutError(f"{' '.join(command)} took more than {timeout_seconds:g} s") from None
    child.close()
    return subprocess.CompletedProcess(list(command), status, child.printed("stdout"), child.printed("stderr"))
