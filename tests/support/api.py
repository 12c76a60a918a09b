"""The HTTP API of a project, as a process of its own."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from support import environment
from support.servers import HOST, free_port, wait_until
from support.service import Service


class Api:
    """A process that serves the API of a service, and a client of it."""

    def __init__(
        self,
        service: Service,
        name: str = "api",
        *,
        command: Sequence[str] = (),
        port: int | None = None,
        more: Mapping[str, str] | None = None,
        **variables: str,
    ) -> None:
        """Start it by this command, or by `celery … api`; the variables are added to its environment."""
        self.service = service
        self.log = service.folder / f"{name}.log"
        self.port = port or free_port()
        self.url = f"http://{HOST}:{self.port}"
        given = service.variables | {"API_PORT": str(self.port)} | dict(more or {}) | variables
        program, *arguments = command or ("celery", "-A", f"{service.project.slug}.celery", "api")
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [service.project.program(program), *arguments],
                cwd=service.project.folder,
                env=environment.of_a_user(given),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        headers = {"X-API-Key": given["API_KEY"]} if "API_KEY" in given else {}
        # Threads may share it.
        many = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=30, limits=many, trust_env=False)

    def wait_ready(self, seconds: float = 60) -> Self:
        """Wait until it serves requests."""

        def serves() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the API ended ({self.process.returncode}): {self.text()}")
            with contextlib.suppress(httpx.TransportError):
                return self.client.get("/health/live").status_code == 200
            return False

        wait_until(serves, seconds, "the API")
        return self

    def text(self) -> str:
        """Give the log so far."""
        return self.log.read_text()

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Send GET to a path under /api/v1."""
        return self.client.get(f"/api/v1{path}", **options)

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Send JSON to a path under /api/v1."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"/api/v1{path}", json=body, headers=named)

    def delete(self, path: str) -> httpx.Response:
        """Send DELETE to a path under /api/v1."""
        return self.client.delete(f"/api/v1{path}")

    def report(self, *folders: str, **headers: str) -> httpx.Response:
        """Ask for a report."""
        return self.post("/reports", {"folders": list(folders or ".")}, **headers)

    def send(self, call: str) -> str:
        """Send a task from another process, and wait until the API knows it. Give its id."""
        task_id = self.service.send(call)
        self.wait_for(task_id, bool)
        return task_id

    def wait_for(self, task_id: str, is_it: Any, seconds: float = 30) -> dict[str, Any]:
        """Wait until the status of a task is as wanted, and give it."""

        def look() -> dict[str, Any] | None:
            answer = self.get(f"/tasks/{task_id}")
            found: dict[str, Any] = answer.json()
            return found if answer.status_code == 200 and is_it(found) else None

        found: dict[str, Any] = wait_until(look, seconds, f"task {task_id}")
        return found

    def result(self, task_id: str, seconds: float = 30) -> dict[str, Any]:
        """Wait until a task has ended, and give its status."""
        return self.wait_for(task_id, lambda found: found["status"] in ("SUCCESS", "FAILURE", "REVOKED"), seconds)

    @contextlib.contextmanager
    def follow(self, task_id: str, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
        """Follow a task: an iterator of events with `event`, `id` and `data`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        path = f"/api/v1/tasks/{task_id}/events"
        with self.client.stream("GET", path, headers=named) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield events(response)

    def stop(self, seconds: float = 30) -> int:
        """Stop it as a deployment does, and give the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        """Use it until the end of the block."""
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        """End it, and show its log after an error."""
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if kind:
            print(f"--- {self.log}\n{self.text()[-4000:]}")


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Read server-sent events."""
    event: dict[str, Any] = {}
    for line in response.iter_lines():
        if not line:
            if "data" in event:
                yield event
            event = {}
            continue
        name, _, value = line.partition(": ")
        event[name] = json.loads(value) if name == "data" else value


def allow(path: Path, key: str, number: int) -> None:
    """Let the task `api.steps` take a step."""
    with path.open("a") as file:
        file.write(f"{key} {number}\n")
