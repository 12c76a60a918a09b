"""A project for each broker, with real servers to run its real workers on."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from amqp.exceptions import NotFound

from support.project import InstalledProject
from support.servers import start_rabbitmq, start_redis
from support.service import Service, install_with_tasks

QUEUES = ("high_priority", "default", "low_priority", "dead_letter")


@pytest.fixture(scope="session")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], InstalledProject]:
    """Give the project of a broker; rendered and installed once."""
    made: dict[str, InstalledProject] = {}

    def get(broker: str) -> InstalledProject:
        if broker not in made:
            folder = tmp_path_factory.mktemp(broker) / "project"
            # "Dropping a module into `tasks/` registers its tasks": all of these tests rely on it.
            made[broker] = install_with_tasks(folder, {"broker": broker}, "probe", complete=True)
        return made[broker]

    return get


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One RabbitMQ for all tests: it takes seconds to start."""
    with start_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_name(request: pytest.FixtureRequest) -> str:
    """Both brokers, one after the other."""
    return str(request.param)


@pytest.fixture
def service(
    broker_name: str,
    projects: Callable[[str], InstalledProject],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> Iterator[Service]:
    """A project on empty servers."""
    with start_redis(tmp_path, options=("--appendonly", "yes")) as redis:
        if broker_name == "redis":
            yield Service(projects("redis"), tmp_path, redis, redis, {"CELERY_BROKER_URL": redis.url})
        else:
            broker = request.getfixturevalue("rabbitmq")
            variables = {"CELERY_BROKER_URL": broker.url, "CELERY_RESULT_BACKEND": redis.url}
            yield Service(projects("rabbitmq"), tmp_path, broker, redis, variables)
            _empty_queues(broker.url)


def _empty_queues(url: str) -> None:
    # Emptied, not deleted: RabbitMQ 3.10 can crash when a quorum queue is deleted soon after it was declared.
    with kombu.Connection(url) as connection:
        for queue in QUEUES:
            channel: Any = connection.channel()
            with contextlib.suppress(NotFound):
                channel.queue_purge(queue)
