"""How workers and beat show that they are well: they keep the files that health.py looks at."""

import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.signals import beat_init, celeryd_init, worker_shutting_down

from celery_service.lifecycle.health import (
    INTERVAL,
    READY,
    STOPPING,
    STORING,
    WAITING,
    Sign,
)
from celery_service.lifecycle.notify import Notifier


def install(app: Celery) -> None:
    """Have each worker of `app` and its beat say how it is, for as long as it runs."""

    def set_up_worker(instance: Any, **kwargs: object) -> None:
        if instance.app is app:
            app.steps["consumer"].add(_Heartbeat)

    def set_up_beat(sender: Any, **kwargs: object) -> None:
        if sender.app is app:
            _show_ticks(sender.scheduler)

    celeryd_init.connect(set_up_worker, weak=False)
    beat_init.connect(set_up_beat, weak=False)


def _stop_if_told() -> None:
    """End a wait of the event loop after SIGTERM: within an event, it would outlast the outage."""
    from celery.worker.state import maybe_shutdown

    if _is_main_thread():
        maybe_shutdown()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _sign(app: Celery, kind: str) -> Sign:
    try:
        sign = Sign(app.main, kind)
    except OSError as error:
        raise SystemExit(f"{kind}: {error}; HEALTH_DIR may name another place.") from None
    # Beat has nothing to finish.
    grace = app.conf.worker_soft_shutdown_timeout if kind == "worker" else 0.0
    sign.on_show = Notifier(grace).show
    return sign


class _Heartbeat(bootsteps.StartStopStep):
    """The sign of a worker. Celery starts this with each connection, and stops it with its end."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        # Imported here: publishers don't need them.
        from celery.concurrency.solo import TaskPool
        from celery.utils.timer2 import Timer

        super().__init__(parent, **options)
        self.sign = _sign(parent.app, "worker")
        # The timer of the event loop. That of `solo` stands still while a task runs: a thread then.
        self.timer = Timer() if isinstance(parent.pool, TaskPool) else parent.timer
        self.beats: Any = None
        self.ensure_connected = parent.ensure_connected
        parent.ensure_connected = self.connect
        # It waits for the result store, too: to write down what a pool's process no longer can.
        backend = parent.app.backend
        self.sleep = backend._sleep
        backend._sleep = self.wait
        worker_shutting_down.connect(self.on_signal)

    def start(self, _parent: Any) -> None:
        """Be ready from now on."""
        self.beats = self.timer.call_repeatedly(INTERVAL, self.sign.show, (READY,))

    def stop(self, parent: Any) -> None:
        """Be ready no more."""
        if self.beats:
            self.timer.cancel(self.beats)
        lost = parent.blueprint.human_state() == "running"
        self.sign.show(WAITING if lost else STOPPING)

    def connect(self, connection: Any) -> Any:
        """Prepare a connection, of which there is one for tasks and one for events."""
        _show_waits(connection, self.sign, _stop_if_told)
        return self.ensure_connected(connection)

    def wait(self, seconds: float) -> None:
        """Give signs between attempts to store a result; in threads that run tasks, it needn't."""
        if _is_main_thread():
            self.sign.show(STORING)
        self.sleep(seconds)

    def on_signal(self, **_: object) -> None:
        """Say so at once, rather than when the event loop notices."""
        self.sign.show(STOPPING)


def _show_ticks(scheduler: Any) -> None:
    sign = _sign(scheduler.app, "beat")
    tick = scheduler.tick

    def tick_and_show() -> float:
        sign.show(READY)
        # Beat would sleep until something is due, for up to five minutes.
        interval: float = tick()
        return min(interval, INTERVAL)

    scheduler.tick = tick_and_show
    _show_waits(scheduler.connection, sign, lambda: None)


def _show_waits(connection: Any, sign: Sign, meanwhile: Callable[[], None]) -> None:
    """Give signs while a connection waits for its broker, which can be in the midst of anything."""
    ensure_connection = connection._ensure_connection

    def show_waits(*args: Any, callback: Callable[[], None] = meanwhile, **options: Any) -> Any:
        def each_second() -> None:
            sign.show(WAITING)
            callback()

        return ensure_connection(*args, callback=each_second, **options)

    connection._ensure_connection = show_waits
