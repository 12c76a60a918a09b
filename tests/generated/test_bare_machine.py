"""The first steps of a new user, on a machine with few programs."""

import shutil
import sys
from pathlib import Path

from support.commands import attempt, run
from support.project import REPOSITORY, render


def only(folder: Path, *programs: str) -> Path:
    """Create a folder with only these programs, for PATH."""
    folder.mkdir()
    for name in programs:
        path = shutil.which(name)
        assert path, name
        (folder / name).symlink_to(path)
    return folder


def test_a_project_needs_nothing_but_python_and_make(tmp_path: Path) -> None:
    """Without uv, Redis and RabbitMQ, uv is installed, and tests that need a server are skipped with a message."""
    project = render(tmp_path / "project")
    programs = only(tmp_path / "bin", "sh", "make", "awk", "grep", "mkdir", "git", "env", "uname", "cat", "rm", "find")
    # The Python behind the virtual environment of these tests, where there is no uv.
    (programs / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    printed = run("make", "check", cwd=project.folder, PATH=str(programs))
    assert "Installing uv into .dev/uv" in printed
    assert "redis-server is not installed" in printed
    assert " passed, " in printed
    assert " skipped" in printed


def test_a_python_without_venv_is_explained_in_one_line(tmp_path: Path) -> None:
    """As on Debian without python3-venv."""
    project = render(tmp_path / "project")
    programs = only(tmp_path / "bin", "sh", "make", "grep", "mkdir", "git")
    python = programs / "python3"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c \"raise ImportError('No module named ensurepip')\"\n")
    python.chmod(0o755)
    done = attempt("make", "lint", cwd=project.folder, PATH=str(programs))
    assert done.returncode != 0
    said = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert said == ["python3 can't make virtual environments; on Debian: apt-get install python3-venv"]


def test_the_demo_works() -> None:
    """In a user's environment, without variables such as PYTHONUNBUFFERED."""
    printed = run("make", "demo", cwd=REPOSITORY)
    assert "\nHello World!\n" in printed
    assert "Done." in printed
