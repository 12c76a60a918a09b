"""The health check of the processes of a service on this machine. It prints one line:

    python -m celery_service.lifecycle.health my_service live|ready|beat

It doesn't import Celery or the app, because that takes half a second. It reads files instead: each
process has a file, writes its state into it, and holds a lock on it while it runs. See
docs/dev/health.md.
"""

import contextlib
import fcntl
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

#: Seconds between two signs of life. The event loop that does the work sends them.
INTERVAL = 2.0
#: A process counts as dead after so many seconds without a sign of life, unless HEALTH_MAX_SILENCE
#: is set. An event loop waits for servers, and their timeouts can add up to half of this.
MAX_SILENCE = 90.0

STARTING, READY, STOPPING = "starting", "ready", "stopping"
WAITING, STORING = "waiting for its broker", "waiting for the result store"

CHOICES = ("live", "ready", "beat")


class Sign:
    """The file with the state of this process, which health checks read.

    Args:
        service: The name of the app, because several services may share a machine.
        kind: The kind of process: "worker" or "beat".

    Raises:
        OSError: The file can't be written.
    """

    def __init__(self, service: str, kind: str) -> None:
        folder = _folder(service)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        _refuse_what_others_can_change(folder)
        for path in folder.glob(f"{kind}-*"):
            with contextlib.suppress(OSError), path.open("r+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()  # Nobody holds the lock: the process was killed.
        #: Called with each state that is shown.
        self.on_show: Callable[[str], None] = lambda _: None
        self._process = os.getpid()
        draft = folder / f".{kind}-{self._process}"
        self._file = os.open(draft, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        self._state = ""
        self.show(STARTING)
        # Rename the file when it is locked, so that no health check finds it unlocked.
        draft.rename(folder / f"{kind}-{self._process}")

    def show(self, state: str) -> None:
        """Write the state, as a sign of life. Threads and signal handlers may call this.

        After STOPPING, the state doesn't change any more.
        """
        if os.getpid() != self._process:
            return  # This is a process of the pool, forked from the worker.
        if self._state != STOPPING:
            self._state = state
        # A worker goes on if this fails. Its health check will fail.
        with contextlib.suppress(OSError):
            os.pwrite(self._file, self._state.ljust(len(STORING)).encode(), 0)
        self.on_show(self._state)


def running(service: str, kind: str) -> Iterator[tuple[str, str, float]]:
    """Yield the name of each process, its state, and for how many seconds it has been silent.

    Don't call this in a process that has a `Sign`: closing its own file would release the lock.

    Raises:
        PermissionError: Other users can change the folder.
    """
    folder = _folder(service)
    if not folder.exists():
        return
    _refuse_what_others_can_change(folder)
    for path in sorted(folder.glob(f"{kind}-*")):
        with contextlib.suppress(FileNotFoundError), path.open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                written = os.fstat(file.fileno()).st_mtime
                yield path.name, file.read().strip(), time.time() - written


def problem(service: str, kind: str, *, must_be_ready: bool = False) -> str:
    """Return the first problem of the processes of a kind, or "" if all are healthy.

    Raises:
        OSError: Their files can't be read.
        ValueError: HEALTH_MAX_SILENCE isn't a number of seconds above 0.
    """
    longest = _max_silence()
    processes = list(running(service, kind))
    for name, state, silence in processes:
        # A process that stops has a deadline already, and gives no signs of life any more.
        if silence > longest and state != STOPPING:
            return f"{name} gave no sign of life for {silence:.0f} seconds"
        if must_be_ready and state != READY:
            return f"{name} is {state}"
    return "" if processes else f"no {kind} runs here: no file in {_folder(service)}"


def main(arguments: Sequence[str]) -> int:
    """Print one line and return the exit status: 0 if all is well, else 1."""
    service, what = arguments if len(arguments) == 2 else ("", "")
    if not service or what not in CHOICES:
        print(f"usage: python -m celery_service.lifecycle.health SERVICE {'|'.join(CHOICES)}")
        return 1
    adjective = "ready" if what == "ready" else "alive"
    kind = "beat" if what == "beat" else "worker"
    try:
        wrong = problem(service, kind, must_be_ready=what == "ready")
    except (OSError, ValueError) as error:
        wrong = str(error)
    print(f"not {adjective}: {wrong}" if wrong else adjective)
    return 1 if wrong else 0


def _folder(service: str) -> Path:
    # `tempfile` would choose another folder if this one is full, and the probe would look there.
    parent = os.environ.get("HEALTH_DIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    # A folder for each service and user, because they may share a machine.
    return Path(parent) / f"{service}-{os.getuid()}"


def _refuse_what_others_can_change(folder: Path) -> None:
    # Any user can create a folder or a link in /tmp with the name that we use.
    found = folder.lstat()
    ours = found.st_uid == os.getuid() and not found.st_mode & 0o077
    if not stat.S_ISDIR(found.st_mode) or not ours:
        raise PermissionError(f"{folder} must be a folder of user {os.getuid()} with mode 0700")


def _max_silence() -> float:
    text = os.environ.get("HEALTH_MAX_SILENCE") or str(MAX_SILENCE)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise ValueError(f"HEALTH_MAX_SILENCE is {text!r}; it must be a number of seconds above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
