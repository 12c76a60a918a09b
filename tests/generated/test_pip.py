"""pip can install a project without uv."""

import sys
from pathlib import Path

from support.commands import run
from support.project import render


def test_pip_installs_the_library_and_the_project(tmp_path: Path) -> None:
    project = render(tmp_path / "project")
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    run(str(tmp_path / "venv/bin/pip"), "install", "--quiet", "./runtime", ".", cwd=project.folder)
    # Scripts of Redis and files of the pages too.
    library = project.folder / "runtime" / "celery_service"
    [packages] = tmp_path.glob("venv/lib/python*/site-packages")
    files = {path.relative_to(library) for path in library.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} > {".lua", ".html", ".js"}
    assert [path for path in files if not (packages / "celery_service" / path).is_file()] == []
    # It doesn't need the folder that it was installed from.
    project.folder.rename(tmp_path / "gone")
    celery = [str(tmp_path / "venv/bin/celery"), "-A", f"{project.slug}.celery"]
    printed = run(*celery, "dead-letters", "--help", cwd=tmp_path, CELERY_BROKER_URL="filesystem://localhost")
    assert "replay" in printed
