"""Brokers that need no server: folders for one worker on a laptop, and memory for tests."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from celery_service.brokers import results
from celery_service.brokers.queues import NAMES
from celery_service.config import addresses
from celery_service.config.settings import ConfigurationError

SCHEMES = ("filesystem", "memory")
EXAMPLE = "filesystem://localhost"
#: How the addresses of results may start that need no server either.
RESULTS = ("file", "cache+memory")


def without_a_broker(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the settings where nothing names a broker: files, if DEV_BROKER allows it.

    The Makefile of a project sets DEV_BROKER=files. It can't tell itself whether a broker is named:
    `.env`, `celeryconfig.py` or the file that a variable names may do that.
    """
    if environ.get("DEV_BROKER") != "files":
        return {}
    print(
        "CELERY_BROKER_URL is not set: messages are files in .dev/, enough for one worker.",
        file=sys.stderr,
    )
    return {"broker_url": EXAMPLE}


def settings(url: str, root: Path) -> dict[str, object]:
    """Return the settings; the folders are in `.dev/` of the project, and are made here.

    Raises:
        ConfigurationError: The folders can't be made.
    """
    common: dict[str, object] = {
        "task_queues": {name: {"exchange": name} for name in NAMES},
        "worker_consumer": "celery_service.brokers.consumer:Consumer",
    }
    if url.startswith("memory"):
        return common | {"result_backend": "cache+memory://"}
    folder = root / ".dev"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        # Arguments and results may be private, and the folder may have been there, for uv.
        folder.chmod(0o700)
        for name in ("messages", "control", "results"):
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} can't hold messages: {error.strerror}; name a broker in CELERY_BROKER_URL."
        ) from None
    return common | {
        # Celery doesn't decode this URL: a blank stays a blank.
        "result_backend": f"file://{folder / 'results'}",
        "beat_schedule_filename": str(folder / "celerybeat-schedule"),
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
