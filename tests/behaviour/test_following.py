"""One id leads through everything that a request causes, in lines of the log of which each event has one."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.publisher import run_command
from support.servers import wait_until
from support.service import Service

ServiceOn = Callable[[str, InstalledProject, Path], contextlib.AbstractContextManager[Service]]
Line = dict[str, Any]
OF_A_TASK = {"task_id", "task_name", "correlation_id", "retries", "queue", "worker"}


@pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))
def of_the_broker(
    request: pytest.FixtureRequest,
    project: InstalledProject,
    service_on: ServiceOn,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, Worker]]:
    """A service with one worker, whose processes all write to the folder `log`, as its publishers do."""
    folder = tmp_path_factory.mktemp(request.param)
    with service_on(request.param, project, folder) as service:
        service.variables |= {"LOG_DIR": str(folder / "log"), "LOG_LEVEL": "INFO"}
        with service.worker(CELERY_WORKER_LOST_WAIT="1") as worker:
            worker.wait_ready()
            yield service, worker


@pytest.fixture
def service(of_the_broker: tuple[Service, Worker]) -> Service:
    """The same without what the test before has left."""
    service, _ = of_the_broker
    service.forget()
    return service


def send(service: Service, call: str, id_: str) -> str:
    """Send a task in a publisher that writes its log, for a request with this id; give the id of the task."""
    return str(
        service.python(
            "from celery_service import correlation\n"
            "from celery_service.observability import logging as log\n"
            "log.set_up()\n"
            f"with correlation.bind({id_!r}):\n"
            f"    sent = {call}\n"
            "sent.id"
        )
    )


def lines(service: Service) -> list[Line]:
    """Read the log, each line of which is complete."""
    text = (service.folder / "log" / "json.log").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert list(line)[:4] == ["timestamp", "level", "event", "logger"], line
    return found


def wait_for(service: Service, count: int = 1, **fields: object) -> list[Line]:
    """Wait until so many lines have these fields, and give them."""

    def look() -> list[Line] | None:
        found = [line for line in lines(service) if line.items() >= fields.items()]
        return found if len(found) >= count else None

    matching: list[Line] = wait_until(look, 60, f"{count} lines with {fields}")
    return matching


def events(service: Service, id_: str) -> Counter[tuple[str, str]]:
    """Count the lines with an id, by event and task."""
    return Counter(
        (line["event"], line["task_name"].partition(".")[2])
        for line in lines(service)
        if line.get("correlation_id") == id_
    )


def test_one_id_leads_from_the_request_to_the_replay(service: Service) -> None:
    task = send(service, "following.start.delay(notes)", "request-1")
    [letter] = service.wait_for_letters()
    assert letter["correlation_id"] == "request-1"
    assert "celery_service_correlation_id" not in letter["options"]["headers"]
    (service.folder / "mended").touch()
    assert service.dead_letters("replay", "--yes").returncode == 0
    wait_for(service, event="task_succeeded", task_name="following.body")

    assert events(service, "request-1") == {
        ("task_enqueued", "start"): 1,
        ("task_started", "start"): 2,
        ("task_retrying", "start"): 1,
        ("task_succeeded", "start"): 1,
        ("task_enqueued", "child"): 1,
        ("task_started", "child"): 1,
        ("a child is 1", "child"): 1,
        ("task_succeeded", "child"): 1,
        ("task_enqueued", "child_async"): 1,
        ("task_started", "child_async"): 1,
        ("child_async", "child_async"): 1,
        ("task_succeeded", "child_async"): 1,
        ("task_enqueued", "body"): 2,
        ("task_started", "body"): 2,
        ("task_failed", "body"): 1,
        ("dead_letter", "body"): 1,
        ("task_succeeded", "body"): 1,
    }
    of_request = [line for line in lines(service) if line.get("correlation_id") == "request-1"]
    for line in of_request:
        missing = OF_A_TASK - line.keys()
        assert not missing or (line["event"] == "task_enqueued" and missing == {"worker"}), line

    def first(event: str, name: str) -> Line:
        return next(line for line in of_request if (line["event"], line["task_name"]) == (event, f"following.{name}"))

    # Who sent a task.
    assert "parent_id" not in first("task_enqueued", "start")
    assert first("task_enqueued", "child")["parent_id"] == task
    [replayed] = wait_for(service, event="task_enqueued", replayed_from=letter["id"])
    assert (replayed["task_id"], replayed["queue"]) == (letter["id"], "default")

    retrying, succeeded = first("task_retrying", "start"), first("task_succeeded", "start")
    assert (retrying["reason"], retrying["countdown"], retrying["retries"]) == ("ConnectionError: not yet", 0, 0)
    assert succeeded["retries"] == 1
    assert 0 < succeeded["runtime"] < 30
    assert (succeeded["queue"], succeeded["worker"].partition("@")[0]) == ("default", "worker")

    # What tasks log themselves. Nothing of one stays for the next.
    assert first("a child is 1", "child").items() >= {"customer": 5, "logger": "by.hand", "level": "warning"}.items()
    by_structlog = first("child_async", "child_async")
    assert (by_structlog["number"], by_structlog["tenant"], by_structlog["password"]) == (2, "acme", "***")
    assert "tenant" not in first("task_started", "body")

    # The traceback is in one line, once, without secrets; arguments are nowhere.
    failed = first("task_failed", "body")
    assert failed["level"] == "error"
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("ValueError: not mended: token=*** redis://user:***@host/0")
    text = (service.folder / "log" / "json.log").read_text(encoding="utf-8")
    assert text.count("Traceback (most recent call last)") == 1
    assert str(service.notes) not in text
    assert not {"hunter2", "s3cr3t"} & set(text.replace('"', " ").replace(":", " ").split())


def test_the_id_ends_with_the_task(service: Service) -> None:
    first = send(service, "following.parent.delay()", "request-2")
    inner = service.result(first)["result"]
    assert service.result(inner)["result"] == "another"
    # Without an id that was given, it is the id of the task.
    alone = service.send("following.tell.delay()")
    assert service.result(alone)["result"] == alone
    # One id for all tasks of a canvas.
    ids = "group(following.tell.s(), chain(following.tell.si(), following.tell.si())).delay().get(timeout=30)"
    [one, other] = service.python(ids)
    assert one == other


def test_a_message_that_is_delivered_again(service: Service, worker: Worker) -> None:
    task = send(service, "probe.interrupted.delay(notes, 'x', 60)", "request-3")
    service.wait_for_line("start x")
    worker.kill_child()
    service.result(task, seconds=60)
    started = wait_for(service, 2, event="task_started", task_id=task)
    assert [line.get("redelivered") for line in started] == [None, True]
    assert {line["correlation_id"] for line in started} == {"request-3"}
    assert len(wait_for(service, event="task_succeeded", task_id=task)) == 1
    [lost] = [line for line in lines(service) if line.get("task_id") == task and line["level"] == "error"]
    assert lost["event"] == "task_process_lost"
    assert lost["error"].startswith("WorkerLostError: ")
    assert lost.keys() >= OF_A_TASK
    assert "exception" not in lost


def test_what_the_main_process_ends(service: Service, worker: Worker) -> None:
    """Time limits, lost processes, revoked tasks: lines of it have the ids too."""
    hard = send(service, "failing.hang.apply_async((notes,), link_error=following.tell.si())", "request-4")
    [letter] = service.wait_for_letters()
    assert letter["id"] == hard
    wait_for(service, event="task_succeeded", correlation_id="request-4")
    counts = events(service, "request-4")
    assert counts["task_failed", "hang"] == counts["dead_letter", "hang"] == 1
    [failed] = wait_for(service, event="task_failed", task_id=hard)
    assert failed["error"].startswith("TimeLimitExceeded")
    assert failed.keys() >= OF_A_TASK

    service.python("celery.control.revoke('revoked-1')")
    worker.wait_for("Tasks flagged as revoked: revoked-1")
    send(service, "probe.work.apply_async((notes, 'x'), task_id='revoked-1')", "request-5")
    [revoked] = wait_for(service, event="task_revoked", correlation_id="request-5")
    assert (revoked["task_id"], revoked["terminated"], revoked["expired"]) == ("revoked-1", False, False)
    assert revoked.keys() >= OF_A_TASK

    long = send(service, "probe.work.delay(notes, 'long', 60)", "request-6")
    service.wait_for_line("start long")
    service.python(f"celery.control.revoke({long!r}, terminate=True)")
    [revoked] = wait_for(service, event="task_revoked", correlation_id="request-6")
    assert (revoked["task_id"], revoked["terminated"]) == (long, True)


#: How a task ends → the event, its level, and the field and the text that say why.
ENDS = {
    "following.expected.delay()": ("task_failed", "info", "error", "LookupError: not there"),
    "following.unserialisable.delay()": ("task_failed", "error", "exception", "EncodeError"),
    "following.soft.delay()": ("task_failed", "error", "exception", "SoftTimeLimitExceeded"),
    "following.ignored.delay()": ("task_ignored", "info", "event", "task_ignored"),
    "failing.end.delay(notes, 'memory')": ("task_failed", "error", "exception", "MemoryError"),
    "failing.end.delay(notes, 'exit')": ("task_failed", "error", "exception", "SystemExit(3)"),
    "failing.end_async.delay(notes, 'recurse')": ("task_failed", "error", "exception", "RecursionError"),
    "probe.work.delay(notes, 'x')": ("task_succeeded", "info", "event", "task_succeeded"),
}


def test_each_end_has_one_line(service: Service) -> None:
    calls = ", ".join(ENDS)
    tasks = dict(zip(ENDS, service.python(f"[sent.id for sent in [{calls}]]"), strict=True))
    for call, (event, level, field, text) in ENDS.items():
        wait_for(service, event=event, task_id=tasks[call])
        ended = [
            line
            for line in lines(service)
            if line.get("task_id") == tasks[call]
            and line["event"] not in {"task_enqueued", "task_started", "dead_letter"}
            and line["logger"] != f"{service.project.slug}.tasks.probe"
        ]
        if "soft" in call:
            # Celery's warning in the main process stays: a task may catch the exception.
            ended = [line for line in ended if not line["event"].startswith("Soft time limit (1s) exceeded")]
        assert [(line["event"], line["level"]) for line in ended] == [(event, level)], ended
        assert text in ended[0][field]
        assert ended[0].keys() >= OF_A_TASK


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_other_pools(service: Service, pool: str) -> None:
    with service.worker(pool, "--pool", pool, "--concurrency", "4", "-Q", pool):
        told = service.python(
            "from celery_service import correlation\n"
            f"sent, pool = [], {pool!r}\n"
            "for number in range(20):\n"
            "    with correlation.bind(f'of {number}'):\n"
            "        sent += [following.tell.apply_async(queue=pool)]\n"
            "        sent += [following.tell_async.apply_async(queue=pool)]\n"
            "sent += [following.tell.apply_async(queue=pool)]\n"
            "[(each.id, each.get(timeout=60)) for each in sent]"
        )
    ids = [id_ for _, id_ in told]
    assert ids[:-1] == [f"of {number // 2}" for number in range(40)]
    assert ids[-1] == told[-1][0]
    of_pool = [line for line in lines(service) if str(line.get("worker")).startswith(f"{pool}@")]
    assert Counter(line["event"] for line in of_pool) == {"task_started": 41, "task_succeeded": 41}
    assert {line["task_id"]: line["correlation_id"] for line in of_pool} == dict(told)
    assert {line["queue"] for line in of_pool} == {pool}


def test_messages_that_can_not_run(service: Service) -> None:
    unknown = send(service, "celery.send_task('following.nowhere')", "request-7")
    # Which of the two comes first, depends on the broker.
    wait_for(service, event="dead_letter", correlation_id="request-7")
    wait_for(service, event="task_unknown", correlation_id="request-7")
    assert events(service, "request-7") == {
        ("task_enqueued", "nowhere"): 1,
        ("task_unknown", "nowhere"): 1,
        ("dead_letter", "nowhere"): 1,
    }
    [line] = wait_for(service, event="task_unknown")
    assert (line["task_id"], line["level"], line["queue"]) == (unknown, "error", "default")

    headers = {"task": "probe.work", "id": "broken-1", "celery_service_correlation_id": "request-8"}
    with kombu.Connection(service.variables["CELERY_BROKER_URL"]) as connection:
        channel: Any = connection.channel()
        message = channel.prepare_message(b"{", None, "application/json", "utf-8", headers)
        channel.basic_publish(message, exchange="", routing_key="default")
    wait_for(service, event="dead_letter", correlation_id="request-8")
    wait_for(service, event="task_rejected", correlation_id="request-8")
    assert events(service, "request-8") == {("task_rejected", "work"): 1, ("dead_letter", "work"): 1}
    [line] = wait_for(service, event="task_rejected", task_id="broken-1")
    assert line["reason"].startswith("DecodeError")

    task = send(service, "message.reject.delay('no customer')", "request-9")
    service.wait_for_letters(3)
    assert events(service, "request-9") == {
        ("task_enqueued", "reject"): 1,
        ("task_started", "reject"): 1,
        ("task_rejected", "reject"): 1,
        ("dead_letter", "reject"): 1,
    }
    [line] = wait_for(service, event="task_rejected", task_id=task)
    assert "no customer" in line["reason"]


def test_commands_log_to_standard_error(service: Service) -> None:
    command = ["celery", "-A", f"{service.project.slug}.celery", "send", f"{service.project.slug}.celery.hello_world"]
    done = run_command(service.project, command, service.variables, output=service.folder / "send")
    task = done.stdout.strip()
    [line] = [json.loads(each) for each in done.stderr.splitlines()]
    assert (line["event"], line["task_id"]) == ("task_enqueued", task)
    service.result(task)
