"""Stop beat when its schedule can't work. Celery swallows what a handler of `on_after_finalize`
raises, and beat then runs with an empty schedule; and it sends tasks that no worker knows.
"""

from typing import Any

from celery import Celery
from celery.signals import beat_embedded_init, beat_init


class _Recorder:
    """Stands in for the app where a handler adds its entries."""

    def __init__(self) -> None:
        self.tasks: dict[str, str] = {}

    def add_periodic_task(self, _schedule: object, signature: Any, **options: Any) -> None:
        self.tasks[options.get("name") or repr(signature)] = signature.task


def install(app: Celery) -> None:
    """Have beat exit with one line when a handler raises or an entry names an unknown task."""

    def check(sender: Any, **kwargs: object) -> None:
        if sender.app is not app:
            return
        recorder = _Recorder()
        for handler, outcome in app.on_after_finalize.send(sender=recorder):
            if isinstance(outcome, Exception):
                raise SystemExit(f"beat: {handler.__qualname__} raised {outcome!r}: no schedule.")
        app.loader.import_default_modules()
        entries = {name: entry["task"] for name, entry in app.conf.beat_schedule.items()}
        for name, task in (recorder.tasks | entries).items():
            if task not in app.tasks:
                raise SystemExit(f"beat: entry {name!r} names an unknown task, {task!r}.")

    beat_init.connect(check, weak=False)
    beat_embedded_init.connect(check, weak=False)
