"""What `make dev`, `make call` and their like do for somebody who types them, without a server or with one."""

import base64
import json
import re
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.commands import attempt, environment, run
from support.project import Project, render
from support.servers import free_port, start_redis, wait_until
from support.terminal import CTRL_C, Terminal

NOTES = """
import time
from pathlib import Path

from my_service.celery import celery


@celery.task(name="note")
def note(text: str) -> None:
    Path("notes").write_text(text)


@celery.task(name="sleep")
def sleep() -> None:
    print("Asleep", flush=True)
    time.sleep(60)
"""
FILES = "CELERY_BROKER_URL is not set: messages are files in .dev/, enough for one worker."


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH whose uv is in a folder with a space."""
    folder = tmp_path_factory.mktemp("my programs")
    (folder / "uv").symlink_to(shutil.which("uv", path=run("uv", "run", "printenv", "PATH").strip()) or "")
    return f"{folder}:/usr/bin:/bin"


@pytest.fixture(scope="module")
def installed(path: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a database and the HTTP API in a folder whose name means a lot to shells, to URLs and to make."""
    folder = tmp_path_factory.mktemp("make") / "it's $5 & 100% #1"
    project = render(folder, {"include_sqlalchemy": True, "include_fastapi": True, "monitoring": ["flower"]})
    (folder / project.slug / "tasks" / "notes.py").write_text(NOTES)
    run("make", "setup", cwd=folder, PATH=path)
    return project


@pytest.fixture
def project(installed: Project) -> Project:
    """That project, without what an earlier test has left."""
    for name in (".env", "celeryconfig.py", "notes", "files"):
        (installed.folder / name).unlink(missing_ok=True)
    shutil.rmtree(installed.folder / ".dev", ignore_errors=True)
    return installed


Make = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def make(project: Project, path: str) -> Make:
    """Run make; give its status and what is printed, without the line in which make says that it has failed."""

    def call(*arguments: str, **variables: str) -> tuple[int, list[str]]:
        set_to = [f"{name}={value}" for name, value in variables.items()]
        done = attempt("env", *set_to, "make", *arguments, cwd=project.folder, PATH=path)
        return done.returncode, [line for line in done.stdout.splitlines() if not line.startswith("make: ***")]

    return call


def dev(project: Project, path: str, port: int | None = None) -> Terminal:
    variables = {"PATH": path, "API_PORT": str(port or free_port())}
    return Terminal("make", "dev", cwd=project.folder, env=environment() | variables)


def ask(url: str, body: object = None) -> dict[str, Any]:
    """Send GET or, with a body, POST, and give the answer. Wait until the API serves requests."""

    def answer() -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            return None

    found: dict[str, Any] = wait_until(answer, 30, url)
    return found


def test_the_doctor_says_what_is_wrong_and_what_to_do(make: Make) -> None:
    status, printed = make("doctor")
    assert status == 2
    assert printed[0] == FILES
    assert printed.count(FILES) == 1
    broken = [line.split()[1] for line in printed if line.startswith("BROKEN ")]
    assert broken == ["workers", "migrations"]
    assert [line for line in printed if "→ Start a worker." in line]


def test_a_worker_runs_what_is_sent_and_ends_with_ctrl_c(project: Project, path: str, make: Make) -> None:
    text = """it's a "$HOME" `here` \\ and $(there)"""
    (project.folder / ".dev").mkdir(mode=0o755)
    port = free_port()
    with dev(project, path, port) as terminal:
        terminal.expect("\nHello World!", 60)
        # The API uses the same files.
        url = f"http://127.0.0.1:{port}"
        accepted = ask(f"{url}/api/v1/reports", {"folders": ["."]})
        wait_until(lambda: ask(f"{url}{accepted['check_url']}")["status"] == "SUCCESS", 30, "the report")
        # A worker that takes longer than a second to answer, as on a busy machine, is "degraded".
        wait_until(lambda: ask(f"{url}/health/detailed")["status"] == "healthy", 60, "the service to be healthy")
        status, printed = make("call", "TASK=note", f"ARGS={json.dumps([text])}")
        assert status == 0
        assert printed[0] == FILES
        assert re.fullmatch(r"[0-9a-f-]{36}", printed[1])
        wait_until((project.folder / "notes").exists, 30, "the note")
        terminal.type(CTRL_C)
        status = terminal.end()
    assert status == -signal.SIGINT
    assert "Warm shutdown" in terminal.shown
    assert "beat: Shutting down" in terminal.shown
    assert "Finished server process" in terminal.shown
    assert "make:" not in terminal.shown
    assert (project.folder / "notes").read_text() == text
    assert (project.folder / ".dev").stat().st_mode & 0o777 == 0o700
    assert list(project.folder.glob("celerybeat*")) == []


def test_a_second_ctrl_c_gives_the_running_task_back(project: Project, path: str, make: Make) -> None:
    with dev(project, path) as terminal:
        terminal.expect("\nHello World!", 60)
        make("call", "TASK=sleep")
        terminal.expect("\nAsleep")
        terminal.type(CTRL_C)
        terminal.expect("Warm shutdown")
        terminal.type(CTRL_C)
        assert terminal.end() == -signal.SIGINT
    assert "make:" not in terminal.shown
    assert "Traceback" not in terminal.shown
    kept = [json.loads(path.read_text())["headers"]["task"] for path in (project.folder / ".dev/messages").iterdir()]
    assert "sleep" in kept


