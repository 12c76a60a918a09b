"""The image is built, and the Compose stack is started, stopped and attacked, on a real engine.

One stack for each broker serves all tests of that broker; they run in the order of this file.
"""

import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from support.containers import Stack, attempt, environment, pull_images, run, watching
from support.project import REPOSITORY, Project, render, working_tree
from support.servers import wait_until
from support.space import Combination, Template, covering_set, read_space

PROBE = REPOSITORY / "tests" / "behaviour" / "probe_tasks.py"
PAIRS = [each for each in covering_set(read_space(Template(working_tree())), 2) if each.answers["include_docker"]]
#: Megabytes that come on top of the Python image.
BUDGET = {"plain": 50, "everything": 110}


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    environment()


# --- the files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combination", PAIRS, ids=str)
def test_the_files_are_clean_in_every_pair_of_options(combination: Combination, tmp_path: Path) -> None:
    project = render(tmp_path / "project", combination.answers)
    pull_images(project)
    env = (project.folder / ".env.example").read_text()
    (project.folder / ".env").write_text(env.replace("_PASSWORD=\n", "_PASSWORD=secret\n"))
    for files in ("compose.yaml", "compose.yaml:compose.override.yaml"):
        said = run("docker", "compose", "config", "--quiet", cwd=project.folder, COMPOSE_FILE=files)
        assert said == ""
    assert "no warnings found" in run("docker", "build", "--check", ".", cwd=project.folder)
    assert run(str(Path(sys.executable).with_name("hadolint")), "Dockerfile", cwd=project.folder) == ""
    schemas = {
        ".github/workflows/ci.yml": "github-workflows",
        ".gitlab-ci.yml": "gitlab-ci",
        "compose.yaml": "compose-spec",
    }
    for name, schema in schemas.items():
        if (project.folder / name).exists():
            validate = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", f"vendor.{schema}"]
            run(*validate, name, cwd=project.folder)
    # The example for production is a file that Compose takes, too.
    page = (project.folder / "docs/dev/docker.md").read_text()
    [example] = re.findall(r"```yaml\n(# production.yaml.*?)```", page, re.DOTALL)
    (project.folder / "production.yaml").write_text(example)
    assert run("docker", "compose", "-f", "production.yaml", "config", "--quiet", cwd=project.folder) == ""


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_only_this_machine_reaches_the_servers_and_no_password_is_in_the_files(broker: str, tmp_path: Path) -> None:
    project = render(tmp_path / "project", {"broker": broker, "include_sqlalchemy": True})
    for name in ("compose.yaml", "compose.override.yaml"):
        text = (project.folder / name).read_text()
        services = yaml.safe_load(text)["services"]
        ports = [port for service in services.values() for port in service.get("ports", [])]
        assert ports
        assert all(port.startswith("127.0.0.1:") for port in ports)
    compose = yaml.safe_load((project.folder / "compose.yaml").read_text())
    required = re.findall(r"\$\{(\w+_PASSWORD):\?", str(compose))
    servers = ["REDIS", "POSTGRES"] + ["RABBITMQ"] * (broker == "rabbitmq")
    assert set(required) == {f"{name}_PASSWORD" for name in servers}
    shown = (project.folder / ".env.example").read_text()
    assert all(re.search(f"^{name}=$", shown, re.MULTILINE) for name in required)


def test_without_env_compose_says_which_file_to_copy(tmp_path: Path) -> None:
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
        (programs / name).symlink_to(shutil.which(name) or Path(sys.executable).with_name(name))
    before = {*project.folder.rglob("*")}
    done = attempt("make", "up", cwd=project.folder, PATH=str(programs))
    assert done.returncode != 0
    assert done.stdout.startswith("Docker with Compose is not installed: https://")
    assert {*project.folder.rglob("*")} == before


def test_passwords_are_made_up_once_and_for_this_user_only(tmp_path: Path) -> None:
    made = set()
    for number in range(2):
        project = render(tmp_path / str(number), {"broker": "rabbitmq", "include_sqlalchemy": True})
        env = project.folder / ".env"
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


# --- the image ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project and its image, whose name is the distribution's."""
    project = render(tmp_path_factory.mktemp("image") / "project", {"package_slug": "an_image"})
    pull_images(project)
    # As on a machine whose umask keeps others out.
    run("chmod", "-R", "go=", str(project.folder))
    run("make", "image", cwd=project.folder)
    yield project
    attempt("docker", "rmi", "--force", "an-image")


