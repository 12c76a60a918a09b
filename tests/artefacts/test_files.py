"""The files for containers and CI, in all contents that combinations of answers give them.

Equal contents are checked once.
"""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from support.commands import attempt, run
from support.containers import require_engine
from support.project import render
from support.render import Renderer, Tree, copy_template
from support.servers import require
from support.space import Combination, Template, covering_set, read_space

#: The schema of each file, as check-jsonschema names it.
SCHEMAS = {
    ".github/workflows/ci.yml": "github-workflows",
    ".gitlab-ci.yml": "gitlab-ci",
    "compose.yaml": "compose-spec",
    "compose.override.yaml": "compose-spec",
}


@pytest.fixture(scope="module")
def combinations(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Combination]:
    return read_space(Template(copy_template(tmp_path_factory.mktemp("template"))))


@pytest.fixture(scope="module")
def renderer(combinations: Sequence[Combination], tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(Template(copy_template(tmp_path_factory.mktemp("template"))), combinations)


@pytest.fixture(scope="module")
def trees(combinations: Sequence[Combination], renderer: Renderer) -> Sequence[Tree]:
    """All projects."""
    return [renderer.render(combination) for combination in combinations]


@pytest.fixture(scope="module")
def pairwise(combinations: Sequence[Combination], renderer: Renderer) -> Sequence[Tree]:
    """A few projects, in which every two answers meet: for tools that take long for each."""
    return [renderer.render(combination) for combination in covering_set(combinations, 2)]


def distinct(trees: Sequence[Tree], folder: Path, *names: str) -> list[Path]:
    """Write the distinct contents of these files, for combinations with the first one; return the folders."""
    found = {tuple(tree.files[name] for name in names) for tree in trees if names[0] in tree.files}
    assert found
    folders = [folder / str(number) for number in range(len(found))]
    for target, files in zip(folders, found, strict=True):
        Tree({file.path: file for file in files}).write(target)
    return folders


def tool(name: str) -> str:
    """Return the path of a program in the environment of these tests."""
    return str(Path(sys.executable).with_name(name))


def test_zizmor_finds_nothing_in_the_workflow(trees: Sequence[Tree], tmp_path: Path) -> None:
    files = [
        str(folder / ".github/workflows/ci.yml") for folder in distinct(trees, tmp_path, ".github/workflows/ci.yml")
    ]
    run(tool("zizmor"), "--offline", "--no-progress", *files)


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_file_matches_its_schema(name: str, trees: Sequence[Tree], tmp_path: Path) -> None:
    files = [str(folder / name) for folder in distinct(trees, tmp_path, name)]
    run(tool("check-jsonschema"), "--builtin-schema", f"vendor.{SCHEMAS[name]}", *files)


def test_the_dockerfile_has_no_known_mistake(trees: Sequence[Tree], tmp_path: Path) -> None:
    dockerfiles = [folder / "Dockerfile" for folder in distinct(trees, tmp_path, "Dockerfile")]
    assert run(tool("hadolint"), *map(str, dockerfiles)) == ""


def test_docker_has_no_warning_about_the_dockerfile(pairwise: Sequence[Tree], tmp_path: Path) -> None:
    require_engine()
    for folder in distinct(pairwise, tmp_path, "Dockerfile", ".dockerignore"):
        assert "no warnings found" in run("docker", "build", "--check", ".", cwd=folder)


def test_compose_accepts_the_files_and_the_example_for_production(pairwise: Sequence[Tree], tmp_path: Path) -> None:
    require_engine()
    names = ("compose.yaml", "compose.override.yaml", ".env.example", "docs/dev/docker.md")
    for folder in distinct(pairwise, tmp_path, *names):
        env = (folder / ".env.example").read_text()
        (folder / ".env").write_text(re.sub(r"(_PASSWORD|API_KEY)=\n", r"\1=secret\n", env))
        page = (folder / "docs/dev/docker.md").read_text()
        [example] = re.findall(r"```yaml\n(# production.yaml.*?)```", page, re.DOTALL)
        (folder / "production.yaml").write_text(example)
        for files in ("compose.yaml", "compose.yaml:compose.override.yaml", "production.yaml"):
            # "*" is all profiles.
            for profiles in ("", "*"):
                command = ("docker", "compose", "--profile", profiles, "config", "--quiet")
                assert run(*command, cwd=folder, COMPOSE_FILE=files) == ""


def test_systemd_finds_no_mistake_in_any_unit(trees: Sequence[Tree], tmp_path: Path) -> None:
    """test_systemd.py runs some of them."""
    require("systemd-analyze", shutil.which("systemd-analyze"))
    units = {name for tree in trees for name in tree.files if name.startswith("deploy/systemd/")}
    for number, files in enumerate({tuple(sorted(units & tree.files.keys())): tree for tree in trees}.items()):
        names, tree = files
        if not names:
            continue
        tree.write(tmp_path / str(number))
        assert run("make", "check-systemd", cwd=tmp_path / str(number)) == ""


def test_a_mistake_in_a_unit_is_found(tmp_path: Path) -> None:
    require("systemd-analyze", shutil.which("systemd-analyze"))
    project = render(tmp_path / "project", {"include_systemd": True})
    unit = project.folder / "deploy/systemd/my-service-beat.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=90", "WatchdogSecs=90"))
    done = attempt("make", "check-systemd", cwd=project.folder)
    assert done.returncode != 0
    assert re.search(r"Unknown key( name)? 'WatchdogSecs'", done.stdout)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_servers_listen_on_this_machine_only_and_no_password_is_in_the_files(broker: str, tmp_path: Path) -> None:
    answers = {"broker": broker, "include_sqlalchemy": True, "monitoring": ["prometheus"]}
    project = render(tmp_path / "project", answers)
    for name in ("compose.yaml", "compose.override.yaml"):
        text = (project.folder / name).read_text()
        services = yaml.safe_load(text)["services"]
        ports = [port for service in services.values() for port in service.get("ports", [])]
        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)
    compose = yaml.safe_load((project.folder / "compose.yaml").read_text())
    required = re.findall(r"\$\{(\w+_PASSWORD):\?", str(compose))
    servers = ["REDIS", "POSTGRES", "GRAFANA"] + ["RABBITMQ"] * (broker == "rabbitmq")
    assert set(required) == {f"{name}_PASSWORD" for name in servers}
    shown = (project.folder / ".env.example").read_text()
    assert all(re.search(f"^{name}=$", shown, re.MULTILINE) for name in required)


