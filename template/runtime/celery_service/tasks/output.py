"""What tasks print is seen as on a terminal: a line at once, an unfinished one when its task ends.

Into a file or a pipe Python writes 8 KiB at a time. A process of the pool that is killed or
replaced would take what tasks have printed with it.
"""

import io
import sys

from celery.signals import beat_init, celeryd_init, task_postrun, worker_process_init


def install() -> None:
    """Have the processes of workers, and beat, write what is printed."""
    # A process that is spawned instead of forked has a standard output of its own.
    for signal in (celeryd_init, worker_process_init, beat_init):
        signal.connect(_write_lines)
    task_postrun.connect(_write_the_rest)


def _write_lines(**kwargs: object) -> None:
    # Not without any buffer: Python would write a line and its end one after the other, and lines
    # of two processes would mix.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _write_the_rest(**kwargs: object) -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
