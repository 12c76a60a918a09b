"""The user's package in a generated project is small. The project doesn't check the library."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.project import REPOSITORY, render
from support.render import read_tree

#: Example → the most lines that the package of its project may have.
LIMITS = {"minimal": 350, "full": 700}


@pytest.mark.parametrize(("example", "limit"), [*LIMITS.items()], ids=[*LIMITS])
def test_the_package_is_a_skeleton(example: str, limit: int, tmp_path: Path, summary: list[str]) -> None:
    answers = yaml.safe_load((REPOSITORY / f"examples/{example}.yml").read_text(encoding="utf-8"))
    project = render(tmp_path / "project", answers)
    lines = sum(len(file.text.splitlines()) for file in read_tree(project.folder / project.slug))
    summary.append(f"<slug>/ with examples/{example}.yml: {lines} lines (limit {limit})")
    assert lines <= limit


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_the_project_does_not_check_the_style_of_the_library(command: list[str], tmp_path: Path) -> None:
    folder = render(tmp_path / "project").folder
    wrong = "import os;import  sys"
    (folder / "runtime/celery_service/wrong.py").write_text(wrong, encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff", *command, "--no-cache"]
    done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

    (folder / "my_service/wrong.py").write_text(wrong, encoding="utf-8")
    done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "my_service/wrong.py" in done.stdout
    assert "runtime" not in done.stdout
