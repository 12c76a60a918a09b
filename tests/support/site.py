"""The HTTP API of a service as a server that a test may stop and start again."""

import urllib.error
import urllib.request

from support import environment
from support.servers import HOST, Server, free_port
from support.service import Service


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
