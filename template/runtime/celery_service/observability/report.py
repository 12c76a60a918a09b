"""What a worker tells about itself: the remote command `report_of_service`.

`celery doctor` and the hourly health check ask for it. Its answer holds no settings and no
arguments of tasks. Celery's command `stats` answers without passwords.
"""

import hashlib
import importlib.util
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from celery import Celery
from celery.signals import worker_init

from celery_service.observability.redaction import redact

#: The name of the remote command.
COMMAND = "report_of_service"
#: Seconds without an answer after which no more workers are expected to answer.
WAIT = 1.5


class Release(TypedDict):
    """What a process runs."""

    #: The version of the service's own distribution, and a digest of its code when it started.
    service: str
    code: str
    library: str
    celery: str
    kombu: str
    python: str


class Report(TypedDict):
    """The answer of a worker."""

    service: str
    release: Release
    time: float
    queues: list[str]
    active: int
    concurrency: int
    leases_held: int
    leases_lost: int


def install(app: Celery) -> None:
    """Have each worker of `app` answer the command."""

    def register(sender: Any, **kwargs: object) -> None:
        if sender.app is app:
            _register(app, release_of(app))

    worker_init.connect(register, weak=False)


def _register(app: Celery, release: Release) -> None:
    # Imported here: publishers don't need them.
    from celery.worker import control
    from celery.worker.state import active_requests

    from celery_service.brokers.redis.lease import leases

    def report(state: Any, **kwargs: object) -> Report:
        """Return what this worker runs, and how busy it is."""
        consumer = state.consumer
        tasks = getattr(consumer, "task_consumer", None)
        return {
            "service": str(app.main),
            "release": release,
            "time": time.time(),
            "queues": sorted(each.name for each in tasks.queues) if tasks else [],
            "active": len(active_requests),
            "concurrency": int(getattr(consumer.pool, "num_processes", None) or 1),
            "leases_held": leases.held,
            "leases_lost": leases.lost,
        }

    panel: Any = control.Panel
    panel.register(type="inspect", name=COMMAND)(report)
    # Celery's own answer has the transport options, and so the password of a Sentinel.
    stats = panel.data["stats"]
    panel.data["stats"] = lambda state, **kwargs: redact(stats(state, **kwargs))


def release_of(app: Celery) -> Release:
    """Return what this process runs."""
    return {
        "service": version_of(str(app.main)),
        "code": _code_of(str(app.main)),
        "library": version_of("celery-service"),
        "celery": version_of("celery"),
        "kombu": version_of("kombu"),
        "python": platform.python_version(),
    }


def version_of(distribution: str) -> str:
    """Return the version of a distribution, or "" if it isn't installed as one."""
    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):
        return ""


def _code_of(package: str) -> str:
    """Return a short digest of the modules of a package: few services change their version."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ""
    digest = hashlib.sha256()
    for place in sorted((found and found.submodule_search_locations) or ()):
        for path in sorted(Path(place).rglob("*.py")):
            digest.update(str(path.relative_to(place)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8] if found else ""


def ask_workers(app: Celery, wait: float = WAIT) -> list[tuple[str, Any]]:
    """Return the name and the answer of each worker: a `Report`, or what an older release says.

    This takes `wait` seconds more than the last answer.

    Raises:
        OperationalError: The broker can't be reached.
    """
    answers = app.control.broadcast(COMMAND, reply=True, timeout=wait) or []
    return [(name, answer) for each in answers for name, answer in each.items()]


def is_report(answer: Any) -> bool:
    """Tell whether a worker knows the command."""
    return isinstance(answer, dict) and "release" in answer
