"""Errors are reported to Sentry, each once. A server that takes reports as Sentry does stands in for it."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kombu
import pytest

from support.api import Api
from support.distribution import on_one_worker
from support.http import QuietHandler
from support.project import InstalledProject, Worker
from support.servers import wait_until
from support.service import Service, monitored_project, service_on_redis

ServiceOn = Any
ARGUMENT = "a-private-argument"
FAILING_ROUTE = """

@router.get("/fails")
async def fails() -> None:
    raise RuntimeError("no answer from redis://user:of-the-route@localhost")
"""


@dataclass
class Receiver:
    """Takes the envelopes of Sentry's protocol: a line of headers, then items of two lines each."""

    items: list[tuple[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    dsn: str = ""

    def take(self, body: bytes) -> None:
        text = body.decode()
        self.texts.append(text)
        _, *lines = text.splitlines()
        for header, payload in zip(lines[::2], lines[1::2], strict=False):
            self.items.append((json.loads(header)["type"], json.loads(payload)))

    def events(self, task_id: str | None = None) -> list[Any]:
        """Give the events, or those of a task."""
        events = [payload for kind, payload in self.items if kind == "event"]
        return [each for each in events if task_id in (None, each.get("tags", {}).get("celery_task_id"))]

    def check_ins(self) -> list[Any]:
        return [payload for kind, payload in self.items if kind == "check_in"]

    def wait_for_event(self, task_id: str, seconds: float = 60) -> Any:
        [event, *more] = wait_until(lambda: self.events(task_id), seconds, f"an event of {task_id}")
        assert more == []
        return event


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.body()
            assert self.path == "/api/1/envelope/"
            receiver.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            self.answer(b"{}")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        receiver.dsn = f"http://key@127.0.0.1:{server.server_port}/1"
        yield receiver
        server.shutdown()


@pytest.fixture(scope="module")
def project() -> InstalledProject:
    return monitored_project("sentry", include_fastapi=True)


@pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))
def running(
    request: pytest.FixtureRequest,
    project: InstalledProject,
    service_on: ServiceOn,
    receiver: Receiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, Worker]]:
    with (
        service_on(request.param, project, tmp_path_factory.mktemp(request.param)) as service,
        service.worker(SENTRY_DSN=receiver.dsn, CELERY_WORKER_LOST_WAIT="1") as worker,
    ):
        worker.wait_ready(60)
        yield service, worker


@pytest.fixture
def service(running: tuple[Service, Worker], receiver: Receiver) -> Service:
    service, _ = running
    service.notes.write_text("")
    receiver.items.clear()
    receiver.texts.clear()
    return service


def nothing_else_arrives(service: Service, receiver: Receiver, count: int) -> None:
    """Assert the number of events, after one that was sent later than all others could be."""
    last = service.send("failing.other.delay()")
    receiver.wait_for_event(last)
    assert len(receiver.events()) == count + 1, receiver.events()


def errors_of(event: Any) -> list[tuple[str, str]]:
    return [(each["type"], each["value"]) for each in event["exception"]["values"]]


def test_a_failed_task_is_reported_once_with_its_tags(service: Service, receiver: Receiver) -> None:
    bound = "from celery_service import correlation\nwith correlation.bind('request-1'):\n    "
    call = f"reported.fail.apply_async(({ARGUMENT!r},), queue='high_priority')"
    task = service.python(f"{bound}sent = {call}\nsent.id")
    event = receiver.wait_for_event(task)
    assert event["tags"] == {
        "celery_task_id": task,
        "task": "reported.fail",
        "queue": "high_priority",
        "correlation_id": "request-1",
    }
    [(kind, text)] = errors_of(event)
    assert kind == "RuntimeError"
    assert text.startswith("('no answer from redis://user:***")
    assert event["environment"] == "production"
    assert event["release"] == f"{service.project.slug}@0.1.0"
    frames = event["exception"]["values"][0]["stacktrace"]["frames"]
    assert [frame["function"] for frame in frames if frame["in_app"]] == ["fail"]
    nothing_else_arrives(service, receiver, 1)
    sent = "".join(receiver.texts)
    assert ARGUMENT not in sent
    assert ARGUMENT.upper() not in sent
    assert "of-the-error" not in sent


def test_retries_and_expected_errors_are_not_reported(service: Service, receiver: Receiver) -> None:
    flaky = service.send("reported.flaky.delay(notes, 2)")
    assert service.result(flaky)["state"] == "SUCCESS"
    service.result(service.send("reported.expected.delay()"))
    service.result(service.send("message.reject.delay('no customer')"))
    nothing_else_arrives(service, receiver, 0)


