"""Generated projects pass their own checks after rendering."""

import os
from collections.abc import Mapping

import pytest

from support.commands import run
from support.project import Project, render

PROJECTS: dict[str, Mapping[str, object]] = {
    "nothing": {"include_periodic_tasks": False, "include_docker": False, "ci": "none"},
    "everything": {
        "broker": "rabbitmq",
        "include_sqlalchemy": True,
        "include_aiocache": True,
        "include_fastapi": True,
        "monitoring": ["flower", "prometheus", "opentelemetry", "sentry"],
        "include_kubernetes": True,
        "include_systemd": True,
        "ci": "gitlab",
    },
}


@pytest.fixture(scope="module", params=PROJECTS)
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project as Copier writes it."""
    return render(tmp_path_factory.mktemp("fresh") / "project", PROJECTS[request.param])


def test_a_fresh_project_passes_its_own_checks(project: Project) -> None:
    """Run `make check`, with servers if they are installed."""
    required = os.environ.get("REQUIRE_SERVICES", "")
    printed = run("make", "check", cwd=project.folder, REQUIRE_SERVICES=required)
    assert " passed" in printed
    assert " failed" not in printed
    if required == "1":
        assert " skipped" not in printed


def test_the_checks_ignore_the_library(project: Project) -> None:
    """Neither `make` nor pre-commit checks or changes files in runtime/."""
    untidy = project.folder / "runtime" / "celery_service" / "untidy.py"
    untidy.write_text("import os\nnumber : int=''\n")
    run("git", "init", "--quiet", cwd=project.folder)
    run("git", "add", "--all", cwd=project.folder)
    printed = run("make", "lint", "types", cwd=project.folder)
    assert "untidy" not in printed
    printed = run("uv", "run", "pre-commit", "run", "--all-files", cwd=project.folder)
    assert printed.count("Passed") == 4
    assert untidy.read_text() == "import os\nnumber : int=''\n"
    # It does look at the rest.
    (project.folder / project.slug / "untidy.py").write_text(untidy.read_text())
    with pytest.raises(AssertionError, match="untidy"):
        run("make", "lint", cwd=project.folder)
    (project.folder / project.slug / "untidy.py").unlink()
    untidy.unlink()
