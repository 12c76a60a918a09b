"""mypy is strict in generated projects, with any options."""

from pathlib import Path

import pytest

from support.commands import run
from support.project import InstalledProject, install, render, working_tree
from support.space import Combination, Template, covering_set, read_space

PAIRS = covering_set(read_space(Template(working_tree())), 2)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> InstalledProject:
    """A project with all options. Its environment contains all packages that other projects need."""
    options = {
        "broker": "rabbitmq",
        "include_sqlalchemy": True,
        "include_aiocache": True,
        "include_fastapi": True,
        "monitoring": ["flower", "prometheus", "opentelemetry", "sentry"],
    }
    return install(render(tmp_path_factory.mktemp("installed") / "project", options))


@pytest.mark.parametrize("combination", PAIRS, ids=str)
def test_types_are_strict_in_every_pair_of_options(
    combination: Combination, installed: InstalledProject, tmp_path: Path
) -> None:
    project = render(tmp_path / "project", combination.answers)
    # What it finds out about the dependencies, it finds out once.
    cache = str(installed.environment / "mypy")
    mypy = [installed.program("mypy"), "--cache-dir", cache, "--python-executable", installed.program("python")]
    assert "Success" in run(*mypy, cwd=project.folder)