def test_without_env_compose_says_which_file_to_copy(tmp_path: Path) -> None:
    require_engine()
    project = render(tmp_path / "project")
    done = attempt("docker", "compose", "up", cwd=project.folder)
    assert done.returncode != 0
    assert len(done.stdout.splitlines()) == 1
    assert "REDIS_PASSWORD is missing a value: copy .env.example to .env" in done.stdout


def test_without_docker_make_says_so_and_writes_nothing(tmp_path: Path) -> None:
    project = render(tmp_path / "project")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "make", "grep", "uv"):
        (programs / name).symlink_to(shutil.which(name) or tool(name))
    before = {*project.folder.rglob("*")}
    done = attempt("make", "up", cwd=project.folder, PATH=str(programs))
    assert done.returncode != 0
    assert done.stdout.startswith("Docker with Compose is not installed: https://")
    assert {*project.folder.rglob("*")} == before


def test_passwords_are_generated_once_and_readable_by_this_user_only(tmp_path: Path) -> None:
    require_engine()
    project = render(tmp_path / "project", {"broker": "rabbitmq", "include_sqlalchemy": True})
    env = project.folder / ".env"
    made = set()
    for _ in range(2):
        env.unlink(missing_ok=True)
        run("make", "passwords", cwd=project.folder)
        first = env.read_text()
        passwords = re.findall(r"^\w+_PASSWORD=(\w{32})$", first, re.MULTILINE)
        assert len(passwords) == 3
        made.update(passwords)
        assert env.stat().st_mode & 0o777 == 0o600
        run("make", "passwords", cwd=project.folder)
        assert env.read_text() == first
    assert len(made) == 6
    # Those that somebody has chosen stay.
    env.write_text(first.replace(passwords[0], "").replace(passwords[1], "mine"))
    run("make", "passwords", cwd=project.folder)
    assert "_PASSWORD=mine\n" in env.read_text()
    assert len(re.findall(r"^\w+_PASSWORD=\w{32}$", env.read_text(), re.MULTILINE)) == 2
