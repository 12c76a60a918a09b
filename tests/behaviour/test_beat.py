"""Beat sends what the schedule says, or says why it can't."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.project import InstalledProject, Worker, install, render
from support.servers import start_redis


def test_beat_sends_hello_world_and_a_worker_runs_it(
    projects: Callable[[str], InstalledProject], tmp_path: Path
) -> None:
    with start_redis(tmp_path) as redis:
        variables = {"CELERY_BROKER_URL": redis.url}
        schedule = ["--schedule", str(tmp_path / "schedule")]
        project = projects("redis")
        with (
            Worker(project, env=variables, log=tmp_path / "worker.log") as worker,
            Worker(project, env=variables, log=tmp_path / "beat.log", command="beat", arguments=schedule) as beat,
        ):
            beat.wait_for("Sending due task Test Task", 30)
            worker.wait_for("\nHello World!\n", 10)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'f"{{TASKS}}.cleanup.cleanup_old_files"',
            'f"{{TASKS}}.cleanup.no_such_task"',
            "beat: entry 'Clean up old files' names an unknown task, '{slug}.tasks.cleanup.no_such_task'.",
        ),
        (
            "nightly = crontab(hour=2, minute=0)",
            "nightly = crontab(hour=25, minute=0)",
            "beat: setup_periodic_tasks raised ",
        ),
    ],
)
def test_a_schedule_that_can_not_work_stops_beat(tmp_path: Path, old: str, new: str, says: str) -> None:
    project = install(render(tmp_path / "project"))
    app = project.folder / project.slug / "celery.py"
    text = app.read_text()
    assert old.format(slug=project.slug) in text
    app.write_text(text.replace(old.format(slug=project.slug), new.format(slug=project.slug)))
    done = project.celery("beat", env={"CELERY_BROKER_URL": "memory://"}, timeout_seconds=30)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(says.format(slug=project.slug))
