"""Brokers that need no server: folders for one worker on a laptop, and memory for tests."""

from pathlib import Path

from celery_service.brokers.queues import NAMES

SCHEMES = ("filesystem", "memory")
EXAMPLE = "filesystem://localhost"


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


def check(settings: dict[str, object]) -> None:
    """Nothing can be wrong with it."""
