"""The pools gevent and eventlet. They replace Python's threads with green threads.

A green thread runs only while the others wait. A task that computes blocks all of them, including
the event loop. Work that must go on in the meantime runs in a system thread. Such a thread must not
share sockets or locks with other threads: they are green, too, and a system thread that waits for
one can hang together with its holder. So it doesn't log, and it doesn't use Kombu, which has a lock
for each cached property.
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
#: A limit of connections that no worker reaches. The default of redis-py is 100.
NO_LIMIT = 1_000_000

#: A function that waits until a thread has ended, but at most for the given number of seconds.
Wait = Callable[[float], None]

logger = logging.getLogger(__name__)


def install(app: Celery) -> None:
    """Make workers of `app` share connections among green threads, and warn of their limits."""

    def set_up(instance: Any, **_: object) -> None:
        # Each green thread runs one task. By default, Celery gives each thread its own result
        # backend, whose connections stay open until they are garbage-collected.
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
    """Start a thread without waiting, so you can call this in signal handlers.

    In gevent and eventlet, it is a green thread.
    """
    return _start(_thread.start_new_thread, function, args)


def start_system_thread(function: Callable[..., object], *args: object, after: float = 0.0) -> Wait:
    """Start a system thread, which calls the function after `after` seconds."""
    sleep, start_new_thread = _original("time", "sleep"), _original("_thread", "start_new_thread")

    def run() -> None:
        sleep(after)
        function(*args)
        if detect_environment() == "gevent":
            # A thread that has used sockets has a hub. Destroy it before the interpreter exits.
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
    """Return a function of Python that gevent or eventlet has replaced."""
    environment = detect_environment()
    if environment == "gevent":
        return importlib.import_module("gevent.monkey").get_original(module, name)
    if environment == "eventlet":
        return getattr(importlib.import_module("eventlet.patcher").original(module), name)
    return getattr(importlib.import_module(module), name)


def _refuse_without_patches(pool: str) -> None:
    """Stop a worker if its pool needs green threads and the process has none.

    Raises:
        SystemExit: Python's threads and sockets aren't replaced, so tasks would block each other.
    """
    if pool in POOLS and detect_environment() != pool:
        raise SystemExit(
            f"The pool {pool} must be named on the command line, as --pool={pool} or -P {pool}: "
            "Celery prepares the process for it before it reads settings."
        )