@pytest.mark.parametrize("kind", BUDGET)
def test_the_image_is_small(kind: str, built: Project, tmp_path: Path, summary: list[str]) -> None:
    image = "an-image"
    if kind == "everything":
        options = {"include_sqlalchemy": True, "include_aiocache": True, "broker": "rabbitmq"}
        project = render(tmp_path / "project", {"package_slug": "an_image_of_all", **options})
        run("make", "image", cwd=project.folder)
        image = "an-image-of-all"
    size = int(run("docker", "image", "inspect", image, "--format", "{{.Size}}")) / 1e6
    base = re.findall(r"^FROM (python:\S+)", (built.folder / "Dockerfile").read_text(), re.MULTILINE)[0]
    of_python = int(run("docker", "image", "inspect", base, "--format", "{{.Size}}")) / 1e6
    summary.append(f"image, {kind}: {size:.0f} MB, of which Python {of_python:.0f} MB")
    assert size - of_python < BUDGET[kind]


HARDENED = ("--rm", "--init", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none")


@pytest.mark.usefixtures("built")
def test_it_runs_read_only_and_as_nobody_in_particular() -> None:
    where = "for d in / /app /venv /home /etc /var /root; do test -w $d && echo $d; done; test -w /tmp && test -w /data"
    assert run("docker", "run", *HARDENED, "an-image", "sh", "-c", f"id -u; id -g; {where}").split() == ["10001"] * 2
    done = attempt("docker", "run", *HARDENED, "an-image")
    assert done.returncode == 1
    # What the worker itself says: no shell, no traceback.
    assert done.stdout.startswith("CELERY_BROKER_URL is not set;")
    memory = "CELERY_BROKER_URL=memory://"
    listed = run("docker", "run", *HARDENED, "-e", memory, "an-image", "celery", "-A", "an_image.celery", "--help")
    assert "dead-letters" in listed


@pytest.mark.usefixtures("built")
def test_only_what_is_needed_gets_in() -> None:
    found = run("docker", "run", *HARDENED, "an-image", "ls", "-A", "/app").split()
    assert sorted(found) == ["an_image", "deploy", "pyproject.toml", "uv.lock"]
    assert "No module named pytest" in attempt("docker", "run", *HARDENED, "an-image", "python", "-m", "pytest").stdout
    compiled = "import importlib.util, os, an_image.celery as m\n"
    compiled += "print(os.path.exists(importlib.util.cache_from_source(m.__file__)))"
    memory = "CELERY_BROKER_URL=memory://"
    assert run("docker", "run", *HARDENED, "-e", memory, "an-image", "python", "-c", compiled) == "True\n"


@pytest.mark.usefixtures("built")
def test_a_folder_of_somebody_else_is_refused_in_one_line(tmp_path: Path) -> None:
    done = attempt("docker", "run", *HARDENED, "--volume", f"{tmp_path}:/data", "an-image")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "/data can't be written to by user 10001: on the host, chown -R 10001:10001 what is mounted there."
    ]


def test_a_change_of_the_code_rebuilds_the_last_layers_only(built: Project, summary: list[str]) -> None:
    with (built.folder / "an_image" / "celery.py").open("a") as file:
        file.write(f"\n# {secrets.token_hex()}\n")
    started = time.monotonic()
    said = run("docker", "build", "--progress=plain", "--tag", "an-image", ".", cwd=built.folder)
    summary.append(f"image: rebuilt after a change of the code in {time.monotonic() - started:.1f} seconds")
    steps = dict(re.findall(r"^#(\d+) (\[.*)$", said, re.MULTILINE))
    again = {step for number, step in steps.items() if f"#{number} CACHED" not in said and "internal" not in step}
    assert {re.sub(r"^\[\S+ +\d+/\d+\] ", "", step).split(" && ")[-1] for step in again if " FROM " not in step} == {
        "COPY . .",
        "python -m compileall -q an_image",
        "COPY --from=build /app /app",
    }


