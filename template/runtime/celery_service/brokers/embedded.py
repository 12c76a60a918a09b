"""Brokers without a server: `filesystem://` for one worker on a laptop, `memory://` for tests."""

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
#: The schemes of result backends that need no server either.
RESULTS = ("file", "cache+memory")


def without_a_broker(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the settings if no broker is configured: the filesystem broker if DEV_BROKER=files.

    The Makefile of a project sets DEV_BROKER=files. The Makefile can't know whether a broker is
    configured, because `.env`, `celeryconfig.py` or CELERY_BROKER_URL_FILE may do that.
    """
    if environ.get("DEV_BROKER") != "files":
        return {}
    print(
        "CELERY_BROKER_URL is not set: messages are files in .dev/, enough for one worker.",
        file=sys.stderr,
    )
    return {"broker_url": EXAMPLE}


def settings(url: str, root: Path) -> dict[str, object]:
    """Return the settings, and create the folders in `.dev/` of the project.

    Raises:
        ConfigurationError: The folders can't be created.
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
        # Arguments and results may be private. uv may have created the folder before.
        folder.chmod(0o700)
        for name in ("messages", "control", "results"):
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} can't hold messages: {error.strerror}; name a broker in CELERY_BROKER_URL."
        ) from None
    return common | {
        # Celery doesn't decode this URL, so blanks must not be encoded.
        "result_backend": f"file://{folder / 'results'}",
        "beat_schedule_filename": str(folder / "celerybeat-schedule"),
        "broker_transport_options": {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "control_folder": str(folder / "control"),
        },
    }


def check(settings: dict[str, Any], called: Callable[[str], str]) -> None:
    """Refuse a result backend that isn't memory, a folder or Redis.

    Raises:
        ConfigurationError: The result backend isn't one of these, or its address is invalid.
    """
    if addresses.scheme_of(str(settings["result_backend"])) not in RESULTS:
        results.check(settings, called)
