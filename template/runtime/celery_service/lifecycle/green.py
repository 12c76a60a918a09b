"""The pools gevent and eventlet: they replace Python's threads by green threads, which take turns.

A green thread runs only while the others wait. A task that computes stops all of them, and the
event loop with them. What must go on meanwhile runs in a thread of the system. It doesn't share
connections with green threads, and it doesn't log: sockets and locks are green as well.
"""

import _thread
import importlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.signals import celeryd_after_setup, celeryd_init, worker_init
from kombu.utils.compat import detect_environment

POOLS = ("gevent", "eventlet")
#: More connections than a worker has tasks. redis-py would allow 100.
NO_LIMIT = 1_000_000

logger = logging.getLogger(__name__)


def install(app: Celery) -> None:
    """Have each worker of `app` share connections among green threads, and say what they can't."""

    def set_up(instance: Any, **_: object) -> None:
        # Each green thread is one task. Celery would give each a result backend of its own, whose
        # connections stay open until the garbage collector finds them.
        if instance.app is app and is_green():
            limit = app.conf.redis_max_connections or NO_LIMIT
            app.conf.update(result_backend_thread_safe=True, redis_max_connections=limit)
            app.Task.Request = "celery_service.lifecycle.green_request:Request"

    def refuse(sender: Any, **_: object) -> None:
        if sender.app is app:
            _refuse_without_patches(pool_of(sender))

    def warn(instance: Any, **_: object) -> None:
        if instance.app is app and pool_of(instance) == "eventlet":
            logger.warning(
                "the pool eventlet enforces no time limits, and on Redis a task that computes for "
                "longer than visibility_timeout runs twice; eventlet is deprecated, use "
                "--pool=gevent or threads"
            )

    celeryd_init.connect(set_up, weak=False)
    worker_init.connect(refuse, weak=False)
    celeryd_after_setup.connect(warn, weak=False)


def is_green() -> bool:
    """Tell whether the threads of this process are green."""
    return bool(detect_environment() in POOLS)


def pool_of(worker: Any) -> str:
    """Return the name of the pool of a worker, such as "gevent"."""
    pool = worker.pool_cls if isinstance(worker.pool_cls, str) else worker.pool_cls.__module__
    return str(pool).rpartition(".")[2].partition(":")[0]


def start_thread(function: Callable[..., object], *args: object) -> Callable[[float], None]:
    """Start a thread that a task can't stop, without waiting. It ends with the process.

    With eventlet it is a green thread all the same: where a thread of the system and a green one
    want the same lock, eventlet hangs, and Kombu has many locks.

    Returns:
        What waits until the function has ended, for so many seconds at most.
    """
    ended = False

    def run() -> None:
        nonlocal ended
        try:
            function(*args)
        finally:
            ended = True

    def wait(seconds: float) -> None:
        until = time.monotonic() + seconds
        while not ended and time.monotonic() < until:
            time.sleep(0.01)

    if detect_environment() == "eventlet":
        _thread.start_new_thread(run, ())
    else:
        _start_of_the_system(run)
    return wait


def start_timer(seconds: float, function: Callable[..., object], *args: object) -> None:
    """Call a function after so many seconds, from a thread of the system.

    Args:
        seconds: How long to wait.
        function: What to call: it must not use locks, directly or indirectly.
        args: Its arguments.
    """
    sleep = _original("time", "sleep")

    def run() -> None:
        sleep(seconds)
        function(*args)

    _start_of_the_system(run)


def _start_of_the_system(run: Callable[[], None]) -> None:
    if is_green():
        _original("_thread", "start_new_thread")(run, ())
    else:
        threading.Thread(target=run, daemon=True).start()


def _original(module: str, name: str) -> Any:
    """Return a function of Python's as it was before a green pool has replaced it."""
    environment = detect_environment()
    if environment == "gevent":
        return importlib.import_module("gevent.monkey").get_original(module, name)
    if environment == "eventlet":
        return getattr(importlib.import_module("eventlet.patcher").original(module), name)
    return getattr(importlib.import_module(module), name)


def _refuse_without_patches(pool: str) -> None:
    """Stop a worker whose tasks would block each other.

    Raises:
        SystemExit: The pool is green and the process isn't.
    """
    if pool in POOLS and detect_environment() != pool:
        raise SystemExit(
            f"The pool {pool} must be named on the command line, as --pool={pool} or -P {pool}: "
            "Celery prepares the process for it before it reads settings."
        )
