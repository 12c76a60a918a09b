"""The memory of a worker is limited, and no task is lost by that."""

import pytest
import redis

from support.servers import wait_until
from support.service import Service


@pytest.fixture
def broker_name() -> str:
    """One broker is enough: it doesn't affect the processes and memory of a worker."""
    return "redis"


@pytest.mark.parametrize(
    ("tasks", "variables"), [(1001, {}), (2, {"CELERY_WORKER_MAX_MEMORY_PER_CHILD": "1"})], ids=["tasks", "memory"]
)
def test_processes_are_replaced(service: Service, tasks: int, variables: dict[str, str]) -> None:
    with service.worker(**variables) as worker:
        worker.wait_ready()
        before = worker.children()
        service.python(f"len(group(hello_world.s() for _ in range({tasks})).apply_async().get(timeout=50))")
        wait_until(lambda: len(set(worker.children()) - set(before)) == 1, 30, "a new process")


def test_tasks_with_a_countdown_do_not_fill_the_memory(service: Service) -> None:
    """On Redis, messages beyond the limit stay in the queue until others are due. RabbitMQ holds all of them."""
    with service.worker() as worker, redis.Redis.from_url(service.redis.url) as client:
        worker.wait_ready()
        service.python("for _ in range(1100): hello_world.apply_async(countdown=20)")
        wait_until(lambda: client.hlen("unacked") >= 1000, 30, "the worker to have taken what it may")
        with pytest.raises(TimeoutError):
            wait_until(lambda: client.llen("default") < 50, 5, "it to take more")
        wait_until(lambda: not client.llen("default") and not client.hlen("unacked"), 60, "all to have ended")
        assert worker.text().count("Hello World!") == 1100
