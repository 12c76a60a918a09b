"""Where each setting of Celery comes from."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from celery import Celery
from celery.app.defaults import NAMESPACES, flatten

from celery_service.config.celeryconfig import read_celeryconfig
from celery_service.config.environment import read_settings, variable_of
from celery_service.config.merge import configuration, root_of
from celery_service.observability.doctor.finding import Finding
from celery_service.observability.redaction import redact

#: So much of a value is shown in the table.
LONGEST = 200

#: Settings that are written in Python as a rule.
IN_CODE = {"beat_schedule": "setup_periodic_tasks", "task_routes": "install(routes=…)"}
CELERY, OURS = "default of Celery", "default of celery-service"


class Setting(NamedTuple):
    """The value of a setting without its secrets, and where it comes from."""

    value: Any
    source: str


def settings(app: Celery) -> dict[str, Setting]:
    """Return all settings of `app`, and where each comes from."""
    root = root_of(str(app.main))
    file, in_file = read_celeryconfig(root, os.environ)
    in_environment = read_settings(os.environ)
    # If nothing names a broker, `make dev` prints that it uses files: once is enough.
    known = {} if (in_file | in_environment).get("broker_url") else _broker(app)
    merged = configuration(root=root, routes={}, environ={**os.environ, **known})
    found: dict[str, Setting] = {}
    options: dict[str, Any] = dict(flatten(NAMESPACES))
    for name, option in options.items():
        value = app.conf.get(name)
        if name in in_environment:
            source = _variable(name) + (f", instead of {file}" if name in in_file else "")
        elif name in in_file:
            source = file
        elif name in IN_CODE:
            source = IN_CODE[name]
        elif name in merged:
            source = OURS if value == merged[name] else "code"
        else:
            source = CELERY if value == option.default else "code"
        found[name] = Setting(redact({name: value})[name], source)
    return found


def _broker(app: Celery) -> dict[str, str]:
    return {variable_of("broker_url"): str(app.conf.broker_url)}


def _variable(name: str) -> str:
    variable = variable_of(name)
    return f"{variable}_FILE" if os.environ.get(f"{variable}_FILE") else variable


def check(app: Celery) -> Iterator[Finding]:
    """Show the settings that somebody has chosen."""
    for name, setting in settings(app).items():
        if setting.source not in {CELERY, OURS, *IN_CODE.values()}:
            value = str(setting.value)
            shown = value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
            yield Finding("ok", "setting", f"{name} = {shown} ({setting.source})")