def test_a_build_without_a_lock_says_what_to_do(tmp_path: Path) -> None:
    project = render(tmp_path / "project")
    pull_images(project)
    done = attempt("docker", "build", "--progress=plain", ".", cwd=project.folder)
    assert done.returncode != 0
    assert re.search(r"^#\d+ \S+ uv.lock is missing: run 'make uv.lock', and commit it.$", done.stdout, re.MULTILINE)


# --- the stack ----------------------------------------------------------------------------------------------------

STACKS: dict[str, dict[str, object]] = {
    "redis": {"package_slug": "on_redis"},
    "rabbitmq": {
        "package_slug": "on_rabbitmq",
        "broker": "rabbitmq",
        "include_sqlalchemy": True,
        "include_aiocache": True,
    },
}
GRACE = 8
#: Shorter times than in production, so that the tests take minutes: seconds.
SHORT = {"CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT": str(GRACE), "CELERY_TASK_TIME_LIMIT": "10", "HEALTH_MAX_SILENCE": "20"}
SHORT_ON_REDIS = {
    "CELERY_BROKER_TRANSPORT_OPTIONS": '{"visibility_timeout": 12}',
    "CELERY_TASK_ANNOTATIONS": '{"*": {"default_retry_delay": 1, "retry_backoff_max": 1}}',
}
PROBES = "services: {celery: {healthcheck: {interval: 2s, retries: 2}}}\n"


@pytest.fixture(scope="module", params=STACKS)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    project = render(tmp_path_factory.mktemp(request.param) / "project", STACKS[request.param])
    shutil.copy(PROBE, project.folder / project.slug / "tasks" / "probe.py")
    (project.folder / "compose.mine.yaml").write_text(PROBES)
    settings = SHORT | (SHORT_ON_REDIS if request.param == "redis" else {})
    settings["COMPOSE_FILE"] = "compose.yaml:compose.override.yaml:compose.mine.yaml"
    with Stack(project, settings) as started:
        yield started


def send(stack: Stack, prefix: str, count: int, call: str = "probe.work.delay(notes, key, 0.5)") -> list[str]:
    """Send tasks from inside, and give the lines that they note at their end."""
    keys = [f"{prefix}-{number}" for number in range(count)]
    stack.python(f"for key in {keys!r}: {call}\n")
    return [f"end {key}" for key in keys]


def test_tasks_from_the_host_and_from_inside_run(stack: Stack) -> None:
    stack.make("call", "TASK=probe.work", 'ARGS=["/data/notes", "host"]')
    assert stack.python("print(json.dumps(probe.work.delay(notes, 'inside').get(timeout=30)))") == "inside"
    stack.wait_for_lines(["end host", "end inside"], 30)


