"""The library in template/runtime: an app in this process, and a small service in new processes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from support.forks import Forks

SERVICE = {
    "my_service/__init__.py": "",
    "my_service/celery.py": """
from celery import Celery

import celery_service

celery = Celery("my_service")
celery_service.install(celery, tasks="my_service.tasks", routes={"my_service.tasks.cleanup.*": "low_priority"})
""",
    "my_service/tasks/__init__.py": "",
    "my_service/tasks/work.py": """
from my_service.celery import celery


@celery.task
def work(number: int = 1) -> int:
    return number
""",
}


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """New processes."""
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """A folder with a service, `my_service`, that uses the library."""
    folder = tmp_path / "service"
    for name, text in SERVICE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    return folder


@pytest.fixture(scope="session")
def app() -> Celery:
    """An app in this process, with broker and results in memory."""
    import celery_service

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("CELERY_")]:
            patch.delenv(name)
        patch.setenv("CELERY_BROKER_URL", "memory://")
        app = Celery("unit", set_as_current=False)
        celery_service.install(app, tasks="celery_service.observability")
        # Celery reads the variables now. It prefers them to what an app is configured with: other tests' apps too.
        assert app.conf.broker_url == "memory://"
    return app


@pytest.fixture(autouse=True)
def _kombu_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the registration of our transport with Kombu, which a configuration for Redis makes."""
    for name in ("redis", "rediss", "sentinel", "amqp", "amqps", "pyamqp"):
        monkeypatch.setitem(TRANSPORT_ALIASES, name, TRANSPORT_ALIASES[name])
