"""The metrics of a worker."""

from collections.abc import Iterator
from typing import Any

from celery import bootsteps
from celery.signals import worker_init
from celery.worker import state
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_service.monitoring.prometheus.broker import Servers
from celery_service.monitoring.prometheus.requests import Tasks
from celery_service.monitoring.prometheus.server import new_registry, serve
from celery_service.monitoring.prometheus.settings import Settings
from celery_service.observability.signals import leases_lost


def set_up(worker: Any, settings: Settings) -> None:
    """Make a worker count, and serve its metrics when its pool has started."""
    app = worker.app
    registry = new_registry()
    tasks = Tasks(app, worker.hostname, registry)
    itself = Worker(worker, registry)
    registry.register(Servers(app, tasks.newest))

    def observe_tasks(sender: Any, **_: object) -> None:
        if sender is worker:
            for task in app.tasks.values():
                tasks.observe(task)

    class Serve(bootsteps.StartStopStep):
        """Serves the metrics, until the process ends: the last tasks count, too."""

        requires = ("celery.worker.components:Pool",)

        def start(self, _parent: Any) -> None:
            serve(registry, settings)

    class Consumes(bootsteps.StartStopStep):
        """Tells whether the worker consumes. Celery starts this with each connection."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            itself.consumer = parent

        def stop(self, _parent: Any) -> None:
            itself.consumer = None

    worker_init.connect(observe_tasks, weak=False)
    app.steps["worker"].add(Serve)
    app.steps["consumer"].add(Consumes)


class Worker(Collector):
    """What a worker does at the moment."""

    def __init__(self, worker: Any, registry: CollectorRegistry) -> None:
        self._worker = worker
        #: The consumer, while it is connected.
        self.consumer: Any = None
        # Plain numbers: the thread that renews leases is a system thread also in gevent, where it
        # can't use locks.
        self._leases_lost = 0
        self._leases: Any = None
        if worker.app.connection_for_read().transport.driver_type == "redis":
            from celery_service.brokers.redis.lease import leases

            self._leases = leases
            leases_lost.connect(self._on_leases_lost, weak=False)
        registry.register(self)

    def _on_leases_lost(self, count: int, **_: object) -> None:
        self._leases_lost += count

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        hostname, consumer = self._worker.hostname, self.consumer
        up = GaugeMetricFamily(
            "celery_worker_up", "Whether the worker consumes messages.", labels=["hostname"]
        )
        up.add_metric([hostname], float(consumer is not None))
        yield up
        active = GaugeMetricFamily(
            "celery_worker_tasks_active", "Tasks that run at the moment.", labels=["hostname"]
        )
        active.add_metric([hostname], len(state.active_requests))
        yield active
        queues = GaugeMetricFamily(
            "celery_worker_queues",
            "1 for each queue that the worker consumes.",
            labels=["hostname", "queue_name"],
        )
        for queue in tuple(self._worker.app.amqp.queues.consume_from) if consumer else ():
            queues.add_metric([hostname, queue], 1)
        yield queues
        if self._leases:
            held = GaugeMetricFamily(
                "celery_leases_held", "Messages that the worker holds.", labels=["hostname"]
            )
            held.add_metric([hostname], self._leases.held)
            yield held
            lost = CounterMetricFamily(
                "celery_leases_lost",
                "Messages that the worker lost to others while it ran them.",
                labels=["hostname"],
            )
            lost.add_metric([hostname], self._leases_lost)
            yield lost