def test_the_worker_gets_signals_itself_and_everything_is_hardened(stack: Stack) -> None:
    command = stack.compose("exec", "-T", "celery", "cat", f"/proc/{stack.main_process()}/cmdline").split("\0")
    assert Path(command[0]).name == "python"
    assert Path(command[1]).name == "celery"
    for service in ("celery", "beat"):
        host = stack.inspect(service)["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] > 0
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert stack.inspect("celery")["Config"]["StopTimeout"] == GRACE


def test_redis_refuses_rather_than_forgets(stack: Stack) -> None:
    answers = [stack.compose("exec", "-T", "redis", "redis-cli", "config", "get", name) for name in ("maxm*y", "app*y")]
    assert "noeviction" in answers[0]
    assert "yes" in answers[1]
    assert "NOAUTH" in stack.compose("exec", "-T", "-e", "REDISCLI_AUTH=", "redis", "redis-cli", "ping")


def test_the_examples_work_inside(stack: Stack) -> None:
    slug = stack.project.slug
    report = "print(json.dumps(report_on_one('.', 'all').get(timeout=30)))"
    path = stack.python(f"from {slug}.tasks.reports import report_on_one\n{report}")
    assert path == "/data/files/reports/all.json"
    mail = "print(json.dumps(send_email.delay('ada@example.com', 'Hello', '').get(timeout=30)))"
    assert stack.python(f"from {slug}.tasks.email import send_email\n{mail}")["status"] == "sent"
    if (stack.folder / "migrations").exists():
        user = "print(json.dumps(create_user.delay('ada@example.com', 'Ada').get(timeout=30)))"
        assert stack.python(f"from {slug}.tasks.users import create_user\n{user}") == 1


def test_one_beat_sends_and_a_second_is_refused(stack: Stack) -> None:
    due = "Sending due task Test Task"
    wait_until(lambda: stack.logs("beat").count(due) >= 2, 60, "two periodic tasks")
    refused = stack.attempt("up", "--detach", "--no-recreate", "--scale", "beat=2")
    assert refused.returncode != 0
    assert 'The "beat" service is using the custom container name' in refused.stdout
    assert len(stack.containers("beat")) == 1
    assert stack.health("beat") == "healthy"
    # The worker prints as often as beat has sent, give or take the one that is on its way.
    assert stack.logs("celery").count("Hello World!") <= stack.logs("beat").count(due)


def test_code_is_reloaded(stack: Stack) -> None:
    with watching(stack):
        with (stack.folder / stack.project.slug / "tasks" / "probe.py").open("a") as code:
            code.write("\n\n@current_app.task(name='probe.new')\ndef new() -> int:\n    return 42\n")
        wait_until(lambda: stack.logs("celery").count(" ready.") >= 2, 60, "the worker to restart")
    assert stack.python("print(json.dumps(celery.send_task('probe.new').get(timeout=30)))") == 42


def test_a_stop_with_tasks_in_flight_loses_nothing_and_is_in_time(stack: Stack) -> None:
    lines = send(stack, "long", 4, "probe.interrupted.delay(notes, key, 8.5)") + send(stack, "waiting", 4)
    stack.wait_for_lines(["start long-0"], 30)
    started = time.monotonic()
    stack.compose("stop", "celery")
    # The engine takes its time, too.
    assert time.monotonic() - started < GRACE + 2
    assert stack.inspect("celery")["State"]["ExitCode"] == 0
    stack.compose("up", "--detach", "--wait", "celery")
    stack.wait_for_lines(lines, 60)


def test_a_worker_that_is_killed_loses_nothing(stack: Stack) -> None:
    lines = send(stack, "killed", 6, "probe.interrupted.delay(notes, key, 5)")
    stack.wait_for_lines(["start killed-0"], 30)
    run("docker", "kill", *stack.containers("celery"))
    stack.compose("up", "--detach", "--wait", "celery")
    # On Redis, what the dead worker held comes back after the visibility timeout.
    stack.wait_for_lines(lines, 90)


def test_a_restart_of_the_servers_loses_nothing(stack: Stack) -> None:
    servers = {"redis", "rabbitmq"} & set(stack.compose("config", "--services").split())
    lines = send(stack, "restart", 12)
    stack.wait_for_lines(["start restart-0"], 30)
    stack.compose("restart", *servers)
    stack.wait_for_lines(lines, 120)


def test_an_outage_of_the_broker_is_no_reason_to_restart_the_worker(stack: Stack) -> None:
    """Ten probes and 20 seconds; with the intervals of production, it would be two minutes."""
    broker = "rabbitmq" if "rabbitmq" in stack.compose("config", "--services").split() else "redis"
    stack.compose("stop", broker)
    for number in range(10):
        last = stack.last_probe("celery")
        wait_until(lambda before=last: stack.last_probe("celery") != before, 10, f"probe {number}")
        assert stack.health("celery") == "healthy"
    stack.compose("up", "--detach", "--wait", broker)
    stack.wait_for_lines(send(stack, "outage", 2), 90)
    assert stack.inspect("celery")["RestartCount"] == 0


def test_a_frozen_worker_is_unhealthy(stack: Stack) -> None:
    worker = stack.main_process()
    stack.compose("exec", "-T", "celery", "sh", "-c", f"kill -STOP {worker}")
    try:
        wait_until(lambda: stack.health("celery") == "unhealthy", 60, "the worker to be unhealthy")
    finally:
        stack.compose("exec", "-T", "celery", "sh", "-c", f"kill -CONT {worker}")
    wait_until(lambda: stack.health("celery") == "healthy", 30, "the worker to be healthy again")


def test_more_workers_and_down(stack: Stack) -> None:
    stack.make("scale", "N=2")
    assert len(stack.containers("celery")) == 2
    stack.make("down")
    assert stack.compose("ps", "--all", "--quiet") == ""
    # What the volumes hold is there again.
    stack.make("up")
    assert "end inside" in stack.lines()
