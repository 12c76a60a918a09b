"""Brokers that need no server: folders for one worker on a laptop, and memory for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery_service.brokers import results
from celery_service.brokers.queues import NAMES
from celery_service.config import addresses

SCHEMES = ("filesystem", "memory")
EXAMPLE = "filesystem://localhost"
#: How the addresses of results may start that need no server either.
RESULTS = ("file", "cache+memory")


def settings(url: str, root: Path) -> dict[str, object]:
    """Return the settings; the folders are in `.dev/` of the project, and are made here."""
    common: dict[str, object] = {
        "task_queues": {name: {"exchange": name} for name in NAMES},
        "worker_consumer": "celery_service.brokers.consumer:Consumer",
    }
    if url.startswith("memory"):
        return common | {"result_backend": "cache+memory://"}
    folder = root / ".dev"
    for name in ("messages", "control", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return common | {
        # Celery doesn't decode this URL: a blank stays a blank.
        "result_backend": f"file://{folder / 'results'}",
        "broker_transport_options": {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "control_folder": str(folder / "control"),
        },
    }


def check(settings: dict[str, Any], called: Callable[[str], str]) -> None:
    """Refuse results that are neither in memory or a folder nor in a Redis.

    Raises:
        ConfigurationError: They can't be there.
    """
    if addresses.scheme_of(str(settings["result_backend"])) not in RESULTS:
        results.check(settings, called)
