"""Are the processes of a service on this machine well? One line and the exit status tell:

    python -m celery_service.lifecycle.health my_service live|ready|beat

This imports nothing of Celery or the app, which would cost half a second each time. It looks at
files: each process keeps one, writes into it how it is, and holds a lock on it for as long as it
lives. See docs/dev/health.md.
"""

import contextlib
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Seconds from one sign of life to the next. They come from the loop that does the work.
INTERVAL = 2.0
#: Seconds without a sign after which a process counts as dead, unless HEALTH_MAX_SILENCE is set.
#: A loop waits for its servers, whose time-outs can add up to half of it.
MAX_SILENCE = 90.0

STARTING, READY, STOPPING = "starting", "ready", "stopping"
WAITING, STORING = "waiting for its broker", "waiting for the result store"

CHOICES = ("live", "ready", "beat")


class Sign:
    """How this process is, for others to see.

    Args:
        service: The name of the app, for services that share a machine.
        kind: What it is, such as "worker".

    Raises:
        OSError: Its file can't be written.
    """

    def __init__(self, service: str, kind: str) -> None:
        folder = _folder(service)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        _refuse_what_others_can_change(folder)
        for path in folder.glob(f"{kind}-*"):
            with contextlib.suppress(OSError), path.open("r+") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()  # Nobody holds it: its process was killed.
        self._process = os.getpid()
        draft = folder / f".{kind}-{self._process}"
        self._file = os.open(draft, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        self._state = ""
        self.show(STARTING)
        # It gets its name when it is complete, so nobody sees it unlocked.
        draft.rename(folder / f"{kind}-{self._process}")

    def show(self, state: str) -> None:
        """Give a sign of life. From threads and signal handlers, too; what stops, stays so."""
        if os.getpid() != self._process:
            return  # A process of the pool, which is forked from this one.
        if self._state != STOPPING:
            self._state = state
        # A worker goes on without: it is the probe that complains.
        with contextlib.suppress(OSError):
            os.pwrite(self._file, self._state.ljust(len(STORING)).encode(), 0)


def running(service: str, kind: str) -> Iterator[tuple[str, str, float]]:
    """Yield the name of each process, its state, and for how many seconds it has been silent.

    Don't call it in a process that has a sign: looking at its own file would drop the lock.

    Raises:
        PermissionError: The folder isn't this user's alone.
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
    """Say what is wrong with the processes of a kind; nothing when all are well.

    Raises:
        OSError: Their files can't be read.
        ValueError: HEALTH_MAX_SILENCE is no number of seconds.
    """
    longest = _max_silence()
    processes = list(running(service, kind))
    for name, state, silence in processes:
        # What stops has a deadline already, and does nothing else any more.
        if silence > longest and state != STOPPING:
            return f"{name} gave no sign of life for {silence:.0f} seconds"
        if must_be_ready and state != READY:
            return f"{name} is {state}"
    return "" if processes else f"no {kind} runs here, says {_folder(service)}"


def main(arguments: Sequence[str]) -> int:
    """Print how it is and return the exit status: 0 when all is well, else 1."""
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
    # Not `tempfile`: where this folder is full, it takes another, and the probe would look there.
    parent = os.environ.get("HEALTH_DIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108
    # One for each service and user, who may share a machine.
    return Path(parent) / f"{service}-{os.getuid()}"


def _refuse_what_others_can_change(folder: Path) -> None:
    # Anybody can make a folder in /tmp, or a link, under the name that we are going to use.
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
