"""A Compose stack for each broker."""

import shutil
from collections.abc import Iterator

import pytest

from support.containers import Stack, require_engine
from support.fast_copier import without_repetition
from support.project import REPOSITORY, render

# Before the module is imported, so that its assertions tell as much as those of a test module.
pytest.register_assert_rewrite("artefacts.promises")

PROBE = REPOSITORY / "tests" / "behaviour" / "probe_tasks.py"
PROJECTS: dict[str, dict[str, object]] = {
    "redis": {"package_slug": "on_redis", "monitoring": ["flower"]},
    "rabbitmq": {
        "package_slug": "on_rabbitmq",
        "broker": "rabbitmq",
        "include_sqlalchemy": True,
        "include_aiocache": True,
        "include_fastapi": True,
    },
}
#: Shorter times than in production, so that the tests take a minute: seconds.
GRACE = 8
SETTINGS = {
    "CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT": str(GRACE),
    "HEALTH_MAX_SILENCE": "10",
    "COMPOSE_FILE": "compose.yaml:compose.override.yaml:compose.mine.yaml",
}
ON_REDIS = {"CELERY_BROKER_TRANSPORT_OPTIONS": '{"visibility_timeout": 12}'}
#: The engine waits longer than a worker needs for its grace period when the machine does a lot else.
MINE = "services: {celery: {stop_grace_period: 40s, healthcheck: {interval: 2s, retries: 2}}}\n"


@pytest.fixture(scope="session", autouse=True)
def _fast_copier() -> Iterator[None]:
    with without_repetition():
        yield


@pytest.fixture(scope="class")
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A project for the broker that the class names, started with its own `make up`."""
    require_engine()
    broker = request.cls.broker
    project = render(tmp_path_factory.mktemp(broker) / "project", PROJECTS[broker])
    shutil.copy(PROBE, project.folder / project.slug / "tasks" / "probe.py")
    (project.folder / "compose.mine.yaml").write_text(MINE)
    with Stack(project, SETTINGS | (ON_REDIS if broker == "redis" else {})) as stack:
        stack.compose("exec", "-T", "celery", "touch", "/data/notes")
        yield stack


@pytest.fixture
def stack(request: pytest.FixtureRequest, started: Stack) -> Stack:
    """The stack with all of its services running, even if the previous test has stopped some."""
    if {"celery", "beat", "redis", request.cls.broker} - set(
        started.compose("ps", "--services", "--status=running").split()
    ):
        started.make("up")
    return started
