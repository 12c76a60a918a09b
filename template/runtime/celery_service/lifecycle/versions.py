"""Warn when a worker starts on versions that the library hasn't been tested with.

The library overrides methods of Celery, Kombu and billiard. A method that a newer minor has renamed
isn't called any more, and what it protects against is back, without an error. pyproject.toml bounds
the versions; whoever overrides the bounds gets one line.
"""

from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from celery import Celery
from celery.signals import beat_init, celeryd_after_setup
from celery.utils.log import get_logger
from packaging.requirements import Requirement

#: Whose methods we override.
PINNED = ("billiard", "celery", "kombu")

logger = get_logger(__name__)


def install(app: Celery) -> None:
    """Have workers and beat of `app` warn once when they start."""

    def warn(app_that_starts: Any) -> None:
        if app_that_starts is app and (found := untested()):
            logger.warning("celery-service is not tested with %s", ", ".join(found))

    # Both are sent when logging is set up.
    celeryd_after_setup.connect(lambda instance, **_: warn(instance.app), weak=False)
    beat_init.connect(lambda sender, **_: warn(sender.app), weak=False)


def untested() -> list[str]:
    """Return what is installed beyond the bounds, such as `["kombu 5.8.0 (needs >=5.7,<5.8)"]`."""
    try:
        requirements = [Requirement(line) for line in requires("celery-service") or ()]
    except PackageNotFoundError:  # the source alone, on a path
        return []
    return [
        f"{each.name} {version(each.name)} (needs {each.specifier})"
        for each in requirements
        if each.name in PINNED and not each.specifier.contains(version(each.name), prereleases=True)
    ]
