"""One project for all tests of behaviour, with real servers to run its real workers on."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from support.project import InstalledProject
from support.service import Service, plain_project, service_on_rabbitmq, service_on_redis

ServiceOn = Callable[[str, InstalledProject, Path], AbstractContextManager[Service]]


@pytest.fixture(scope="session")
def project() -> InstalledProject:
    """The project; a test that has to change its files takes a copy."""
    return plain_project()


@pytest.fixture(scope="session")
def service_on(request: pytest.FixtureRequest) -> ServiceOn:
    """Give a project on empty servers: `with service_on("redis", project, folder) as service`.

    On RabbitMQ, a module of tests has either one for all of them or one for each: all use the same server.
    """

    def start(broker_name: str, project: InstalledProject, folder: Path) -> AbstractContextManager[Service]:
        if broker_name == "redis":
            return service_on_redis(project, folder)
        return service_on_rabbitmq(project, folder, request.getfixturevalue("rabbitmq"))

    return start


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_name(request: pytest.FixtureRequest) -> str:
    """Both brokers, one after the other."""
    return str(request.param)


@pytest.fixture
def service(broker_name: str, service_on: ServiceOn, project: InstalledProject, tmp_path: Path) -> Iterator[Service]:
    """The project on empty servers."""
    with service_on(broker_name, project, tmp_path) as service:
        yield service
