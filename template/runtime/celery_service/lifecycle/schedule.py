"""Stops beat if its schedule is invalid. Celery ignores exceptions in handlers of
`on_after_finalize`, and beat then runs with an empty schedule. Beat also sends unknown tasks.
"""

from typing import Any

from celery import Celery
from celery.signals import beat_embedded_init, beat_init


class _Recorder:
    """Replaces the app, so that handlers add their entries here."""

    def __init__(self) -> None:
        self.tasks: dict[str, str] = {}

    def add_periodic_task(self, _schedule: object, signature: Any, **options: Any) -> None:
        self.tasks[options.get("name") or repr(signature)] = signature.task


def install(app: Celery) -> None:
    """Make beat exit with one line if a handler raises or an entry names an unknown task."""

    def check(sender: Any, **kwargs: object) -> None:
        if sender.app is app:
            try:
                entries(app)
            except ValueError as error:
                raise SystemExit(f"beat: {error}") from None

    beat_init.connect(check, weak=False)
    beat_embedded_init.connect(check, weak=False)


def entries(app: Celery) -> dict[str, str]:
    """Return the schedule of `app`: the name of each entry → the name of its task.

    Raises:
        ValueError: A handler of `on_after_finalize` raises, or an entry names an unknown task.
    """
    recorder = _Recorder()
    for handler, outcome in app.on_after_finalize.send(sender=recorder):
        if isinstance(outcome, Exception):
            raise ValueError(f"{handler.__qualname__} raised {outcome!r}: no schedule.")
    app.loader.import_default_modules()
    found = recorder.tasks | {name: each["task"] for name, each in app.conf.beat_schedule.items()}
    for name, task in found.items():
        if task not in app.tasks:
            raise ValueError(f"entry {name!r} names an unknown task, {task!r}.")
    return found