def test_a_worker_waits_for_a_broker_that_is_away(project: Project, path: str, tmp_path: Path) -> None:
    with start_redis(tmp_path) as redis:
        redis.stop()
        (project.folder / ".env").write_text(f"CELERY_BROKER_URL={redis.url}\n")
        with dev(project, path) as terminal:
            assert "The first task wasn't sent." in terminal.expect("Trying again in 2.00 seconds", 60)
            redis.start()
            terminal.expect(" ready.")
            terminal.type(CTRL_C)
            assert terminal.end() == -signal.SIGINT
    assert "make:" not in terminal.shown


def test_flower_gets_a_password_for_one_run_if_there_is_none(project: Project, path: str) -> None:
    port = free_port()
    variables = environment() | {"PATH": path, "FLOWER_PORT": str(port)}
    with Terminal("make", "flower", cwd=project.folder, env=variables) as terminal:
        terminal.expect(f"http://127.0.0.1:{port}/", 60)
        [(user, password)] = re.findall(r"the user is (\w+) and the password (\w{32})\b", terminal.shown)
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Authorization": f"Basic {pair}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200
        terminal.type(CTRL_C)
        status = terminal.end()
    assert status == -signal.SIGINT
    assert "make:" not in terminal.shown
    assert "Traceback" not in terminal.shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["TASK=nope"], "Error: no task is named 'nope'; the tasks are my_service.celery.hello_world, "),
        (["ARGS=[1]"], "Error: my_service.celery.hello_world: argument number 1: "),
        (["TASK=note", "ARGS=[]"], "Error: note: argument text: "),
        (["TASK=note", """ARGS=["it's]"""], "Error: ARGS is "),
        (["TASK=note", """ARGS={"text": "a"}"""], "Error: ARGS is "),
        (["TASK=note", f"ARGS=[{'[' * 5000}{']' * 5000}]"], "Error: "),
    ],
)
def test_a_call_that_can_not_work_fails_in_one_line(make: Make, arguments: list[str], says: str) -> None:
    status, printed = make("call", *arguments)
    assert status != 0
    assert printed[0] == FILES
    assert len(printed) == 2, printed
    assert printed[1].startswith(says)


def test_a_call_fails_in_one_line_while_the_broker_is_away(make: Make) -> None:
    status, printed = make("call", CELERY_BROKER_URL=f"redis://:hunter2@localhost:{free_port()}/0")
    assert status != 0
    assert len(printed) == 1, printed
    assert printed[0].startswith("Error: ")
    assert "hunter2" not in printed[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (".env", "CELERY_BROKER_URL={url}"),
        (".env", "  export CELERY_BROKER_URL = '{url}'"),
        (".env", "PORT=1\nCELERY_BROKER_URL=${{PORT:-2}}{url}"),
        (".env", "CELERY_BROKER_URL_FILE=broker"),
        ("celeryconfig.py", "broker_url = '{url}'"),
    ],
)
def test_a_broker_that_is_named_anywhere_is_used(project: Project, make: Make, file: str, line: str) -> None:
    """This one has a scheme that is refused by name, so that nothing needs to be sent."""
    (project.folder / "broker").write_text("sqs://")
    (project.folder / file).write_text(line.format(url="sqs://"))
    status, printed = make("call")
    assert status != 0
    assert len(printed) == 1
    assert re.match(r"(CELERY_BROKER_URL|broker_url in )\S* starts with '1?sqs'", printed[0])


def test_an_empty_variable_names_no_broker(project: Project, make: Make) -> None:
    (project.folder / ".env").write_text("CELERY_BROKER_URL=\n")
    status, printed = make("call")
    assert (status, printed[0]) == (0, FILES)


def test_commands_in_a_subfolder_use_the_same_messages(project: Project, path: str) -> None:
    command = ("uv", "run", "celery", "-A", "my_service.celery", "send", "note", '["a"]')
    run(*command, cwd=project.folder / "tests", PATH=path, CELERY_BROKER_URL="filesystem://localhost")
    assert len(list((project.folder / ".dev/messages").iterdir())) == 1
    assert not (project.folder / "tests/.dev").exists()


def test_a_folder_that_can_not_hold_messages_is_told_in_one_line(project: Project, make: Make) -> None:
    (project.folder / ".dev").write_text("")
    status, printed = make("call")
    (project.folder / ".dev").unlink()
    assert status != 0
    assert printed[1:] == [
        f"{project.folder}/.dev can't hold messages: File exists; name a broker in CELERY_BROKER_URL."
    ]


def test_a_message_of_a_migration_may_hold_quotes(project: Project, make: Make) -> None:
    status, printed = make("migration", """M=what's "new" for $5""")
    assert status == 0, printed
    [migration] = (project.folder / "migrations/versions").glob("*what_s_new*")
    assert """what's "new" for $5""" in migration.read_text()


def test_uv_trusts_what_the_machine_trusts(project: Project, make: Make) -> None:
    """As pip does. Otherwise, the first `make` fails behind a proxy with a certificate of its own."""
    (project.folder / "local.mk").write_text("show:\n\t@echo $$UV_SYSTEM_CERTS\n")
    assert make("show") == (0, ["true"])
    assert make("show", UV_SYSTEM_CERTS="false") == (0, ["false"])
