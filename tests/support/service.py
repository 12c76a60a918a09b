"""What a behaviour test works with: a project on real servers, its workers and its publishers."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .project import InstalledProject, Worker, install, render, run_python
from .servers import wait_until

BEHAVIOUR = Path(__file__).parents[1] / "behaviour"


def install_with_tasks(
    folder: Path, answers: Mapping[str, object], *modules: str, complete: bool = False
) -> InstalledProject:
    """Render and install a project that has these modules of our tasks too: "probe" is probe_tasks.py."""
    project = render(folder, answers)
    for module in modules:
        shutil.copy(BEHAVIOUR / f"{module}_tasks.py", project.folder / project.slug / "tasks" / f"{module}.py")
    return install(project, complete=complete)


class Service:
    """A project, the servers that it uses, and the workers and publishers that a test starts."""

    def __init__(
        self, project: InstalledProject, folder: Path, broker: Any, redis: Any, variables: dict[str, str]
    ) -> None:
        """Keep what belongs together; `variables` are the CELERY_ ones that name the servers."""
        self.project = project
        self.folder = folder
        self.broker = broker
        self.redis = redis
        self.variables = variables
        self.notes = folder / "notes"
        self.notes.touch()

    def worker(self, name: str = "worker", *arguments: str, **variables: str) -> Worker:
        """Start a worker; `variables` are added to its environment.

        With a short visibility timeout, tasks wait no longer for a retry than it allows.
        """
        if "visibility_timeout" in variables.get("CELERY_BROKER_TRANSPORT_OPTIONS", ""):
            short = '{"*": {"default_retry_delay": 1, "retry_backoff_max": 1}}'
            variables = {"CELERY_TASK_ANNOTATIONS": short} | variables
        return Worker(
            self.project,
            env=self.variables | variables,
            log=self.folder / f"{name}.log",
            arguments=arguments or ("--concurrency", "1"),
        )

    def python(self, code: str, **variables: str) -> Any:
        """Run code in a publisher process, with `celery` and the probe tasks; give its last line."""
        header = (
            "import json\n"
            f"from {self.project.slug}.celery import celery, hello_world\n"
            f"from {self.project.slug}.tasks import probe\n"
            f"notes = {str(self.notes)!r}\n"
        )
        return run_python(self.project, header + code, self.variables | variables)

    def send(self, call: str) -> str:
        """Send a task, such as `probe.work.delay(notes, 'a')`, and give its id."""
        return str(self.python(f"print(json.dumps({call}.id))"))

    def result(self, task_id: str, seconds: float = 30) -> dict[str, Any]:
        """Wait for a task to end; give its state and its result, or what its error says."""
        found: dict[str, Any] = self.python(
            f"result = celery.AsyncResult({task_id!r})\n"
            f"result.get(timeout={seconds}, propagate=False)\n"
            "print(json.dumps({'state': result.state, 'result': result.result}, default=repr))"
        )
        return found

    def lines(self) -> list[str]:
        """Give what the probe tasks have noted so far."""
        return self.notes.read_text().splitlines()

    def wait_for_line(self, line: str, seconds: float = 30) -> None:
        """Wait until a probe task has noted a line."""
        wait_until(lambda: line in self.lines(), seconds, f"{line!r} in {self.lines()}")
