"""The pools gevent and eventlet: they replace Python's threads by green threads, which take turns.

A green thread runs only while the others wait. A task that computes stops all of them, and the
event loop with them. What must go on meanwhile runs in a thread of the system. It may only use what
is its own: sockets and locks are green, too, and where it waits for one of another thread both can
hang. So it doesn't log, and uses nothing of Kombu, which has a lock for each cached property.
"""

import _thread
import importlib
import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.signals import celeryd_after_setup, celeryd_init, worker_init
from kombu.utils.compat import detect_environment

POOLS = ("gevent", "eventlet")
#: More connections than a worker has tasks. redis-py would allow 100.
NO_LIMIT = 1_000_000

#: What waits until a thread has ended, for so many seconds at most.
Wait = Callable[[float], None]

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
                "the pool eventlet enforces no time limits: a task that hangs holds its place for "
                "ever; eventlet is deprecated, use --pool=gevent or threads"
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


def start_thread(function: Callable[..., object], *args: object) -> Wait:
    """Start a thread, green if threads are, without waiting for it: in signal handlers, too."""
    return _start(_thread.start_new_thread, function, args)


def start_system_thread(function: Callable[..., object], *args: object, after: float = 0.0) -> Wait:
    """Start a thread of the system, which calls the function `after` so many seconds."""
    sleep, start_new_thread = _original("time", "sleep"), _original("_thread", "start_new_thread")

    def run() -> None:
        sleep(after)
        function(*args)
        if detect_environment() == "gevent":
            # Each thread that has used sockets has a hub, which mustn't outlive the interpreter.
            importlib.import_module("gevent").get_hub().destroy()

    return _start(start_new_thread, run, ())


def _start(
    start_new_thread: Callable[..., object], function: Callable[..., object], args: Any
) -> Wait:
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

    start_new_thread(run, ())
    return wait


def _original(module: str, name: str) -> Any:
    """Return a function of Python as it was before a green pool has replaced it."""
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
