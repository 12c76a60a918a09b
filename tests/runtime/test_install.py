"""`install`, the entry point of the library, with and without some parts."""

import importlib
import re
from pathlib import Path

import celery_service
import pytest
from celery import Celery

from support.forks import Forks

LIBRARY = Path(celery_service.__file__).parent


@pytest.mark.parametrize("part", celery_service.PARTS)
def test_each_part_can_be_installed_by_itself(part: str) -> None:
    module = importlib.import_module(f"celery_service.{part}")
    module.install(Celery("other", set_as_current=False))


def test_a_part_can_be_left_out(forks: Forks, service: Path) -> None:
    code = (
        "import sys\n"
        "from celery import Celery, signals\n"
        "import celery_service\n"
        "app = Celery('x')\n"
        "celery_service.install(app, tasks='my_service.tasks', without={'observability.logging', 'dead_letters'})\n"
        "print(len(signals.setup_logging.receivers), len(signals.task_failure.receivers))"
    )
    assert forks.run(code, service, {"CELERY_BROKER_URL": "memory://"}).stdout == "0 0\n"
    code = re.sub(", without=.*}", "", code)
    assert forks.run(code, service, {"CELERY_BROKER_URL": "memory://"}).stdout == "1 2\n"


def test_an_unknown_part_can_not_be_left_out() -> None:
    with pytest.raises(ValueError, match=r"without=\['logging'\]: the parts are observability.correlation, "):
        celery_service.install(Celery("x", set_as_current=False), tasks="x.tasks", without={"logging"})


def test_every_module_of_tasks_is_registered(forks: Forks, service: Path) -> None:
    deep = service / "my_service" / "tasks" / "deep"
    deep.mkdir()
    (deep / "__init__.py").touch()
    (deep / "more.py").write_text("from my_service.celery import celery\n\n@celery.task\ndef f(): pass\n")
    code = (
        "from my_service.celery import celery\n"
        "celery.loader.import_default_modules()\n"
        "print(*sorted(name for name in celery.tasks if not name.startswith('celery.')))"
    )
    done = forks.run(code, service, {"CELERY_BROKER_URL": "memory://"})
    assert done.stdout == "my_service.tasks.deep.more.f my_service.tasks.work.work\n"


def test_a_second_app_does_not_import_the_tasks_of_the_first(forks: Forks, service: Path) -> None:
    code = (
        "import celery_service\n"
        "from celery import Celery\n"
        "from my_service.celery import celery\n"
        "other = Celery('other')\n"
        "other.loader.import_default_modules()\n"
        "print('my_service.tasks.work' in __import__('sys').modules)"
    )
    assert forks.run(code, service, {"CELERY_BROKER_URL": "memory://"}).stdout == "False\n"


def test_importing_the_library_or_its_probe_does_not_import_celery(forks: Forks, service: Path) -> None:
    # In a Python of its own: the process that forks has imported Celery.
    code = (
        "import subprocess, sys\n"
        "code = 'import celery_service.lifecycle.health, sys; print(*sys.modules)'\n"
        "print(subprocess.check_output([sys.executable, '-c', code], text=True))"
    )
    modules = {name.partition(".")[0] for name in forks.run(code, service).stdout.split()}
    assert "celery_service" in modules
    assert not {"celery", "kombu", "redis", "pydantic", "structlog"} & modules


def test_the_library_works_without_extras(forks: Forks, service: Path) -> None:
    """A project without database, cache and RabbitMQ doesn't install these packages."""
    (service / "sqlalchemy.py").write_text("raise ImportError")
    (service / "aiocache.py").write_text("raise ImportError")
    (service / "alembic.py").write_text("raise ImportError")
    variables = {"CELERY_BROKER_URL": "memory://"}
    code = "from my_service.tasks.work import work; print(work.apply((3,)).get())"
    done = forks.run(code, service, variables)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_the_library_is_plain_python_in_short_files() -> None:
    files = [path for path in LIBRARY.parent.rglob("*") if path.is_file() and path.suffix in {".py", ".lua", ".toml"}]
    assert len(files) > 30
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "{%" not in text, path
        assert "{{" not in text, path
        assert text.count("\n") <= 300, path
