"""Writes the output of tasks at once: each line when it is complete, the rest when the task ends.

If the output is a file or a pipe, Python buffers 8 KiB. The buffered output would be lost when a
process of the pool is killed or replaced.
"""

import io
import sys

from celery.signals import beat_init, celeryd_init, task_postrun, worker_process_init


def install() -> None:
    """Change the buffering in beat, in workers and in the processes of their pools."""
    # A process that is spawned instead of forked has its own `sys.stdout`.
    for signal in (celeryd_init, worker_process_init, beat_init):
        signal.connect(_write_lines)
    task_postrun.connect(_write_the_rest)


def _write_lines(**kwargs: object) -> None:
    # Don't turn the buffer off: Python would write a line and its line break separately, and lines
    # of two processes would mix.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _write_the_rest(**kwargs: object) -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
