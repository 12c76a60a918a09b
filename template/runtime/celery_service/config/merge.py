"""The configuration of Celery: our defaults, then the project's `celeryconfig.py` if it exists,
then the `CELERY_*` environment variables.

To change a default, set its variable, or set it in `celeryconfig.py`.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from celery import Celery

from celery_service import brokers
from celery_service.brokers import embedded
from celery_service.brokers.queues import route_by_priority
from celery_service.config.celeryconfig import read_celeryconfig
from celery_service.config.defaults import DEFAULTS
from celery_service.config.environment import read_settings, variable_of
from celery_service.config.settings import ConfigurationError
from celery_service.observability import redaction

#: Settings that are dicts of options. If you set one option, the others keep their defaults.
OPTIONS = ("broker_transport_options", "result_backend_transport_options")


def install(app: Celery, *, tasks: str, routes: Mapping[str, str]) -> None:
    """Give `app` its configuration.

    Raises:
        ConfigurationError: No broker is configured, or a setting is invalid.
    """
    root = root_of(tasks)
    try:
        settings = configuration(root=root, routes=routes)
    except ConfigurationError:
        # `celery -A … worker --help` imports the app before it prints the help, and then exits.
        if "--help" not in sys.argv:
            raise
        settings = configuration(
            root=root, routes=routes, environ={"CELERY_BROKER_URL": "memory://"}
        )
    redaction.add_settings(settings)
    app.config_from_object(settings)


def root_of(package: str) -> Path:
    """Return the folder of the project, which contains the package and a `pyproject.toml`.

    If the package is installed, as in an image, return the current folder.
    """
    found = importlib.util.find_spec(package.partition(".")[0])
    for place in (found and found.submodule_search_locations) or ():
        folder = Path(place).resolve().parent
        if (folder / "pyproject.toml").exists():
            return folder
    return Path.cwd()


def configuration(
    *, root: Path, routes: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> dict[str, object]:
    """Return the complete Celery configuration of this process.

    Args:
        root: The folder of the project, where `celeryconfig.py` may be.
        routes: Pattern of task names → queue.
        environ: The environment variables.

    Raises:
        ConfigurationError: No broker is configured, or a setting is invalid.
    """
    file, in_file = read_celeryconfig(root, environ)
    in_environment = read_settings(environ)
    chosen = in_file | in_environment
    if not chosen.get("broker_url"):
        chosen |= embedded.without_a_broker(environ)

    def called(name: str) -> str:
        """Return the name of a setting for error messages: where it is set, or can be set."""
        variable = variable_of(name)
        if name in in_file and name not in in_environment:
            return f"{name} in {file}"
        return f"{variable}_FILE" if environ.get(f"{variable}_FILE") else variable

    url = str(chosen.get("broker_url") or "")
    broker: Any = brokers.by_scheme(url, called("broker_url"))
    ours: dict[str, object] = DEFAULTS | broker.settings(url, root)
    ours["task_routes"] = [
        {pattern: {"queue": queue} for pattern, queue in routes.items()},
        route_by_priority,
    ]
    merged: dict[str, Any] = ours | chosen
    for name in OPTIONS:
        options: Any = (ours.get(name) or {}, chosen.get(name) or {})
        merged[name] = options[0] | options[1]
    _derive_time_limits(merged, called)
    broker.check(merged, called)
    return merged


def _derive_time_limits(settings: dict[str, object], called: Callable[[str], str]) -> None:
    limit = settings["task_time_limit"]
    if not isinstance(limit, int | float):
        return
    # The soft limit raises SoftTimeLimitExceeded in the task. The task can clean up until the hard
    # limit.
    soft = settings.setdefault("task_soft_time_limit", 0.9 * limit)
    if isinstance(soft, int | float) and soft >= limit:
        raise ConfigurationError(
            f"{called('task_soft_time_limit')} is {soft:g}; "
            f"it must be below {called('task_time_limit')}, {limit:g}."
        )
