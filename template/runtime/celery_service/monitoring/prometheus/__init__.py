"""Metrics of workers and of beat, which Prometheus collects from them: see docs/dev/metrics.md.

A worker counts in its main process, which sees the start and the end of each task, whatever happens
to the processes that run the tasks. So nothing is lost when these are replaced or killed.

requests.py counts, broker.py looks at the queues and the dead letters, beat.py at the schedule, and
server.py answers Prometheus.
"""

from typing import Any

from celery import Celery
from celery.signals import beat_init, celeryd_init

from celery_service.brokers.times import write_times
from celery_service.monitoring.prometheus.settings import settings


def install(app: Celery) -> None:
    """Make publishers write the time into messages, and workers and beat of `app` serve metrics."""
    # A worker with an embedded beat serves the metrics of the worker. Beat runs in a process that
    # the worker forks.
    is_worker = False

    def set_up_worker(instance: Any, **_: object) -> None:
        nonlocal is_worker
        if instance.app is app:
            # Imported here: publishers don't need it.
            from celery_service.monitoring.prometheus import worker

            is_worker = True
            worker.set_up(instance, settings)

    def set_up_beat(sender: Any, **_: object) -> None:
        if sender.app is app and not is_worker:
            from celery_service.monitoring.prometheus import beat

            beat.set_up(sender, settings)

    write_times()
    celeryd_init.connect(set_up_worker, weak=False)
    beat_init.connect(set_up_beat, weak=False)
