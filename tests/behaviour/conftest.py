"""One installed project for all tests of behaviour, with real servers for its workers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.service import Service, plain_project, service_on_rabbitmq, service_on_redis

ServiceOn = Callable[[str, InstalledProject, Path], AbstractContextManager[Service]]


@pytest.fixture(scope="session")
def project() -> InstalledProject:
    """The project. A test that changes its files uses a copy."""
    return plain_project()


@pytest.fixture(scope="session")
def service_on(request: pytest.FixtureRequest) -> ServiceOn:
    """Return a project on empty servers: `with service_on("redis", project, folder) as service`.

    On RabbitMQ, all services use the same server. So a module of tests has either one service for all tests or one for
    each test.
    """

    def start(broker_name: str, project: InstalledProject, folder: Path) -> AbstractContextManager[Service]:
        if broker_name == "redis":
            return service_on_redis(project, folder)
        return service_on_rabbitmq(project, folder, request.getfixturevalue("rabbitmq"))

    return start


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_name(request: pytest.FixtureRequest) -> str:
    """Run a test on both brokers."""
    return str(request.param)


@pytest.fixture
def service(broker_name: str, service_on: ServiceOn, project: InstalledProject, tmp_path: Path) -> Iterator[Service]:
    """The project on empty servers."""
    with service_on(broker_name, project, tmp_path) as service:
        yield service


@pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))
def of_the_broker(
    request: pytest.FixtureRequest,
    project: InstalledProject,
    service_on: ServiceOn,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, Worker]]:
    """A service with one worker for all tests of a module, which waits only a second for a child that has died."""
    folder = tmp_path_factory.mktemp(request.param)
    with (
        service_on(request.param, project, folder) as service,
        service.worker(CELERY_WORKER_LOST_WAIT="1") as worker,
    ):
        worker.wait_ready()
        yield service, worker


@pytest.fixture
def worker(of_the_broker: tuple[Service, Worker]) -> Worker:
    """The worker that a module shares."""
    _, worker = of_the_broker
    return worker
