"""A terminal in which a command runs and somebody types."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

CTRL_C = "\x03"


def _like_a_shell() -> None:
    # Ctrl-C is a signal to all processes whose controlling terminal this is.
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Tests that run in the background inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """Runs a command, with these variables and no others, until the end of the block."""

    def __init__(self, *command: str | Path, cwd: Path, env: Mapping[str, str], columns: int = 240) -> None:
        """Start it. Copier cuts messages off that are wider than so many columns."""
        self.fd, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **env},
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=_like_a_shell,
        )
        os.close(follower)
        self.shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.fd)

    def type(self, keys: str) -> None:
        """Press keys. What is expected next must be shown after this."""
        self.shown = ""
        os.write(self.fd, keys.encode())

    def expect(self, text: str, seconds: float = 30) -> str:
        """Wait until the text is there, and give all that has been shown since something was typed."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"waited {seconds} s in vain for {text!r} in:\n{self.shown}"
            if select.select([self.fd], [], [], left)[0]:
                shown = self._read()
                assert shown is not None, f"the command ended after:\n{self.shown}"
                self.shown += shown
        return self.shown

    def end(self, seconds: float = 30) -> int:
        """Wait until nothing runs in the terminal any more, and give the exit status of the command."""
        deadline = time.monotonic() + seconds
        while select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
            shown = self._read()
            if shown is None:
                return self.process.wait(seconds)
            self.shown += shown
        raise AssertionError(f"waited {seconds} s in vain for the end of:\n{self.shown}")

    def _read(self) -> str | None:
        """Give what was shown since the last time; None when no process has the terminal any more."""
        try:
            data = os.read(self.fd, 65536).decode(errors="replace")
        except OSError:  # how Linux says that the other side is closed
            return None
        return re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])", "", data)
