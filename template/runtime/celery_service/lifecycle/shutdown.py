"""How a worker stops.

After SIGTERM, what runs has CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT seconds, less a margin; the worker
ends with the last task. What doesn't fit goes back to the broker, before a SIGKILL would make it
wait there. A second SIGTERM, or SIGQUIT, gives it back at once.

Celery has the parts: its warm shutdown (SIGTERM) waits for ever, its cold one (SIGQUIT) cancels.
https://docs.celeryq.dev/en/stable/userguide/workers.html#worker-shutdown
"""

import contextlib
import functools
import os
import signal
import threading
import time
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, worker_shutting_down

from celery_service.lifecycle import green

# What it takes to end the processes and to give their messages back; at most half of the time.
MARGIN = 5.0


def install(app: Celery) -> None:
    """Have each worker of `app` end within its grace period after one SIGTERM, and lose nothing."""
    # Celery sends it in a signal handler. A second signal may come while that holds the lock.
    worker_shutting_down.lock = threading.RLock()  # type: ignore[attr-defined]

    def set_up(instance: Any, **kwargs: object) -> None:
        if instance.app is app:
            _Shutdown(instance)

    celeryd_init.connect(set_up, weak=False)


class _Shutdown:
    """The one shutdown of a worker. All but its threads runs in signal handlers."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.grace: float = worker.app.conf.worker_soft_shutdown_timeout
        self.margin = min(MARGIN, self.grace / 2)
        self.counting = self.handing_back = False
        self.processes: list[Any] = []
        self.handed_back: list[Any] = []
        # Celery would sleep here for the whole timeout, even when the last task has long ended.
        worker.wait_for_soft_shutdown = self.before_cold_shutdown
        worker_shutting_down.connect(self.on_signal, weak=False)

    def on_signal(self, how: str, **_: object) -> None:
        """Start to count at the first signal, hand back at the second."""
        if how == "Warm" and not self.counting:
            self.counting = True
            green.start_system_thread(self.hand_back, after=self.grace - self.margin)
        elif how == "Warm":
            self.hand_back()

    def hand_back(self) -> None:
        """Begin the cold shutdown, once: Celery takes more of these signals as calls for haste."""
        if not self.handing_back:
            os.kill(os.getpid(), signal.SIGQUIT)

    def before_cold_shutdown(self) -> None:
        """Make sure that it ends; Celery then cancels what runs, and closes its connection."""
        self.handing_back = True
        # Now: Celery forgets them while it cancels.
        requests = list(self.worker.state.requests.values())
        self.handed_back = [each for each in requests if not each.acknowledged]
        if green.is_green():
            self.leave_green_threads()
            return
        pool = self.worker.pool
        # Cancelled tasks see SystemExit. What is still there after half of the margin, is killed.
        self.processes = list(getattr(pool._pool, "_pool", ()))
        green.start_system_thread(self.kill, after=self.margin / 2)
        # billiard can wait for ever for a lock of a child that was killed with it, as by a SIGTERM
        # to the whole process group. By then the messages are back with the broker.
        green.start_system_thread(os._exit, 0, after=self.margin + MARGIN)
        # A thread, since Redis may take longer than there is.
        wait = green.start_thread(self.forgive)
        if not pool.uses_semaphore and self.worker.state.active_requests:
            # These tasks can't be cancelled: they run in this process, so it has to end.
            wait(self.margin / 5)
            with contextlib.suppress(Exception):
                if self.worker.hub:
                    self.worker.hub.close()
                self.worker.on_stopped()
            os._exit(0)

    def forgive(self) -> None:
        """Have deliveries not count that end here: the tasks did nothing wrong."""
        # Imported here: publishers don't need it.
        from celery_service.dead_letters import poison

        poison.forgive(self.worker.app, self.handed_back)

    def leave_green_threads(self) -> None:
        """End without Celery, which would wait here, and acknowledge the tasks that it cancels."""
        nothing = {"task_consumer": None, "pool": None, "cancel_active_requests": lambda: None}
        vars(self.worker.consumer).update(nothing)
        self.worker.terminate = functools.partial(time.sleep, self.margin)
        green.start_thread(self.hand_back_and_exit)
        # A task that computes keeps that from running.
        green.start_system_thread(self.hand_back_while_blocked, after=0.5 * self.margin)
        green.start_system_thread(os._exit, 0, after=0.8 * self.margin)

    def hand_back_and_exit(self) -> None:
        """Do so in a green thread: a signal handler can't wait."""
        green.start_thread(self.forgive)(self.margin / 5)
        with contextlib.suppress(Exception):
            self.worker.consumer.hand_back(blocked=False)
        os._exit(0)

    def hand_back_while_blocked(self) -> None:
        """Do so in a thread of the system. Nobody else holds locks now: it is a task that runs."""
        with contextlib.suppress(Exception):
            self.worker.consumer.hand_back(blocked=True)
        self.forgive()
        os._exit(0)

    def kill(self) -> None:
        """End what still runs: somebody else gets its message next."""
        for process in self.processes:
            if process._is_alive():
                os.kill(process.pid, signal.SIGKILL)
