"""Checks of a project that need no installation."""

import sys
from pathlib import Path

import pytest

from support.commands import run
from support.project import render


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_the_style_does_not_depend_on_the_lowest_python(version: str, tmp_path: Path) -> None:
    options = {"include_sqlalchemy": True, "include_aiocache": True, "include_fastapi": True}
    project = render(tmp_path / "project", {"python_version": version} | options)
    for command in (["check"], ["format", "--check"]):
        run(str(Path(sys.executable).with_name("ruff")), *command, "--no-cache", cwd=project.folder)


def test_help_lists_every_target(tmp_path: Path) -> None:
    project = render(tmp_path / "project")
    makefile = (project.folder / "Makefile").read_text()
    targets = {line.split(":")[1].strip() for line in makefile.splitlines() if line.startswith(".PHONY:")}
    printed = run("make", "help", cwd=project.folder)
    assert {line.split()[1] for line in printed.splitlines() if line.startswith("  make ")} == targets
