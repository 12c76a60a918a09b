"""The image is built once, and these tests inspect it on a real engine."""

import json
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import attempt, run
from support.containers import assert_is_small, require_engine
from support.project import Project, render

HARDENED = ("--rm", "--init", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none")
#: Megabytes that come on top of the Python image.
BUDGET = 50


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project and its image, which has the name of the distribution."""
    require_engine()
    project = render(tmp_path_factory.mktemp("image") / "project", {"package_slug": "an_image"})
    (project.folder / "celeryconfig.py").write_text("task_default_priority = 7\n")
    # As on a machine whose umask keeps others out.
    run("chmod", "-R", "go=", str(project.folder))
    run("make", "image", cwd=project.folder)
    yield project
    attempt("docker", "rmi", "--force", "an-image")


def in_image(*command: str, **variables: str) -> str:
    """Run a command in the image, and return its output."""
    given = [option for name, value in variables.items() for option in ("--env", f"{name}={value}")]
    return run("docker", "run", *HARDENED, *given, "an-image", *command)


def test_the_image_is_small(built: Project, summary: list[str]) -> None:
    summary.append(assert_is_small(built, BUDGET))


@pytest.mark.usefixtures("built")
def test_it_runs_read_only_and_without_root() -> None:
    where = "for d in / /app /venv /home /etc /var /root; do test -w $d && echo $d; done; test -w /tmp && test -w /data"
    assert in_image("sh", "-c", f"id -u; id -g; {where}").split() == ["10001"] * 2
    done = attempt("docker", "run", *HARDENED, "an-image")
    assert done.returncode == 1
    # What the worker itself says: no shell, no traceback.
    assert done.stdout.startswith("CELERY_BROKER_URL is not set;")
    listed = in_image("celery", "-A", "an_image.celery", "--help", CELERY_BROKER_URL="memory://")
    assert "dead-letters" in listed


@pytest.mark.usefixtures("built")
def test_the_image_contains_only_what_is_needed() -> None:
    assert in_image("ls", "-A", "/app").split() == ["celeryconfig.py"]
    assert "No module named pytest" in attempt("docker", "run", *HARDENED, "an-image", "python", "-m", "pytest").stdout
    programs = in_image(
        "sh", "-c", "command -v uv uvx; find / -xdev -name uv -o -xdev -name uvx 2>/dev/null; ls /src; true"
    )
    assert programs == "ls: cannot access '/src': No such file or directory\n"


@pytest.mark.usefixtures("built")
def test_library_and_package_are_installed_as_copies() -> None:
    script = """
import importlib.util, json, pathlib, sysconfig
from importlib.metadata import distribution
site = pathlib.Path(sysconfig.get_path("purelib"))
assert not list(site.glob("*.pth")), list(site.glob("*.pth"))
for name in ("celery_service", "an_image"):
    origin = distribution(name).read_text("direct_url.json")
    assert not json.loads(origin or "{}").get("dir_info", {}).get("editable"), origin
    module = importlib.util.find_spec(name)
    assert module and module.origin == str(site / name / "__init__.py"), module
    assert pathlib.Path(importlib.util.cache_from_source(module.origin)).exists()
"""
    in_image("python", "-c", script)
    sources = in_image(
        "sh", "-c", "find / -xdev -name celery_service -o -xdev -name an_image -o -xdev -name runtime 2>/dev/null; true"
    )
    assert sorted(re.findall(r"\S+/(?:celery_service|an_image|runtime)$", sources, re.MULTILINE)) == [
        "/venv/lib/python3.14/site-packages/an_image",
        "/venv/lib/python3.14/site-packages/celery_service",
    ]


@pytest.mark.usefixtures("built")
def test_a_celeryconfig_of_the_user_is_used() -> None:
    script = "from an_image.celery import celery; print(celery.conf.task_default_priority)"
    assert in_image("python", "-c", script, CELERY_BROKER_URL="memory://") == "7\n"


@pytest.mark.usefixtures("built")
def test_a_folder_of_another_user_is_refused_in_one_line(tmp_path: Path) -> None:
    done = attempt("docker", "run", *HARDENED, "--volume", f"{tmp_path}:/data", "an-image")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "/data can't be written to by user 10001: on the host, chown -R 10001:10001 what is mounted there."
    ]


def layers() -> list[str]:
    """Give the digests of the layers of the image: machines that have them don't load them again."""
    listed: list[str] = json.loads(run("docker", "image", "inspect", "an-image", "--format", "{{json .RootFS.Layers}}"))
    return listed


def test_a_change_of_the_code_rebuilds_the_last_layer_only(built: Project, summary: list[str]) -> None:
    before = layers()
    mark = secrets.token_hex()
    with (built.folder / "an_image" / "celery.py").open("a") as file:
        file.write(f"\nMARK = '{mark}'\n")
    started = time.monotonic()
    run("docker", "build", "--tag", "an-image", ".", cwd=built.folder)
    summary.append(f"image: rebuilt after a change of the code in {time.monotonic() - started:.1f} seconds")
    after = layers()
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]
    assert in_image("grep", "-rl", mark, "/venv", "/app").splitlines()[0].endswith("/an_image/celery.py")


def test_a_build_without_a_lock_says_what_to_do(tmp_path: Path) -> None:
    require_engine()
    project = render(tmp_path / "project")
    done = attempt("docker", "build", "--progress=plain", ".", cwd=project.folder)
    assert done.returncode != 0
    assert re.search(r"^#\d+ \S+ uv.lock is missing: run 'make uv.lock', and commit it.$", done.stdout, re.MULTILINE)
