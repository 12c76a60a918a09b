"""Beat sends the tasks of the schedule, or exits with the reason."""

from pathlib import Path

from support.project import InstalledProject, Worker
from support.service import service_on_redis


def test_beat_sends_hello_world_and_a_worker_runs_it(project: InstalledProject, tmp_path: Path) -> None:
    with service_on_redis(project, tmp_path) as service:
        schedule = ["--schedule", str(tmp_path / "schedule")]
        log = tmp_path / "beat.log"
        with (
            service.worker() as worker,
            Worker(project, env=service.variables, log=log, command="beat", arguments=schedule) as beat,
        ):
            beat.wait_for('"event": "task_enqueued".*"schedule_entry": "Test Task"', 40)
            worker.wait_for("\nHello World!\n", 30)


def test_an_invalid_schedule_stops_beat(project: InstalledProject, tmp_path: Path) -> None:
    changed = project.copy(tmp_path / "project")
    app = changed.folder / changed.slug / "celery.py"
    text = app.read_text()
    known = 'f"{TASKS}.cleanup.cleanup_old_files"'
    assert known in text
    app.write_text(text.replace(known, 'f"{TASKS}.cleanup.no_such_task"'))
    done = changed.celery("beat", env={"CELERY_BROKER_URL": "memory://"})
    assert done.returncode == 1
    unknown = f"{changed.slug}.tasks.cleanup.no_such_task"
    assert done.stderr.splitlines()[-1] == f"beat: entry 'Clean up old files' names an unknown task, {unknown!r}."
