"""Flower, the web page of workers and tasks: `celery -A <package>.celery flower`.

Flower reads its options from `FLOWER_*` variables and its command line. This part gives it other
defaults, and doesn't let it start without a password.
"""

import logging
import os
import secrets
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import click
import structlog
from celery import Celery
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from celery_service.config.environment import nearest
from celery_service.config.settings import ConfigurationError, read
from celery_service.observability.redaction import redact

PREFIX = "FLOWER_"

#: Differences to Flower's own defaults.
OPTIONS: dict[str, object] = {
    # Flower listens on all addresses.
    "address": "127.0.0.1",
    # Flower can stop workers, revoke tasks and send tasks with any arguments.
    "read_only": True,
    # Flower keeps 100,000 tasks, which need more memory than its container has.
    "max_tasks": 10_000,
}

# Flower asks workers for events only every 5 seconds, and would miss the first tasks of a worker.
# `task_send_sent_event` stays off: publishers would send two messages for each task.
EVENTS: dict[str, object] = {"worker_send_task_events": True}

#: Read by Flower, but not one of its options.
OTHERS = (
    *("UNAUTHENTICATED_API", "GITHUB_OAUTH_DOMAIN"),
    *("GITLAB_OAUTH_DOMAIN", "GITLAB_AUTH_ALLOWED_GROUPS", "GITLAB_MIN_ACCESS_LEVEL"),
    *("OAUTH2_OKTA_BASE_URL",),
)

logger = structlog.get_logger(__name__)


class Settings(BaseSettings):
    """Who may look. FLOWER_BASIC_AUTH, an option of Flower, can name several instead."""

    model_config = SettingsConfigDict(env_prefix="flower_", env_ignore_empty=True)

    user: str = "admin"
    password: SecretStr | None = None


def install(app: Celery) -> None:
    """Let workers of `app` send events. If this process is `celery flower`, prepare it."""

    def settings() -> dict[str, Any]:
        # These override what is configured.
        return {name: value for name, value in EVENTS.items() if name not in app.loader.conf}

    app.add_defaults(settings)
    context = click.get_current_context(silent=True)
    # The command group loads the app before it runs its command.
    if context and context.invoked_subcommand == "flower" and "--help" not in sys.argv:
        _prepare(app)


def _prepare(app: Celery) -> None:
    # Imported here: workers don't need it.
    from flower import command
    from flower.options import options

    if str(app.conf.broker_url).startswith("memory:"):
        raise ConfigurationError(
            "CELERY_BROKER_URL is memory://, whose messages stay in one process: "
            "Flower would see no workers."
        )
    settings = read(Settings)
    _check_environment(os.environ, options)
    for name, value in OPTIONS.items():
        setattr(options, name, value)
    # Flower's own handler would write other lines than the rest of the service.
    app.log.setup(loglevel=logging.INFO)
    command.Flower = _flower(settings)


def _check_environment(environ: MutableMapping[str, str], options: Any) -> None:
    """Check the variables that Flower reads. It would raise for some, and ignore unknown ones."""
    from flower.utils import strtobool

    own = [PREFIX + name.upper() for name in Settings.model_fields]
    others = [*own, *(PREFIX + name for name in OTHERS)]
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        value = environ[variable]
        if not value:
            # Flower takes an empty FLOWER_BASIC_AUTH for a user without a name and a password.
            del environ[variable]
            continue
        if variable in others:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in options:
            known = [*others, *(PREFIX + each.upper().replace("-", "_") for each in options)]
            raise ConfigurationError(f"{variable} is no option of Flower{nearest(variable, known)}")
        kind = options._options[name.replace("_", "-")].type
        try:
            {bool: strtobool, int: int, float: float}.get(kind, str)(value)
        except ValueError:
            allowed = {bool: "true or false", int: "a whole number"}.get(kind, "a number")
            raise ConfigurationError(f"{variable} is {value!r}; it must be {allowed}.") from None


