"""The HTTP API is closed by default: the key, the address, the settings."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.api import Api
from support.project import InstalledProject
from support.servers import free_port
from support.service import Service, api_project, service_on_redis

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def project() -> InstalledProject:
    return api_project()


@pytest.fixture
def service(project: InstalledProject, tmp_path: Path) -> Iterator[Service]:
    with service_on_redis(project, tmp_path) as service:
        yield service


def test_it_refuses_to_start_with_settings_that_would_open_it(service: Service) -> None:
    told = {
        ("API_HOST=0.0.0.0",): "API_KEY is not set, and API_HOST is '0.0.0.0', which other machines can reach; "
        "set a key, or API_KEY=none to let everybody in.",
        ("API_HOST=::",): "API_KEY is not set, and API_HOST is '::'",
        ("API_KEY=short",): "API_KEY can't be used; it must have 16 or more printable ASCII characters",
        ("API_PORT=99999",): "API_PORT is '99999'; it must be less than or equal to 65535.",
    }
    for settings, message in told.items():
        env = service.variables | dict(each.split("=", 1) for each in settings)
        done = service.project.celery("api", env=env)
        assert done.returncode == 1
        assert done.stderr.strip().startswith(message)
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_taken_port_is_named(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = service.project.celery("api", env=service.variables | {"API_PORT": port})
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1, port {port}" in done.stderr
    assert "API_PORT" in done.stderr


def test_with_a_key_only_probes_and_files_are_public(service: Service) -> None:
    with Api(service, API_KEY=KEY, API_HOST="0.0.0.0").wait_ready() as api:
        accepted = api.report()
        assert accepted.status_code == 202
        task_id = accepted.json()["task_id"]
        with httpx.Client(base_url=api.url, trust_env=False) as stranger:
            for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": KEY + "x"}):
                for method, path in (
                    ("POST", "/api/v1/reports"),
                    ("GET", f"/api/v1/tasks/{task_id}"),
                    ("GET", f"/api/v1/tasks/{task_id}/events"),
                    ("DELETE", f"/api/v1/tasks/{task_id}"),
                    ("GET", "/api/v1/ops"),
                    ("GET", "/health/detailed"),
                    ("GET", "/api/v1/health/detailed"),
                    ("GET", "/nowhere"),
                    ("POST", "/static/../api/v1/reports"),
                ):
                    answer = stranger.request(method, path, headers=headers)
                    assert (answer.status_code, answer.json()["status"]) == (401, 401), (method, path)
                    assert answer.headers["www-authenticate"] == "X-API-Key"
            for path in ("/health/live", "/health/ready", "/openapi.json"):
                assert stranger.get(path).status_code == 200
        assert KEY not in api.text()
        probe = service.project.run(
            *("python", "-m", "celery_service.api.probe", "ready"),
            env={"API_HOST": "0.0.0.0", "API_PORT": str(api.port)},
        )
        assert (probe.returncode, probe.stdout) == (0, "ready\n")
        assert api.stop() == 0
    probe = service.project.run("python", "-m", "celery_service.api.probe", "live", env={"API_PORT": str(api.port)})
    assert probe.returncode == 1
    assert probe.stdout.startswith("not live: ")


def test_without_a_key_only_this_machine_is_served(service: Service) -> None:
    """Not even if another server than ours listens on all addresses, or if a page gives its name this address."""
    port = free_port()
    command = ["uvicorn", f"{service.project.slug}.api.app:app", "--host", "0.0.0.0", "--port", str(port)]
    own = socket.gethostbyname(socket.gethostname())
    with Api(service, "uvicorn", command=command, port=port).wait_ready() as api:
        assert api.report().status_code == 202
        rebound = api.client.get("/api/v1/tasks/x", headers={"Host": f"evil.example:{port}"})
        assert rebound.status_code == 403
        if not own.startswith("127."):
            with httpx.Client(trust_env=False) as stranger:
                for headers in ({}, {"Host": "localhost"}):
                    answer = stranger.get(f"http://{own}:{port}/health/live", headers=headers)
                    assert answer.status_code == 403
                    assert "API_KEY is not set" in answer.json()["detail"]


def test_everybody_is_let_in_when_asked_to(service: Service) -> None:
    with Api(service, API_KEY="none", API_HOST="0.0.0.0").wait_ready() as api:
        answer = api.client.get("/openapi.json", headers={"Host": "api.example"})
        assert answer.status_code == 200
        assert "security" not in answer.text.replace("securitySchemes", "")
