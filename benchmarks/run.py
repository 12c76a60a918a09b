"""What all benchmarks of one run share."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.project import InstalledProject, Project, install, render

from . import REPOSITORY

HERE = Path(__file__).parent
FULL = REPOSITORY / "examples" / "full.yml"
#: Tasks that are dropped into the rendered project, where being there registers them.
TASKS = ("noop", "database")


@dataclass(frozen=True, eq=False)
class Run:
    """How long and how often to measure, and a folder that is deleted at the end."""

    folder: Path
    seconds: float
    rounds: int

    def in_turns(self, measurements: Sequence[Callable[[], float]]) -> list[list[float]]:
        """Measure A B, B A, A B, … and give the numbers of each, one for each round.

        What slows the machine down for a while meets all sides; what one leaves behind doesn't meet the same other.
        """
        found: list[list[float]] = [[] for _ in measurements]
        for number in range(self.rounds):
            order = range(len(measurements))
            for index in reversed(order) if number % 2 else order:
                found[index].append(measurements[index]())
        return found

    @functools.cache  # noqa: B019 - there is one run
    def full_project(self, broker: str) -> InstalledProject:
        """The project with everything on, with the tasks of the benchmarks in it."""
        answers: dict[str, Any] = yaml.safe_load(FULL.read_text())
        project = render(self.folder / f"full-{broker}" / "project", answers | {"broker": broker})
        for name in TASKS:
            target = project.folder / project.slug / "tasks" / f"benchmark_{name}.py"
            target.write_text((HERE / f"{name}_tasks.py").read_text())
        return install(project, compiled=True)

    def bare_app(
        self, name: str, like: InstalledProject, settings: Mapping[str, object], imports: Sequence[str] = ()
    ) -> InstalledProject:
        """A Celery app with nothing but `settings`, in the environment of the project that it is compared with."""
        project = Project(folder=self.folder / name, slug="bare")
        package = project.folder / project.slug
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        lines = [f"app.conf.update({dict(settings)!r})", *(f"import {module}" for module in imports)]
        (package / "celery.py").write_text("\n".join([(HERE / "bare_app.py").read_text(), *lines, ""]))
        app = InstalledProject(folder=project.folder, slug=project.slug, environment=like.environment)
        app.run("python", "-m", "compileall", "-q", app.slug)
        return app
