"""The command `api`: serve the API of the service."""

import importlib.util
import socket
from types import FrameType

import click
from celery import Celery


@click.command(name="api")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Serve the HTTP API on API_HOST and API_PORT."""
    app: Celery = ctx.obj.app
    module = f"{app.main}.api"
    if not importlib.util.find_spec("uvicorn") or not importlib.util.find_spec(module):
        raise click.ClickException("this service has no HTTP API: its template adds it on request")
    _serve(app, f"{module}.app:app")


def _serve(app: Celery, path: str) -> None:
    import uvicorn

    from celery_service.api.settings import Settings
    from celery_service.config.settings import read
    from celery_service.lifecycle.memory import leave_out_of_collections
    from celery_service.observability.logging import set_up

    settings = read(Settings)
    settings.check_host()
    set_up()
    config = uvicorn.Config(
        path,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
    _refuse_a_taken_port(settings.host, settings.port)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            leave_out_of_collections()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
            # uvicorn would raise the signal again after a clean stop, and break the stop off at
            # the second Ctrl-C. It is short anyway: API_SHUTDOWN_TIMEOUT.
            self.should_exit = True

    Server(config).run()


def _refuse_a_taken_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise click.ClickException(
                f"can't listen on {host}, port {port}: {error.strerror}; "
                "API_HOST and API_PORT say where"
            ) from None
