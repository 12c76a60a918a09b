"""Nothing waits longer than the visibility timeout of Redis allows: it would run twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.service import Service


@pytest.fixture
def broker_name() -> str:
    """RabbitMQ delays messages itself, for as long as one likes."""
    return "redis"


@pytest.fixture
def module(service: Service) -> Iterator[Path]:
    """A module of tasks that goes with the test."""
    path = service.project.folder / service.project.slug / "tasks" / "delayed.py"
    yield path
    path.unlink()


def refusal(service: Service) -> str:
    """Start a worker that is expected to end at once, and give what it says."""
    done = service.project.celery("worker", env=service.variables, timeout_seconds=30)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("when", ["countdown=700", "eta=datetime.now(timezone.utc) + timedelta(seconds=700)"])
def test_what_would_wait_too_long_is_not_sent(service: Service, when: str) -> None:
    code = (
        "from datetime import datetime, timedelta, timezone\n"
        f"try: hello_world.apply_async({when})\n"
        "except ValueError as error: print(json.dumps(str(error)))\n"
    )
    assert f"{service.project.slug}.celery.hello_world can wait 660 seconds at most, not " in service.python(code)
    assert service.send("hello_world.apply_async(countdown=600)")


TASK = "from celery import current_app\n@current_app.task(name='delayed', {})\ndef delayed() -> None: ...\n"


def test_a_back_off_that_is_too_long_stops_the_worker(service: Service, module: Path) -> None:
    module.write_text(TASK.format("autoretry_for=(OSError,), retry_backoff_max=3600"))
    assert refusal(service).startswith("delayed waits 3600 seconds before a retry, but visibility_timeout")


def test_a_time_limit_that_is_too_long_stops_the_worker(service: Service, module: Path) -> None:
    module.write_text(TASK.format("time_limit=7200"))
    assert refusal(service).startswith("The time limit of delayed is 7200 seconds; raise the visibility_timeout")