def _flower(settings: Settings) -> type:
    from flower.app import Flower
    from flower.inspector import Inspector
    from flower.views.monitor import Healthcheck, Metrics
    from tornado.web import authenticated

    class _Inspector(Inspector):  # type: ignore[misc]
        """Asks workers what their pages show."""

        def _on_update(self, workername: str, method: str, response: Any) -> None:
            super()._on_update(workername, method, redact(response))

    class _Flower(Flower):  # type: ignore[misc]
        """Flower, which isn't open to anybody and shows no passwords of servers."""

        def __init__(self, **arguments: Any) -> None:
            options = arguments["options"]
            _lock(options, settings)
            # The metrics name workers and tasks. Flower leaves them open.
            if not hasattr(Metrics.get, "__wrapped__"):
                Metrics.get = authenticated(Metrics.get)
            super().__init__(**arguments)
            # The probe of a container doesn't know of FLOWER_URL_PREFIX.
            self.add_handlers(".*", [("/healthcheck", Healthcheck)])
            self.inspector = _Inspector(self.io_loop, self.capp, options.inspect_timeout / 1000)

        def start_http_server(self) -> int | None:
            """Listen, and say where, in place of Flower's list of all tasks."""
            options = self.options
            try:
                port: int | None = super().start_http_server()
            except OSError as error:
                where = options.unix_socket or f"{options.address}:{options.port}"
                raise ConfigurationError(
                    f"Flower can't listen on {where}: {error.strerror}; FLOWER_PORT names the port."
                ) from None
            click.get_current_context().obj.quiet = True
            scheme = "https" if self.ssl_options else "http"
            prefix = f"/{options.url_prefix.strip('/')}/" if options.url_prefix else "/"
            url = options.unix_socket or f"{scheme}://{options.address}:{port}{prefix}"
            logger.info("flower_ready", url=url, broker=self.broker_uri)
            return port

        def start(self) -> None:
            """Serve until the process is stopped."""
            _forget_events(self.capp)
            super().start()

        def stop(self) -> None:
            """Stop receiving events."""
            super().stop()
            _forget_events(self.capp)

    return _Flower


def _lock(options: Any, settings: Settings) -> None:
    """Require a password.

    Raises:
        ConfigurationError: There is none.
    """
    for pair in options.basic_auth:
        if not all(pair.partition(":")[::2]):
            raise ConfigurationError("FLOWER_BASIC_AUTH must be such as user:password.")
    if options.basic_auth or options.auth:  # `auth` is for accounts of Google, GitHub and others
        return
    password = settings.password.get_secret_value() if settings.password else None
    if password is None:
        password = _made_up(settings.user)
    options.basic_auth = [f"{settings.user}:{password}"]


def _made_up(user: str) -> str:
    """Make up a password for this run, if `make flower` wants that and somebody reads it.

    Raises:
        ConfigurationError: There is no password.
    """
    # Standard error may be a log file.
    if os.environ.get("DEV_PASSWORD") != "random" or not sys.stderr.isatty():
        raise ConfigurationError(
            "FLOWER_PASSWORD is not set; Flower doesn't start without a password."
        )
    password = secrets.token_hex(16)
    print(
        f"FLOWER_PASSWORD is not set. For this run, the user is {user} and the password {password}",
        file=sys.stderr,
    )
    return password


def _forget_events(app: Celery) -> None:
    """Delete the queue of events if queues are files. Workers would write into it for ever."""
    if str(app.conf.broker_url).startswith("filesystem:"):
        options = app.conf.broker_transport_options
        (Path(options["control_folder"]) / f"{app.conf.event_exchange}.exchange").unlink(
            missing_ok=True
        )
        for path in Path(options["data_folder_in"]).glob(f"*.{app.conf.event_queue_prefix}.*.msg"):
            path.unlink(missing_ok=True)
