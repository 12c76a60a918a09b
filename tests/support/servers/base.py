"""The base class of all servers, with start, stop, kill and pause, and functions that wait for a condition."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import pytest

HOST = "127.0.0.1"

Value = TypeVar("Value")


def require(server_name: str, found: Value | None) -> Value:
    """Return `found`. If it is None, skip the test, or fail it if REQUIRE_SERVICES=1.

    A laptop may lack a server. Continuous integration sets REQUIRE_SERVICES, so that each test runs somewhere.
    """
    if found is not None:
        return found
    reason = f"{server_name} is not installed: nothing to test against; apt-get install {server_name}"
    if os.environ.get("REQUIRE_SERVICES", "") not in {"", "0"}:
        pytest.fail(f"{reason} (REQUIRE_SERVICES forbids skipping)")
    pytest.skip(reason)


def wait_until(
    condition: Callable[..., Any], deadline_seconds: float, what: str, *, longest_pause_seconds: float = 0.2
) -> Any:
    """Call `condition` until it is true, and give back its value.

    The pauses between two calls grow up to `longest_pause_seconds`: longer ones where each call costs much.

    Raises TimeoutError, which says `what` was awaited, after `deadline_seconds`.
    """
    end = time.monotonic() + deadline_seconds
    pause_seconds = 0.01
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {deadline_seconds:g} s in vain for: {what}")
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, longest_pause_seconds)
    return value


_taken_ports: set[int] = set()
_random = random.SystemRandom()  # a seeded generator gives parallel test processes the same ports


def free_port() -> int:
    """Choose a TCP port on which nothing listens, never the same one twice.

    Systems hand out ports from 32768 (Linux) or 49152 up to outgoing connections. Staying below keeps a port free
    while its server restarts.
    """
    while True:
        port = _random.randrange(20_000, 32_768)
        if port not in _taken_ports and not listens(port):
            _taken_ports.add(port)
            return port


def listens(port: int) -> bool:
    """Whether something accepts connections on this port. A paused server does."""
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex((HOST, port)) == 0


@dataclass(kw_only=True)
class Server:
    """A server on this machine, on ports of its own and with everything in one folder. A test may do anything to it."""

    name: str
    url: str
    answers: Callable[[], bool]
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    log: Path
    #: Where it runs; by default, where its log is.
    folder: Path | None = None
    start_seconds: float = 10
    stop_seconds: float = 10
    stop_signal: signal.Signals = signal.SIGTERM
    #: The folder with its data, where somebody may want to start without it.
    data: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    #: How often something was done to it. A client that connected before may hold a broken connection.
    changes: int = field(default=0, init=False)

    def start(self) -> None:
        """Start and wait until it answers.

        Raises RuntimeError with the end of its log when it ends or stays silent for `start_seconds`.
        """
        if self.process:
            raise RuntimeError(f"{self.name} is running already")
        self.changes += 1
        self._launch()
        try:
            wait_until(self._is_ready, self.start_seconds, f"an answer from {self.name}")
        except BaseException as error:
            self._end_now()
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"{error}{self._log_tail()}") from None
            raise

    def stop(self) -> None:
        """End it in the way that keeps its data. Does nothing when it doesn't run.

        Raises RuntimeError with the end of its log when it takes longer than `stop_seconds`; it is killed then.
        """
        if not self.process:
            return
        self.changes += 1
        self._signal_all(signal.SIGCONT)  # a paused process wouldn't see the next signal
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired as error:
            tail = self._log_tail()
            raise RuntimeError(f"{self.name} did not stop within {self.stop_seconds:g} s{tail}") from error
        finally:
            self._end_now()

    def restart(self) -> None:
        """Stop and start again: same URL, same folder."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End it at once, as a power cut does. `start()` brings it back, on the same URL."""
        self.changes += 1
        self._end_now()

    def pause(self) -> None:
        """Freeze it: connections stay open and new ones are accepted, but nothing answers."""
        self.changes += 1
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it continue after `pause()`."""
        self.changes += 1
        self._signal_all(signal.SIGCONT)

    def recover(self) -> None:
        """Have it run again, whatever a test did to it."""
        if self.process and self.process.poll() is None:
            self._signal_all(signal.SIGCONT)
        else:
            self._end_now()
            self.start()

    def start_afresh(self) -> None:
        """Have it run again without its data."""
        self.kill()
        if self.data:
            shutil.rmtree(self.data, ignore_errors=True)
        self.start()

    def __enter__(self) -> Self:
        """Use it until the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop it."""
        self.stop()

    def _launch(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder or self.log.parent,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, which then stop the server
            )

    def _is_ready(self) -> bool:
        if self.process and (status := self.process.poll()) is not None:
            raise RuntimeError(f"{self.name} ended with status {status}{self._log_tail()}")
        return self.answers()

    def _signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process that takes part in serving."""
        if self.process:
            # macOS says PermissionError about processes that have ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def _end_now(self) -> None:
        if self.process:
            self._signal_all(signal.SIGKILL)
            self.process.wait()
            self.process = None
            port = urlsplit(self.url).port or 0
            wait_until(lambda: not listens(port), self.stop_seconds, f"{self.name} to be gone")

    def _log_tail(self, lines: int = 100) -> str:
        if not self.log.is_file():
            return ""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join([f"; {self.log} ends:", *text.splitlines()[-lines:]])
