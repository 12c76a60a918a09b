"""How task modules are found: every module of the package is imported, so being there is enough.

Celery's own `autodiscover_tasks` looks for one module of a given name, and passes silently over one
whose own imports are missing; here that stops the worker with the reason.
"""

import importlib
import pkgutil
from typing import Any

from celery import Celery
from celery.signals import import_modules


def install(app: Celery, package: str) -> None:
    """Have every module of `package` imported when `app` starts."""

    def import_all(sender: Celery, **kwargs: Any) -> None:
        # Celery sends the signal for each app of the process.
        if sender is app:
            parent = importlib.import_module(package)
            for module in pkgutil.walk_packages(parent.__path__, f"{package}."):
                importlib.import_module(module.name)

    import_modules.connect(import_all, weak=False)
