"""One installed project for all tests of behaviour, with real servers for its workers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from support.project import InstalledProject
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
