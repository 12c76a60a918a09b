"""The metrics of workers and of beat."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ServiceOn
from support.distribution import on_one_worker
from support.metrics import Scrape, address, listeners, scrape
from support.project import InstalledProject, Worker
from support.servers import wait_until
from support.service import Service, monitored_project

STATES = ("received", "started", "succeeded", "failed", "retried", "rejected", "revoked")


@pytest.fixture(scope="session")
def project() -> InstalledProject:
    """The project with metrics."""
    return monitored_project("prometheus")


def counts(found: Scrape, **labels: str) -> dict[str, float]:
    """Return the numbers of tasks that aren't 0."""
    numbers = {state: found.sum(f"celery_task_{state}_total", **labels) for state in STATES}
    return {state: number for state, number in numbers.items() if number}


@pytest.mark.parametrize(("broker_name", "number"), [("redis", 2000), ("rabbitmq", 300)])
def test_counts_are_right_when_children_are_replaced_and_killed(
    broker_name: str, number: int, service: Service
) -> None:
    arguments = ("--concurrency", "2", "--max-tasks-per-child", "50")
    with service.worker("worker", *arguments, METRICS_PORT="0", CELERY_WORKER_LOST_WAIT="0.5") as worker:
        url = address(worker)
        worker.wait_ready()
        first = worker.children()
        service.python(f"for key in range({number}): counted.work.delay(notes, key)", METRICS_PORT="0")

        def has_counted() -> bool:
            return scrape(url).sum("celery_task_succeeded_total", name="counted.work") >= number

        wait_until(has_counted, 120, f"{number} tasks")
        found = scrape(url)
        killed = number // 100
        assert sorted(service.lines()) == sorted(f"ran {key}" for key in range(number))
        assert counts(found, name="counted.work") == {
            "received": number + killed,
            "started": number + killed,
            "succeeded": number,
            "rejected": killed,  # delivered again
        }
        assert found.sum("celery_task_runtime_seconds_count", name="counted.work") == number
        assert found.sum("celery_task_wait_seconds_count", name="counted.work") == number + killed
        assert found.values("celery_task_started_total", "queue_name") >= {"default"}
        assert not set(first) & set(worker.children())
        port = int(url.split(":")[2].split("/")[0])
        assert port in listeners(worker.pid)
        assert not any(port in listeners(child) for child in worker.children())
