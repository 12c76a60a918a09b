"""Finds task modules: it imports every module of the package, so you needn't register modules.

Celery's own `autodiscover_tasks` imports one module with a given name, and ignores it silently if
one of its imports is missing. Here, a missing import stops the worker and shows the error.
"""

import importlib
import pkgutil
from typing import Any

from celery import Celery
from celery.signals import import_modules


def install(app: Celery, package: str) -> None:
    """Import every module of `package` when `app` starts."""

    def import_all(sender: Celery, **kwargs: Any) -> None:
        # Celery sends the signal for each app of the process.
        if sender is app:
            parent = importlib.import_module(package)
            for module in pkgutil.walk_packages(parent.__path__, f"{package}."):
                importlib.import_module(module.name)

    import_modules.connect(import_all, weak=False)
