"""Tasks that the behaviour tests add to a rendered project, by dropping this file into its `tasks/`.

Each writes what it does to a file, one line a step, so that a test sees what ran however it ended.
"""

import os
import signal
import time
from pathlib import Path

from celery import current_app


def note(path: str, line: str) -> None:
    """Append a line at once: writes of this size don't mix."""
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


@current_app.task(name="probe.work", default_retry_delay=1)
def work(path: str, key: str, seconds: float = 0) -> str:
    """Start, take some time, end."""
    note(path, f"start {key}")
    time.sleep(seconds)
    note(path, f"end {key}")
    return key


@current_app.task(name="probe.crash", default_retry_delay=0, max_retries=2)
def crash(path: str) -> None:
    """Die as the kernel kills a process that takes too much memory."""
    note(path, "start")
    os.kill(os.getpid(), signal.SIGKILL)
