"""Generated projects pass their own checks straight from the render."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.project import Project, install, render, working_tree
from support.space import Combination, Template, covering_set, read_space

PAIRS = covering_set(read_space(Template(working_tree())), 2)

PROJECTS: dict[str, Mapping[str, object]] = {
    "defaults": {},
    "rabbitmq": {"broker": "rabbitmq", "ci": "gitlab"},
    "database": {"include_sqlalchemy": True},
    "cache": {"include_aiocache": True},
    "without periodic tasks": {"include_periodic_tasks": False, "include_docker": False, "ci": "none"},
}


def make(project: Project, *arguments: str, **variables: str) -> str:
    """Run make as a developer does, and give what it prints.

    Raises AssertionError with the output when it fails.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "UV_", "VIRTUAL"))
    }
    done = subprocess.run(
        ["make", *arguments],
        cwd=project.folder,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("answers", PROJECTS.values(), ids=PROJECTS)
def test_a_fresh_project_passes_its_own_checks(answers: Mapping[str, object], tmp_path: Path) -> None:
    """All that `make check` does; with servers where `make test` here has them."""
    project = render(tmp_path / "project", answers)
    printed = make(project, "check")
    assert " passed" in printed
    assert " failed" not in printed
    if os.environ.get("REQUIRE_SERVICES") == "1":
        assert " skipped" not in printed


def test_a_project_needs_nothing_but_python_and_make(tmp_path: Path) -> None:
    """No uv, no Redis and no RabbitMQ: uv is fetched, and what needs a server is skipped visibly."""
    project = render(tmp_path / "project")
    programs = tmp_path / "bin"
    programs.mkdir()
    # The Python behind the virtual environment of these tests, where there is no uv.
    (programs / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    for name in ("sh", "make", "awk", "grep", "mkdir", "git", "env", "uname", "cat", "rm", "find"):
        path = shutil.which(name)
        assert path, name
        (programs / name).symlink_to(path)
    printed = make(project, "test", PATH=str(programs), REQUIRE_SERVICES="")
    assert "Installing uv into .dev/uv" in printed
    assert "redis-server is not installed" in printed
    assert " passed, 2 skipped" in printed


@pytest.mark.parametrize("combination", PAIRS, ids=str)
def test_the_types_are_strict_in_every_pair_of_options(combination: Combination, tmp_path: Path) -> None:
    project = install(render(tmp_path / "project", combination.answers))
    done = subprocess.run(
        [
            project.program("mypy"),
            "--cache-dir",
            str(project.environment / "mypy"),
            "--python-executable",
            project.program("python"),
        ],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_the_style_does_not_depend_on_the_lowest_python(version: str, tmp_path: Path) -> None:
    options = {"include_sqlalchemy": True, "include_aiocache": True}
    project = render(tmp_path / "project", {"python_version": version} | options)
    for command in (["check"], ["format", "--check"]):
        ruff = [str(Path(sys.executable).with_name("ruff")), *command, "--no-cache"]
        done = subprocess.run(ruff, cwd=project.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_help_lists_every_target(tmp_path: Path) -> None:
    project = render(tmp_path / "project")
    makefile = (project.folder / "Makefile").read_text()
    targets = {line.split(":")[1].strip() for line in makefile.splitlines() if line.startswith(".PHONY:")}
    listed = {line.split()[1] for line in make(project, "help").splitlines() if line.startswith("  make ")}
    assert targets == listed