def test_what_fails_after_all_retries_is_reported_once(service: Service, receiver: Receiver) -> None:
    event = receiver.wait_for_event(service.send("reported.flaky.delay(notes, 9)"))
    assert errors_of(event) == [("ConnectionError", "away")]
    assert service.lines() == ["flaky"] * 4
    nothing_else_arrives(service, receiver, 1)


def test_errors_outside_of_the_body_of_a_task_are_reported(service: Service, receiver: Receiver) -> None:
    event = receiver.wait_for_event(service.send("reported.unfit.delay()"))
    assert errors_of(event)[-1][0] == "EncodeError"
    assert event["tags"]["task"] == "reported.unfit"
    nothing_else_arrives(service, receiver, 1)


def test_a_hard_time_limit_is_reported(service: Service, receiver: Receiver) -> None:
    task = service.send("failing.hang.delay(notes)")
    event = receiver.wait_for_event(task)
    [(kind, _)] = errors_of(event)
    assert kind == "TimeLimitExceeded"
    tags = {"celery_task_id": task, "task": "failing.hang", "queue": "default", "correlation_id": task}
    assert event["tags"] == tags
    nothing_else_arrives(service, receiver, 1)


def test_a_lost_process_is_reported_and_so_is_its_message_in_the_end(service: Service, receiver: Receiver) -> None:
    task = service.send("probe.crash.delay(notes)")
    wait_until(lambda: len(receiver.events(task)) == 4, 90, "four events")
    *lost, last = receiver.events(task)
    for event in lost:
        assert event["level"] == "warning"
        assert errors_of(event)[-1][0] == "WorkerLostError"
        assert event["tags"]["task"] == "probe.crash"
        assert event["tags"]["queue"] == "default"
    assert last["level"] == "error"
    assert errors_of(last) == [("PoisonMessage", "delivered 3 times, and its process died each time")]
    nothing_else_arrives(service, receiver, 4)
    # Each was sent by one process.
    assert len({event["event_id"] for event in receiver.events()}) == 5


def test_messages_that_are_no_tasks_are_reported(service: Service, receiver: Receiver) -> None:
    unknown = service.send(f"celery.send_task('no.such.task', ({ARGUMENT!r},), queue='low_priority')")
    event = receiver.wait_for_event(unknown)
    assert errors_of(event) == [("NotRegistered", "no task is named 'no.such.task'")]
    tags = {"celery_task_id": unknown, "task": "no.such.task", "queue": "low_priority", "correlation_id": unknown}
    assert event["tags"] == tags
    with kombu.Connection(service.broker.url) as connection, connection.Producer() as producer:
        body = f"{{{ARGUMENT}".encode()
        producer.publish(body, routing_key="default", content_type="application/json", content_encoding="utf-8")
    wait_until(lambda: len(receiver.events()) == 2, 60, "the event of a message that can't be decoded")
    assert receiver.events()[1]["tags"]["queue"] == "default"
    nothing_else_arrives(service, receiver, 2)
    assert ARGUMENT not in "".join(receiver.texts)


def test_monitors_of_the_schedule(service: Service, receiver: Receiver, tmp_path: Path) -> None:
    """Of entries of a minute or more: of `Test Task`, with its 15 seconds, Sentry would refuse it."""
    schedule = str(tmp_path / "schedule")
    # As if beat hadn't run for two days.
    service.python(
        "from celery.beat import PersistentScheduler\n"
        "from datetime import timedelta\n"
        f"scheduler = PersistentScheduler(app=celery, schedule_filename={schedule!r})\n"
        "for entry in scheduler.schedule.values(): entry.last_run_at -= timedelta(days=2)\n"
        "scheduler.close()\n"
    )
    variables = service.variables | {"SENTRY_DSN": receiver.dsn}
    arguments = ["--schedule", schedule]
    with Worker(service.project, env=variables, log=tmp_path / "beat", command="beat", arguments=arguments) as beat:
        beat.wait_for('"schedule_entry": "Test Task"', 60)
        wait_until(lambda: len(receiver.check_ins()) == 6, 60, "six check-ins")
    begun = [each for each in receiver.check_ins() if each["status"] == "in_progress"]
    ended = [each for each in receiver.check_ins() if each["status"] == "ok"]
    schedules = {each["monitor_slug"]: each["monitor_config"]["schedule"] for each in begun}
    nightly, hourly = ({"type": "crontab", "value": f"0 {hour} * * *"} for hour in (2, "*"))
    assert schedules == {
        "Clean up old files": nightly,
        "Clean up temporary files": nightly,
        "Check the health": hourly,
    }
    assert {each["check_in_id"] for each in begun} == {each["check_in_id"] for each in ended}
    assert receiver.events() == []


