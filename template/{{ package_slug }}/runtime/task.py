"""Owned by the template: `copier update` changes this file.

The base class of every task, and how task modules are found.
"""

import importlib
import pkgutil
from typing import Any

import celery
from celery.signals import import_modules


class Task(celery.Task[..., Any]):
    """What every task of this service has unless its decorator says otherwise.

    `autoretry_for` waits about 1, 2, 4, … minutes, at most 10, with jitter, so that a service that
    was down isn't met by everybody at once. After `max_retries` the task fails.
    """

    max_retries = 3
    default_retry_delay = 60
    retry_backoff = 60
    retry_backoff_max = 600
    retry_jitter = True

    # CELERY_TASK_TIME_LIMIT is the worker's. Celery would have publishers write theirs into each
    # message, where it overrules the worker. A limit in the decorator still travels.
    from_config = tuple(
        (attribute, setting)
        for attribute, setting in celery.Task.from_config
        if attribute not in ("time_limit", "soft_time_limit")
    )


def import_tasks_from(app: celery.Celery, package: str) -> None:
    """Have every module of `package` imported when `app` starts: being there registers its tasks.

    Celery's own `autodiscover_tasks` looks for one module of a given name, and passes silently over
    one whose own imports are missing; here that stops the worker with the reason.
    """

    def import_all(sender: celery.Celery, **kwargs: Any) -> None:
        # Celery sends the signal for each app of the process.
        if sender is app:
            parent = importlib.import_module(package)
            for module in pkgutil.walk_packages(parent.__path__, f"{package}."):
                importlib.import_module(module.name)

    import_modules.connect(import_all, weak=False)
