"""The HTTP API of a service, as `celery -A … api` serves it."""

import functools
import urllib.error
import urllib.request

from support import environment
from support.project import InstalledProject, kept_project
from support.servers import HOST, Server, free_port
from support.service import OF_THE_FULL_PROJECT, TASK_MODULES, Service, full_project


@functools.cache
def api_project() -> InstalledProject:
    """Return the plain project with its HTTP API, in the environment of the full one."""
    modules = {name: path for name, path in TASK_MODULES.items() if name not in OF_THE_FULL_PROJECT}
    return kept_project({"include_fastapi": True}, modules, like=full_project())


def serve_api(service: Service, name: str = "api", **variables: str) -> Server:
    """Start the API on a free port: `with serve_api(service) as api: api.url`. `variables` are added to its own."""
    port = free_port()
    url = f"http://{HOST}:{port}"
    project = service.project
    server = Server(
        name=name,
        url=url,
        answers=lambda: _answers(f"{url}/health/live"),
        command=[project.program("celery"), "-A", f"{project.slug}.celery", "api"],
        folder=project.folder,
        environment=environment.of_a_user({**service.variables, "API_PORT": str(port), **variables}),
        log=service.folder / f"{name}.log",
        start_seconds=60,
        stop_seconds=30,
    )
    server.start()
    return server


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
