"""How Celery is configured: our defaults, then the project's `celeryconfig.py` if there is one,
then the `CELERY_*` environment.

To change a default, set its variable or name it in `celeryconfig.py`.
"""

import __future__

import importlib
import importlib.util
import math
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from celery import Celery

from celery_service import brokers
from celery_service.brokers.queues import route_by_priority
from celery_service.config.defaults import DEFAULTS
from celery_service.config.environment import SETTING_TYPES, nearest, read_settings
from celery_service.config.settings import ConfigurationError

#: Settings that are options of a transport: naming one of them must not drop the others.
OPTIONS = ("broker_transport_options", "result_backend_transport_options")


def install(app: Celery, *, tasks: str, routes: Mapping[str, str]) -> None:
    """Give `app` its configuration.

    Raises:
        ConfigurationError: No broker is named, or a setting can't be understood.
    """
    root = root_of(tasks)
    try:
        settings = configuration(root=root, routes=routes)
    except ConfigurationError:
        # `celery -A … worker --help` imports the app before it prints the help, and then ends.
        if "--help" not in sys.argv:
            raise
        settings = configuration(
            root=root, routes=routes, environ={"CELERY_BROKER_URL": "memory://"}
        )
    app.config_from_object(settings)


def root_of(package: str) -> Path:
    """Return the folder of the project: with the package and a `pyproject.toml`.

    Where the package is installed, as in an image, it is the current folder.
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
        environ: Where to look for `CELERY_*`.

    Raises:
        ConfigurationError: No broker is named, or a setting can't be understood.
    """
    chosen = _read_celeryconfig(root, environ) | read_settings(environ)
    url = str(chosen.get("broker_url") or "")
    broker: Any = brokers.by_scheme(url)
    ours: dict[str, object] = DEFAULTS | broker.settings(url, root)
    ours["task_routes"] = [
        {pattern: {"queue": queue} for pattern, queue in routes.items()},
        route_by_priority,
    ]
    merged: dict[str, object] = ours | chosen
    for name in OPTIONS:
        merged[name] = _as_dict(ours, name) | _as_dict(chosen, name)
    _derive_time_limits(merged)
    _check_grace_period(merged)
    broker.check(merged)
    return merged


def _derive_time_limits(settings: dict[str, object]) -> None:
    limit = settings["task_time_limit"]
    if not isinstance(limit, int | float):
        return
    # It raises SoftTimeLimitExceeded inside the task, which then has the rest to clean up.
    soft = settings.setdefault("task_soft_time_limit", 0.9 * limit)
    if isinstance(soft, int | float) and soft >= limit:
        raise ConfigurationError(
            f"CELERY_TASK_SOFT_TIME_LIMIT is {soft:g}; "
            f"it must be below CELERY_TASK_TIME_LIMIT, {limit:g}."
        )


def _check_grace_period(settings: Mapping[str, object]) -> None:
    grace = settings["worker_soft_shutdown_timeout"]
    if not isinstance(grace, int | float) or not 0 <= grace < math.inf:
        raise ConfigurationError(
            f"CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT is {grace!r}; it must be a number of seconds."
        )


def _as_dict(settings: Mapping[str, object], name: str) -> dict[str, object]:
    value = settings.get(name) or {}
    if not isinstance(value, dict):
        raise ConfigurationError(f"{name} must be a dict, not {type(value).__name__}.")
    return value


def _read_celeryconfig(root: Path, environ: Mapping[str, str]) -> dict[str, object]:
    """Return the settings of `celeryconfig.py`, or of the module that CELERY_CONFIG_MODULE names.

    Raises:
        ConfigurationError: A name in there is no setting of Celery.
    """
    module = environ.get("CELERY_CONFIG_MODULE")
    path = root / "celeryconfig.py"
    if module:
        try:
            names = vars(importlib.import_module(module))
        except ImportError as error:
            raise ConfigurationError(
                f"CELERY_CONFIG_MODULE is {module!r}, which can't be imported: {error}."
            ) from None
    elif path.exists():
        names = runpy.run_path(str(path))
    else:
        return {}

    settings: dict[str, object] = {}
    for name, value in names.items():
        if name.startswith("_") or not name.islower() or _is_import(value):
            continue
        if name not in SETTING_TYPES:
            raise ConfigurationError(
                f"{module or path.name}: {name} is not a setting of Celery "
                f"(helpers start with an underscore){nearest(name, SETTING_TYPES)}"
            )
        settings[name] = value
    return settings


def _is_import(value: object) -> bool:
    return isinstance(value, ModuleType | __future__._Feature) or callable(value)
