"""Reads `celeryconfig.py`, for settings that need Python. An error in it stops the process with one
line that names the file and the line number.
"""

import __future__

import importlib
import runpy
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from celery_service.config.environment import nearest
from celery_service.config.settings import ConfigurationError
from celery_service.config.values import SETTING_TYPES, from_python

# Files whose frames a traceback contains before those of `celeryconfig.py`.
_LOADERS = (__file__, importlib.__file__, runpy.__file__)


def read_celeryconfig(root: Path, environ: Mapping[str, str]) -> tuple[str, dict[str, object]]:
    """Return the settings of `celeryconfig.py`, or of the module that CELERY_CONFIG_MODULE names.

    Returns:
        The name of the file for error messages, and its settings: name → value.

    Raises:
        ConfigurationError: The file can't be run, a name in it is not a setting of Celery, or the
            value of a setting is invalid.
    """
    module = environ.get("CELERY_CONFIG_MODULE", "")
    path = root / "celeryconfig.py"
    if not module and not path.exists():
        return "", {}
    try:
        names = vars(importlib.import_module(module)) if module else runpy.run_path(str(path))
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ConfigurationError(
                f"CELERY_CONFIG_MODULE is {module!r}, which can't be imported: {error}."
            ) from None
        raise ConfigurationError(_in_one_line(module or path.name, error)) from None

    called = module or path.name
    settings: dict[str, object] = {}
    for name, value in names.items():
        if name.startswith("_") or not name.islower():
            continue
        if name in SETTING_TYPES:
            settings[name] = from_python(f"{name} in {called}", name, value)
        elif not _is_import(value):
            raise ConfigurationError(
                f"{called}: {name} is not a setting of Celery "
                f"(helpers start with an underscore){nearest(name, SETTING_TYPES)}"
            )
    return called, settings


def _in_one_line(called: str, error: Exception) -> str:
    reason = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    place = _place(error)
    return f"{place or called}: {type(error).__name__}: {reason.removesuffix('.')}."


def _place(error: Exception) -> str:
    """Return the file and the line of the error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename not in _LOADERS and not frame.filename.startswith("<frozen "):
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return ""


def _is_import(value: object) -> bool:
    return isinstance(value, ModuleType | __future__._Feature) or callable(value)
