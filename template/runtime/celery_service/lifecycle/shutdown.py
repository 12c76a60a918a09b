"""How a worker stops.

After SIGTERM, what runs has CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT seconds, less a margin; the worker
ends with the last task. What doesn't fit goes back to the broker, before a SIGKILL would make it
wait there. A second SIGTERM, or SIGQUIT, gives it back at once.

Celery has the parts: its warm shutdown (SIGTERM) waits for ever, its cold one (SIGQUIT) cancels.
https://docs.celeryq.dev/en/stable/userguide/workers.html#worker-shutdown
"""

import contextlib
import os
import signal
import threading
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, worker_shutting_down

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
    """The one shutdown of a worker. All but the timers runs in signal handlers."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        grace: float = worker.app.conf.worker_soft_shutdown_timeout
        self.margin = min(MARGIN, grace / 2)
        self.deadline = threading.Timer(grace - self.margin, self.hand_back)
        self.killer = threading.Timer(self.margin / 2, self.kill)
        self.deadline.daemon = self.killer.daemon = True
        self.processes: list[Any] = []
        # Celery would sleep here for the whole timeout, even when the last task has long ended.
        worker.wait_for_soft_shutdown = self.before_cold_shutdown
        worker_shutting_down.connect(self.on_signal, weak=False)

    def on_signal(self, how: str, **_: object) -> None:
        """Start to count at the first signal, hand back at the second."""
        if how == "Warm" and self.deadline.ident is None:
            self.deadline.start()
        elif how == "Warm":
            self.hand_back()

    def hand_back(self) -> None:
        """Begin the cold shutdown, once: Celery takes more of these signals as calls for haste."""
        if self.killer.ident is None:
            os.kill(os.getpid(), signal.SIGQUIT)

    def before_cold_shutdown(self) -> None:
        """Make sure that it ends; Celery then cancels what runs, and closes its connection."""
        # Imported here: publishers don't need it.
        from celery.worker import state

        from celery_service.dead_letters import poison

        pool = self.worker.pool
        # Cancelled tasks see SystemExit. What is still there after half of the margin, is killed.
        self.processes = list(getattr(pool._pool, "_pool", ()))
        self.killer.start()
        # They did nothing wrong. A thread, since Redis may take longer than there is.
        handed_back = [each for each in state.requests.values() if not each.acknowledged]
        parts = (self.worker.app, handed_back)
        forgiving = threading.Thread(target=poison.forgive, args=parts, daemon=True)
        forgiving.start()
        if not pool.uses_semaphore and state.active_requests:
            # These tasks can't be cancelled: they run in this process, so it has to end.
            forgiving.join(self.margin / 5)
            with contextlib.suppress(Exception):
                if self.worker.hub:
                    self.worker.hub.close()
                self.worker.on_stopped()
            os._exit(0)

    def kill(self) -> None:
        """End what still runs: somebody else gets its message next."""
        for process in self.processes:
            if process._is_alive():
                os.kill(process.pid, signal.SIGKILL)
