"""`CELERY_*` variables in an installed project. tests/runtime tests all settings and mistakes."""

from pathlib import Path

import pytest

from support.project import InstalledProject, run_python
from support.publisher import run_command
from support.service import full_project


@pytest.fixture
def project() -> InstalledProject:
    """The project with a database and a cache."""
    return full_project()


@pytest.mark.parametrize("command", [("worker",), ("beat",), ("inspect", "ping")], ids=" ".join)
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "CELERY_BROKER_URL is not set"),
        ({"CELERY_BROKER_URL": "redis://localhost:1", "CELERY_TASK_ACK_LATE": "1"}, "mean CELERY_TASK_ACKS_LATE?"),
    ],
)
def test_an_invalid_setting_stops_every_process_with_one_line(
    project: InstalledProject, tmp_path: Path, command: tuple[str, ...], variables: dict[str, str], says: str
) -> None:
    before = files(project.folder)
    assert says in refusal(project, tmp_path, command, variables)
    assert files(project.folder) == before


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("DATABASE_URL", "mysql://ada:hunter2@localhost/x", "DATABASE_URL starts with mysql://"),
        (
            "DATABASE_URL",
            "postgresql://ada:hunter2@localhost:port/x",
            "DATABASE_URL can't be read; write postgresql://",
        ),
        ("CACHE_URL", "redis://:hunter2@localhost:port/1", "CACHE_URL can't be read; its port must be a number"),
        ("SMTP_PORT", "abc", "SMTP_PORT is 'abc'; it must be a valid integer."),
    ],
)
def test_an_invalid_setting_of_the_service_stops_the_worker(
    project: InstalledProject, tmp_path: Path, variable: str, value: str, says: str
) -> None:
    variables = {"CELERY_BROKER_URL": "redis://localhost:1", variable: value}
    line = refusal(project, tmp_path, ("worker",), variables)
    assert line.startswith(says)
    assert "hunter2" not in line


def refusal(project: InstalledProject, folder: Path, command: tuple[str, ...], variables: dict[str, str]) -> str:
    """Return the one line that a process prints before it exits."""
    arguments = ["celery", "-A", f"{project.slug}.celery", *command]
    done = run_command(project, arguments, variables, output=folder / "printed")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    return line


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_celeryconfig_is_found_next_to_the_package(project: InstalledProject, tmp_path: Path) -> None:
    own = project.copy(tmp_path / "project")
    (own.folder / "celeryconfig.py").write_text("worker_prefetch_multiplier = 3\ntask_time_limit = 100\n")
    code = (
        f"import json; from {own.slug}.celery import celery; c = celery.conf;"
        "print(json.dumps([c.worker_prefetch_multiplier, c.task_time_limit, c.task_soft_time_limit, c.task_acks_late]))"
    )
    variables = {"CELERY_BROKER_URL": "memory://", "CELERY_TASK_TIME_LIMIT": "200"}
    assert run_python(own, code, variables) == [3, 200, 180, True]