def test_arguments_are_sent_if_that_is_wanted(project: InstalledProject, receiver: Receiver, tmp_path: Path) -> None:
    with (
        service_on_redis(project, tmp_path) as service,
        # Threads of the main process run the tasks, and the process ends after the report.
        service.worker("threads", "--pool", "threads", SENTRY_DSN=receiver.dsn, SENTRY_SEND_ARGUMENTS="true") as worker,
    ):
        worker.wait_ready(60)
        receiver.items.clear()
        task = service.send(f"failing.fail.delay(notes, key={ARGUMENT!r}, password='a-password')")
        service.result(task)
        worker.stop()
        event = receiver.wait_for_event(task)
        assert event["extra"]["arguments"]["args"] == [str(service.notes)]
        assert event["extra"]["arguments"]["kwargs"]["key"] == ARGUMENT
        assert "a-password" not in json.dumps(event)
        assert event["exception"]["values"][0]["stacktrace"]["frames"][-1]["vars"]["key"] == f"'{ARGUMENT}'"
        assert "Sentry is attempting" not in worker.text()


def test_what_ends_a_worker_is_reported_once(project: InstalledProject, receiver: Receiver) -> None:
    receiver.items.clear()
    wrong = "celery_service.brokers.consumer:Nothing"
    variables = {"CELERY_BROKER_URL": "memory://", "SENTRY_DSN": receiver.dsn, "CELERY_WORKER_CONSUMER": wrong}
    assert project.celery("worker", "--pool", "solo", env=variables).returncode == 1
    [event] = wait_until(receiver.events, 30, "an event")
    assert "Nothing" in errors_of(event)[-1][1]


def test_a_sentry_that_does_not_answer_delays_nothing(project: InstalledProject, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, service_on_redis(project, tmp_path) as service:
        dsn = f"http://key@127.0.0.1:{silent.getsockname()[1]}/1"
        with service.worker(SENTRY_DSN=dsn) as worker:
            worker.wait_ready(60)
            tasks = [service.send("failing.other.delay()") for _ in range(20)]
            assert {service.result(task)["state"] for task in tasks} == {"FAILURE"}
            begun = time.monotonic()
            worker.stop()
            # Two seconds for the reports, and what an idle worker takes.
            assert time.monotonic() - begun < 15


def test_nothing_is_loaded_in_other_processes_and_without_a_dsn(project: InstalledProject, tmp_path: Path) -> None:
    with service_on_redis(project, tmp_path) as service:
        code = "import sys\n'sentry_sdk' in sys.modules"
        assert service.python(code) is False
        assert service.python(code, SENTRY_DSN="https://key@sentry.example.com/1") is False
        with service.worker() as worker:
            worker.wait_ready(60)
            maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (worker.pid, *worker.children())]
        assert len(maps) == 2
        assert not any("sentry" in text for text in maps)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"SENTRY_DSN": "nonsense"}, "SENTRY_DSN must be such as https://key@sentry.example.com/1."),
        (
            {"SENTRY_DSN": "https://sentry.example.com/1"},
            "SENTRY_DSN must be such as https://key@sentry.example.com/1.",
        ),
        (
            {"SENTRY_TRACES_SAMPLE_RATE": "2"},
            "SENTRY_TRACES_SAMPLE_RATE is '2'; it must be less than or equal to 1.",
        ),
    ],
)
def test_a_wrong_variable_is_told_in_one_line(project: InstalledProject, variables: dict[str, str], line: str) -> None:
    done = project.celery("worker", env={"CELERY_BROKER_URL": "memory://"} | variables)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).splitlines() == [line]


def test_a_request_that_fails_is_reported(project: InstalledProject, receiver: Receiver, tmp_path: Path) -> None:
    copy = project.copy(tmp_path / "project")
    with (copy.folder / copy.slug / "api" / "routes.py").open("a") as routes:
        routes.write(FAILING_ROUTE)
    receiver.items.clear()
    receiver.texts.clear()
    with service_on_redis(copy, tmp_path) as service, Api(service, SENTRY_DSN=receiver.dsn).wait_ready() as api:
        assert api.post("/reports", {}).status_code == 422
        assert api.get("/tasks/unknown").status_code == 404
        assert api.get("/fails", headers={"X-Request-ID": "request-9"}).status_code == 500
        [event] = wait_until(receiver.events, 30, "the report")
        assert event["tags"] == {"request": "GET /api/v1/fails", "correlation_id": "request-9"}
        assert errors_of(event) == [("RuntimeError", "no answer from redis://user:***@localhost")]
        assert api.stop() == 0
    # Mistakes of clients are no errors, and the log line about the failure is no second report.
    assert receiver.events() == [event]
    assert "of-the-route" not in "".join(receiver.texts)
