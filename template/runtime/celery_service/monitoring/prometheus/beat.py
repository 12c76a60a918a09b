"""The metrics of beat."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_service.monitoring.prometheus.broker import Servers
from celery_service.monitoring.prometheus.server import new_registry, serve
from celery_service.monitoring.prometheus.settings import Settings

#: Seconds for which the lag of a task that was sent late is shown, so that a scrape sees it.
SHOWN = 60.0


def set_up(service: Any, settings: Settings) -> None:
    """Serve the metrics of beat."""
    registry = new_registry()
    registry.register(Lag(service.scheduler))
    registry.register(Servers(service.app, {}))
    serve(registry, settings)


class Lag(Collector):
    """How late beat is: with the tasks that it sent in the last minute, and with its next look.

    Beat looks at its schedule, sends what is due, and says when it wants to look again. While the
    broker is away or a clock hangs, it doesn't look.
    """

    def __init__(self, scheduler: Any) -> None:
        self._next_look = time.monotonic()
        #: The lags of tasks, and when these were sent.
        self._sent: list[tuple[float, float]] = []
        self._tick, self._apply_async = scheduler.tick, scheduler.apply_async
        scheduler.tick = self._look
        scheduler.apply_async = self._send

    def _look(self, *args: Any, **options: Any) -> float:
        wait: float = self._tick(*args, **options)
        self._next_look = time.monotonic() + wait
        return wait

    def _send(self, entry: Any, *args: Any, **options: Any) -> Any:
        now = time.monotonic()
        self._sent = [each for each in self._sent if now - each[1] < SHOWN]
        with suppress(Exception):  # beat must not depend on this
            # Negative: the time that is left until the entry is due.
            lag = -entry.schedule.remaining_estimate(entry.last_run_at).total_seconds()
            self._sent.append((lag, now))
        return self._apply_async(entry, *args, **options)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        now = time.monotonic()
        lags = [lag for lag, when in self._sent if now - when < SHOWN]
        lag = GaugeMetricFamily(
            "celery_beat_lag_seconds", "Time by which beat is behind its schedule."
        )
        lag.add_metric([], max(0.0, now - self._next_look, *lags))
        yield lag
