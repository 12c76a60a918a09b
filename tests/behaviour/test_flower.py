"""Flower, as `celery -A … flower`: who may look, what they see, and that they can't do anything."""

import base64
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.servers import free_port, start_redis, wait_until
from support.service import Service, monitored_project

SERVER, SENTINEL, FLOWER = "of-the-server", "of-a-sentinel", "se:cr,et"
#: What Flower answers to anybody. /login is for accounts of Google and others, and answers 404.
OPEN = {"/healthcheck", "/login", "/logout"}


@pytest.fixture(scope="module")
def project() -> InstalledProject:
    return monitored_project("flower")


@dataclass
class Running:
    service: Service
    worker: Worker
    flower: Worker
    port: int

    def ask(self, path: str, password: str | None = FLOWER, method: str = "GET") -> tuple[int, str]:
        """Give the status and the text of an answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        if password is not None:
            pair = base64.b64encode(f"admin:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {pair}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def worker_name(self) -> str:
        """Wait until Flower has asked the worker about itself and has a page for it, and give its name."""

        def names() -> list[str]:
            about = json.loads(self.ask("/api/workers?refresh=1")[1])
            return [name for name, parts in about.items() if {"stats", "conf"} <= parts.keys()]

        [name] = wait_until(names, 60, "the worker in Flower")
        # Flower has the page, and the name on its first page, after the first event of the worker.
        wait_until(lambda: self.ask(f"/worker/{name}")[0] == 200, 60, "the page of the worker")
        wait_until(lambda: name in self.ask("/")[1], 60, "the worker on the first page")
        return str(name)


@pytest.fixture(scope="module", params=on_one_worker("redis"))
def running(project: InstalledProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, port = tmp_path_factory.mktemp("flower"), free_port()
    with start_redis(folder) as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", SERVER)
        url = server.url.replace("redis://", f"redis://:{SERVER}@")
        variables = {
            "CELERY_BROKER_URL": url,
            "CELERY_BROKER_TRANSPORT_OPTIONS": json.dumps({"sentinel_kwargs": {"password": SENTINEL}}),
        }
        with Service(folder, variables, broker=server, redis=server, project=project) as service:
            flower_variables = variables | {"FLOWER_PASSWORD": FLOWER, "FLOWER_PORT": str(port)}
            with service.worker() as worker, flower_of(project, flower_variables, folder / "flower.log") as flower:
                flower.wait_for(f'"url": "http://127.0.0.1:{port}/"', 60)
                worker.wait_ready(60)
                yield Running(service, worker, flower, port)


def flower_of(project: InstalledProject, variables: dict[str, str], log: Path) -> Worker:
    return Worker(project, env=variables, log=log, command="flower")


def paths() -> list[str]:
    """Give a path for each handler of Flower, except the style sheets and the one for all others."""
    from flower.urls import handlers

    patterns = [str(each.regex.pattern if hasattr(each, "regex") else each[0]) for each in handlers]
    found = [re.sub(r"\(\.[+*]\)", "x", pattern).removesuffix("$").removesuffix("/?") for pattern in patterns]
    return [path for path in found if not path.startswith((".", "/static"))]


def test_nothing_is_shown_without_the_password(running: Running) -> None:
    asked = paths()
    assert len(asked) > 25
    statuses = {
        (method, path, password): running.ask(path, password, method)[0]
        for path in asked
        if path not in OPEN
        for method in ("GET", "POST")
        for password in (None, "", "wrong")
    }
    # A path that takes only the other method answers 405.
    assert set(statuses.values()) <= {401, 405}
    assert statuses["GET", "/metrics", None] == statuses["GET", "/", None] == statuses["GET", "/tasks", None] == 401
    assert running.ask("/healthcheck", None) == (200, "OK")


def test_the_password_opens_all_pages(running: Running) -> None:
    name = running.worker_name()
    for path in ("/", "/tasks", "/broker", "/metrics", f"/worker/{name}"):
        assert running.ask(path)[0] == 200, path


def test_workers_send_events_unless_that_is_switched_off(running: Running) -> None:
    setting = "celery.conf.worker_send_task_events"
    assert running.service.python(setting) is True
    assert running.service.python(setting, CELERY_WORKER_SEND_TASK_EVENTS="false") is False


def test_a_task_is_shown_with_its_result(running: Running) -> None:
    task_id = running.service.send("probe.work.delay(notes, 'shown', 0)")
    running.service.result(task_id)

    def state() -> bool:
        tasks = json.loads(running.ask("/api/tasks")[1])
        return str(tasks.get(task_id, {}).get("state")) == "SUCCESS"

    wait_until(state, 30, "the task in Flower")
    assert "shown" in running.ask(f"/task/{task_id}")[1]


def test_no_password_is_shown(running: Running) -> None:
    name = running.worker_name()
    asked = ["/", "/broker", "/tasks", "/metrics", f"/worker/{name}", "/api/workers?refresh=1"]
    shown = {path: running.ask(path)[1] for path in [*asked, f"/api/workers?workername={name}"]}
    assert "sentinel_kwargs" in shown["/api/workers?refresh=1"]
    assert "broker_url" in shown[f"/worker/{name}"]
    shown["inspect stats"] = str(running.service.python("celery.control.inspect().stats()"))
    assert "sentinel_kwargs" in shown["inspect stats"]
    for path, text in {**shown, "its log": running.flower.text()}.items():
        for password in (SERVER, SENTINEL, FLOWER):
            assert password not in text, path


def test_no_secret_of_a_task_is_shown_with_its_worker(running: Running) -> None:
    name = running.worker_name()
    send = "probe.work.apply_async((notes, 'password=hunter2'), countdown=600)"
    task_id = running.service.send(send)

    def scheduled() -> str:
        # Flower asks for the tasks of one worker only.
        return running.ask(f"/api/workers?refresh=1&workername={name}")[1]

    shown = wait_until(lambda: task_id in (text := scheduled()) and text, 30, "the task that waits")
    assert "hunter2" not in shown
    running.service.python(f"celery.control.revoke({task_id!r})")


def test_nobody_can_stop_a_worker_or_send_a_task(running: Running) -> None:
    name = urllib.parse.quote(running.worker_name())
    status, text = running.ask(f"/api/worker/shutdown/{name}", method="POST")
    assert (status, text) == (403, "Read only mode is enabled")
    control = [path for path in paths() if re.match("/api/(worker|task)/.+/", path)]
    answers = {path: running.ask(path, method="POST")[0] for path in control}
    # The others only show something.
    reading = {"/api/task/info/x", "/api/task/result/x"}
    assert {path: status for path, status in answers.items() if status != 403} == dict.fromkeys(reading, 405)
    assert running.worker.process.poll() is None


def test_flower_listens_on_this_machine_only(running: Running) -> None:
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    addresses = re.findall(rf"\d: (\w+):{running.port:04X} \w+:0000 0A", listening)
    assert addresses == ["0100007F"]


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({}, "FLOWER_PASSWORD is not set; Flower doesn't start without a password."),
        ({"FLOWER_PASSWORD": ""}, "FLOWER_PASSWORD is not set; Flower doesn't start without a password."),
        ({"FLOWER_BASIC_AUTH": ""}, "FLOWER_PASSWORD is not set; Flower doesn't start without a password."),
        # Standard error is no terminal.
        ({"DEV_PASSWORD": "random"}, "FLOWER_PASSWORD is not set; Flower doesn't start without a password."),
        ({"FLOWER_BASIC_AUTH": "a:b,admin:"}, "FLOWER_BASIC_AUTH must be such as user:password."),
        ({"FLOWER_PORTS": "1"}, "FLOWER_PORTS is no option of Flower; did you mean FLOWER_PORT?"),
        ({"FLOWER_PORT": "tcp://1"}, "FLOWER_PORT is 'tcp://1'; it must be a whole number."),
        ({"FLOWER_READ_ONLY": "maybe"}, "FLOWER_READ_ONLY is 'maybe'; it must be true or false."),
        (
            {"FLOWER_PASSWORD": "x", "CELERY_BROKER_URL": "memory://"},
            "CELERY_BROKER_URL is memory://, whose messages stay in one process: Flower would see no workers.",
        ),
    ],
)
def test_flower_that_can_not_start_says_why_in_one_line(
    project: InstalledProject, variables: dict[str, str], line: str
) -> None:
    done = project.celery("flower", env={"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"} | variables)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).splitlines() == [line]


def test_a_taken_port_is_told_in_one_line(project: InstalledProject, running: Running) -> None:
    variables = {"CELERY_BROKER_URL": "redis://127.0.0.1:1/0", "FLOWER_PASSWORD": "x", "FLOWER_PORT": str(running.port)}
    done = project.celery("flower", env=variables)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).splitlines() == [
        f"Flower can't listen on 127.0.0.1:{running.port}: Address already in use; FLOWER_PORT names the port."
    ]


def test_flower_leaves_no_queue_behind_if_messages_are_files(project: InstalledProject, tmp_path: Path) -> None:
    """Workers would write each event into a file for ever."""
    copy, port = project.copy(tmp_path / "project"), free_port()
    variables = {"CELERY_BROKER_URL": "filesystem://localhost"}
    with Worker(copy, env=variables, log=tmp_path / "worker.log") as worker:
        worker.wait_ready(60)
        secret = {"FLOWER_PASSWORD": FLOWER, "FLOWER_PORT": str(port), "FLOWER_URL_PREFIX": "tasks"}
        with flower_of(copy, variables | secret, tmp_path / "flower.log") as flower:
            running = Running(None, worker, flower, port)  # type: ignore[arg-type]
            flower.wait_for("flower_ready", 60)
            shown = "/tasks/workers?json=1"
            wait_until(lambda: "worker-heartbeat" in running.ask(shown)[1], 60, "events of the worker")
            # The probe of a container asks here, whatever the prefix.
            assert running.ask("/healthcheck", None) == (200, "OK")
        assert flower.process.returncode == 0
    assert not (copy.folder / ".dev/control/celeryev.exchange").exists()
    assert list((copy.folder / ".dev/messages").glob("*celeryev*")) == []


def test_a_worker_that_stops_tells_how_its_last_task_ended(running: Running) -> None:
    """This stops the worker of the module, so it is the last test."""
    task_id = running.service.send("probe.work.delay(notes, 'last', 2)")
    running.service.wait_for_line("start last")
    assert running.worker.stop() == 0

    def state() -> bool:
        tasks = json.loads(running.ask("/api/tasks")[1])
        return str(tasks.get(task_id, {}).get("state")) == "SUCCESS"

    wait_until(state, 30, "the end of the task in Flower")
