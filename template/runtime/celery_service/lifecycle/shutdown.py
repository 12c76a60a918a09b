"""How a worker stops.

After SIGTERM, running tasks have CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT seconds to end, less a margin.
The worker exits when the last task ends. Otherwise it gives unfinished messages back to the broker,
so that they needn't wait there after a SIGKILL. A second SIGTERM, or SIGQUIT, gives them back at
once.

This combines two shutdowns of Celery: the warm one (SIGTERM) waits for tasks without a limit, the
cold one (SIGQUIT) cancels them.
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

# Seconds to end the processes and to give their messages back, at most half of the grace period.
MARGIN = 5.0


def install(app: Celery) -> None:
    """Make workers of `app` exit within the grace period after SIGTERM without losing messages."""
    # Celery sends this in a signal handler. A second signal may arrive while it holds the lock.
    worker_shutting_down.lock = threading.RLock()  # type: ignore[attr-defined]

    def set_up(instance: Any, **kwargs: object) -> None:
        if instance.app is app:
            _Shutdown(instance)

    celeryd_init.connect(set_up, weak=False)


class _Shutdown:
    """The shutdown of a worker. The methods run in signal handlers, or in threads they start."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.grace: float = worker.app.conf.worker_soft_shutdown_timeout
        self.margin = min(MARGIN, self.grace / 2)
        self.counting = self.handing_back = False
        self.processes: list[Any] = []
        self.handed_back: list[Any] = []
        # Celery would sleep here for the whole timeout, even if the last task has already ended.
        worker.wait_for_soft_shutdown = self.before_cold_shutdown
        worker_shutting_down.connect(self.on_signal, weak=False)

    def on_signal(self, how: str, **_: object) -> None:
        """Start the grace period at the first signal, and give messages back at the second."""
        if how == "Warm" and not self.counting:
            self.counting = True
            green.start_system_thread(self.hand_back, after=self.grace - self.margin)
        elif how == "Warm":
            self.hand_back()

    def hand_back(self) -> None:
        """Begin the cold shutdown, once: after further SIGQUITs, Celery exits by force."""
        if not self.handing_back:
            os.kill(os.getpid(), signal.SIGQUIT)

    def before_cold_shutdown(self) -> None:
        """Limit the time of the shutdown. Celery then cancels the tasks and closes connections."""
        self.handing_back = True
        # Read the requests now, because Celery removes them while it cancels.
        requests = list(self.worker.state.requests.values())
        self.handed_back = [each for each in requests if not each.acknowledged]
        if green.is_green():
            self.leave_green_threads()
            return
        pool = self.worker.pool
        # Cancelled tasks get SystemExit. Processes that run after half of the margin are killed.
        self.processes = list(getattr(pool._pool, "_pool", ()))
        green.start_system_thread(self.kill, after=self.margin / 2)
        # billiard can wait for ever for a lock if a child was killed that held it, for example by a
        # SIGTERM to the process group. By then, the messages are back with the broker.
        green.start_system_thread(os._exit, 0, after=self.margin + MARGIN)
        # Use a thread, because Redis may take longer than the time that is left.
        wait = green.start_thread(self.forgive)
        if not pool.uses_semaphore and self.worker.state.active_requests:
            # These tasks run in this process and can't be cancelled, so the process has to exit.
            wait(self.margin / 5)
            with contextlib.suppress(Exception):
                if self.worker.hub:
                    self.worker.hub.close()
                self.worker.on_stopped()
            os._exit(0)

    def forgive(self) -> None:
        """Uncount the deliveries that end here, because the tasks have not killed a process."""
        # Imported here: publishers don't need it.
        from celery_service.dead_letters import poison

        poison.forgive(self.worker.app, self.handed_back)

    def leave_green_threads(self) -> None:
        """Exit without Celery's shutdown, which would wait, and acknowledge cancelled tasks."""
        nothing = {"task_consumer": None, "pool": None, "cancel_active_requests": lambda: None}
        vars(self.worker.consumer).update(nothing)
        self.worker.terminate = functools.partial(time.sleep, self.margin)
        green.start_thread(self.hand_back_and_exit)
        # The green thread doesn't run while a task computes.
        green.start_system_thread(self.hand_back_while_blocked, after=0.5 * self.margin)
        green.start_system_thread(os._exit, 0, after=0.8 * self.margin)

    def hand_back_and_exit(self) -> None:
        """Give messages back in a green thread, because a signal handler can't wait."""
        green.start_thread(self.forgive)(self.margin / 5)
        with contextlib.suppress(Exception):
            self.worker.consumer.hand_back(blocked=False)
        os._exit(0)

    def hand_back_while_blocked(self) -> None:
        """Give messages back in a system thread. The blocking task computes and holds no locks."""
        with contextlib.suppress(Exception):
            self.worker.consumer.hand_back(blocked=True)
        self.forgive()
        os._exit(0)

    def kill(self) -> None:
        """Kill processes that still run: another worker gets their messages next."""
        for process in self.processes:
            if process._is_alive():
                os.kill(process.pid, signal.SIGKILL)
