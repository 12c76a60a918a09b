"""The HTTP API of a service with a database and a cache: what it promises for rows and tasks, and its document."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import redis

from support import environment
from support.api import Api
from support.servers import wait_until
from support.service import Service, full_project, service_on_redis

HOOKS = Path(__file__).parents[1] / "support" / "schemathesis_hooks.py"
PERSON = {"email": "ada@example.com", "name": "Ada"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    project = full_project()
    with service_on_redis(project, tmp_path) as service:
        service.variables |= {
            "DATABASE_URL": f"sqlite:///{tmp_path}/data.db",
            "CACHE_URL": service.redis.url.replace("/0", "/1"),
        }
        done = project.run("alembic", "upgrade", "head", env=service.variables)
        assert done.returncode == 0, done.stderr
        yield service


def users(service: Service) -> int:
    with sqlite3.connect(service.folder / "data.db") as database:
        (count,) = database.execute("SELECT count(*) FROM users").fetchone()
    return int(count)


def test_a_crash_between_commit_and_publish_needs_the_client_to_ask_again(service: Service) -> None:
    """The row is there, and no task. The client, which has no answer, asks again: one row, and its task."""
    with Api(service, "first").wait_ready() as api, ThreadPoolExecutor() as executor:
        service.redis.pause()
        request = executor.submit(api.post, "/users", PERSON)
        wait_until(lambda: users(service) == 1, 30, "the row")
        os.kill(api.process.pid, signal.SIGKILL)
        assert isinstance(request.exception(30), httpx.TransportError)
    service.redis.resume()
    with redis.Redis.from_url(service.redis.url) as client:
        assert client.llen("default") == 0

    with service.worker() as worker, Api(service, "second").wait_ready() as api:
        worker.wait_ready()
        answer = api.post("/users", PERSON)
        assert answer.status_code == 202
        assert users(service) == 1
        assert api.result(answer.json()["task_id"])["status"] == "SUCCESS"
        # With a database and a cache, the health has them.
        components = api.client.get("/health/detailed").json()["components"]
        assert {name: part["status"] for name, part in components.items() if name in ("database", "cache")} == {
            "database": "healthy",
            "cache": "healthy",
        }


def test_the_api_does_what_its_document_says(service: Service, tmp_path: Path) -> None:
    key = "sixteen-characters"
    (tmp_path / "schemathesis.toml").write_text(f'[auth.openapi.key]\napi_key = "{key}"\n')
    # With a worker, so that streams end.
    with service.worker() as worker, Api(service, API_KEY=key).wait_ready() as api:
        worker.wait_ready()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/openapi.json", "--no-color"),
                *("--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "1"),
            ],
            cwd=tmp_path,
            env=environment.of_a_user({"SCHEMATHESIS_HOOKS": str(HOOKS)}),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
