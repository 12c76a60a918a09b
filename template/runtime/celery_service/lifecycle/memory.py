"""Workers and the API leave what they have imported out of garbage collections.

A full collection looks at all of it, 125,000 objects or more. The main process of a busy worker
paused for 0.1 s each time, and a child copied the memory that it shares with its parent.
"""

import gc
from typing import Any

from celery import Celery
from celery.signals import worker_init


def install(app: Celery) -> None:
    """Do so in each worker of `app` that starts, before it forks its processes."""

    def freeze(sender: Any, **kwargs: object) -> None:
        if sender.app is app:
            leave_out_of_collections()

    worker_init.connect(freeze, weak=False)


def leave_out_of_collections() -> None:
    """Leave all objects out that there are: https://docs.python.org/3/library/gc.html#gc.freeze"""
    gc.collect()
    gc.freeze()
