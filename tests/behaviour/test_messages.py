"""Messages that are odd, late or broken: a task that can run runs, and a worker survives all others."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import kombu
import pytest
import redis

from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.publisher import run_command
from support.servers import wait_until
from support.service import Service


@pytest.fixture
def service(of_the_broker: tuple[Service, Worker]) -> Iterator[Service]:
    """The same without what the test before has left. Its worker must survive each test."""
    service, worker = of_the_broker
    assert service.dead_letters("purge", "--yes").returncode == 0
    service.notes.write_text("")
    yield service
    assert worker.process.poll() is None
    assert not re.search("Unrecoverable error|Connection to broker lost", worker.text())


def test_a_delay_of_less_than_a_second(service: Service) -> None:
    calls = (
        "message.echo.apply_async((0,), countdown=0.4)",
        "message.echo.apply_async((0,), eta=datetime.now(UTC) + timedelta(seconds=0.4))",
        "message.echo.apply_async((0,), eta=(datetime.now(UTC) + timedelta(seconds=0.4)).isoformat())",
        "celery.send_task('message.echo', (0,), countdown=0.4)",
        "chain(message.echo.si(1), message.echo.si(0).set(countdown=0.4)).delay()",
    )
    tasks = service.python(f"from datetime import UTC, datetime, timedelta\n[each.id for each in [{', '.join(calls)}]]")
    assert [service.result(task) for task in tasks] == [{"state": "SUCCESS", "result": 0}] * 5
    assert service.letters() == []


def test_a_retry_after_less_than_a_second(service: Service) -> None:
    assert service.result(service.send("message.again.delay(0.4)")) == {"state": "SUCCESS", "result": 1}
    assert service.letters() == []


def test_a_task_that_has_expired_is_revoked(service: Service) -> None:
    service.send("message.occupy.delay(notes)")
    service.wait_for_line("occupied")
    task = service.send("message.echo.apply_async((0,), expires=1)")
    callback = service.send("chord([message.echo.si(1).set(expires=1), message.echo.si(2)])(message.echo.s())")
    expired = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > expired, 30, "both to expire")
    with service.notes.open("a") as notes:
        notes.write("go on\n")
    assert service.result(task) == {"state": "REVOKED", "result": "TaskRevokedError('expired')"}
    assert "TaskRevokedError" in service.result(callback)["result"]
    assert service.letters() == []


def test_a_task_that_rejects_its_message(service: Service) -> None:
    options = "headers={'tenant': 'acme'}, link_error=probe.work.si(notes, 'of error')"
    task = service.send(f"message.reject.apply_async(('no customer',), {options})")
    assert service.result(task)["state"] == "FAILURE"
    service.wait_for_line("end of error")
    # What the worker has settled before this one has its dead letter.
    service.result(service.send("message.echo.delay(0)"))
    [letter] = service.wait_for_letters()
    assert (letter["id"], letter["task"], letter["args"]) == (task, "message.reject", ["no customer"])
    assert letter["options"]["headers"] == {"tenant": "acme"}
    assert (letter["reason"], letter["error"]) == ("rejected", "Reject: no customer")
    assert service.lines() == ["start of error", "end of error"]


# --- text that isn't UTF-8 --------------------------------------------------------------------------------------------


def test_text_that_is_not_utf_8_arrives(service: Service) -> None:
    """As os.fsdecode gives the names of files."""
    name = "caf\udce9 \\udce9 \ud800 \U0001f600"
    task = service.send(f"message.echo.delay({[name]!a})")
    assert service.result(task) == {"state": "SUCCESS", "result": [name]}
    task = service.send(f"message.fail.delay(notes, {name!a})")
    assert service.result(task)["state"] == "FAILURE"
    [letter] = service.wait_for_letters()
    assert (letter["id"], letter["args"]) == (task, [str(service.notes), name])
    assert letter["error"] == f"RuntimeError: {name}"
    listed = service.dead_letters("list")
    assert (listed.returncode, listed.stdout.count(task)) == (0, 1), listed.stderr
    service.notes.write_text("mended\n")
    assert service.dead_letters("replay", "--yes").returncode == 0
    service.wait_for_line(ascii(name))


# --- messages that nobody of this project sends -----------------------------------------------------------------------


JSON, PICKLE = "application/json", "application/x-python-serialize"


def publish(service: Service, body: str | bytes, headers: Any, content: str = JSON, queue: str = "default") -> None:
    """Send a message as a program does that has neither Celery nor our code."""
    with kombu.Connection(service.broker.url) as connection:
        channel: Any = connection.channel()
        message = channel.prepare_message(body, None, content, "utf-8", headers)
        channel.basic_publish(message, exchange="", routing_key=queue)


def nested(depth: int) -> str:
    return f"[[{'[' * depth}{']' * depth}], {{}}, {{}}]"


def test_arguments_can_be_nested_100_levels_deep(service: Service) -> None:
    code = """
from celery_service.tasks.arguments import InvalidArguments
def nested(depth, value=0):
    return nested(depth - 1, [value]) if depth else value
def sent(call):
    try:
        return call().get(timeout=30)
    except InvalidArguments as error:
        return str(error)
deep = nested(101)
"""
    assert service.python(f"{code}sent(lambda: message.echo.delay(nested(100))) == nested(100)")
    calls = (
        "message.echo.delay(deep)",
        "message.echo.delay(value={'a': nested(100)})",
        "chain(message.echo.si(1), message.echo.si(deep)).delay()",
        "group(message.echo.s(deep)).delay()",
    )
    says = "message.echo: an argument is nested deeper than 100 levels"
    assert service.python(f"{code}[sent(each) for each in [{', '.join(f'lambda: {each}' for each in calls)}]]") == [
        says
    ] * len(calls)


@pytest.mark.parametrize("depth", [101, 500, 100_000])
def test_a_message_with_deeper_nesting_becomes_a_dead_letter(service: Service, depth: int) -> None:
    task = str(uuid4())
    publish(service, nested(depth), {"task": "message.echo", "id": task})
    [letter] = service.wait_for_letters()
    assert (letter["id"], letter["task"], letter["reason"]) == (task, "message.echo", "undecodable")
    assert service.result(task)["state"] == "FAILURE"
    assert letter["body"] == nested(depth)
    replayed = service.dead_letters("replay", "--yes")
    assert (replayed.returncode, replayed.stdout) == (1, "0 replayed, 1 kept\n")


TASK: dict[str, Any] = {"task": "message.echo", "id": "an-id"}
BODY = "[[1], {}, {}]"

#: Headers of messages, each with the values that it can't have.
WRONG: dict[str, list[Any]] = {
    "task": [5, [], {}],
    "id": [None, 5, [], {}, ""],
    "timelimit": [5, "abc", [1], ["a", "b"], {}, [None, 1e300], [10**9, None]],
    "eta": [5, "soon", [], "0001-01-01T00:00:00+14:00"],
    "expires": ["soon", []],
    "stamped_headers": [5, [5], "abc"],
    "stamps": [5],
    "compression": ["none"],
    "own": [json.loads("[" * 150 + "]" * 150)],
}
#: Bodies of messages that can't be read, or have no arguments for a task.
UNREADABLE: list[str | bytes] = [
    *("", "null", "5", '"text"', "[1, 2]", "{}", "[1, {}, {}]", "[[], [], {}]", "[[], {}, 5]", "[[1], {}, {}", b"\xff"),
    '[[{"__type__": "uuid", "__value__": 5}], {}, {}]',
    '[[{"__type__": "nothing", "__value__": 5}], {}, {}]',
]
#: Bodies of messages without headers.
OLD = ["[]", BODY, '{"task": "message.echo"}', '{"task": [], "id": "an-id"}', '{"task": "message.echo", "id": 5}']


def test_no_message_ends_a_worker(service: Service) -> None:
    sent = [
        *((TASK | {name: value}, BODY) for name, values in WRONG.items() for value in values),
        *((TASK, body) for body in UNREADABLE),
        *(({}, body) for body in OLD),
    ]
    for number, (headers, body) in enumerate(sent):
        own = {"id": f"id-{number}"} if headers.get("id") == "an-id" else {}
        publish(service, body, headers | own)
    publish(service, BODY, TASK | {"id": "pickle"}, PICKLE)
    publish(service, BODY, TASK | {"id": "png"}, "image/png")
    assert service.result(service.send("message.echo.delay(1)")) == {"state": "SUCCESS", "result": 1}
    letters = service.wait_for_letters(len(sent) + 2)
    assert {(letter["queue"], letter["reason"]) for letter in letters} == {("default", "undecodable")}
    told = "InvalidTaskError: the header timelimit can't be 5"
    [task] = [letter["id"] for letter in letters if letter["error"] == told]
    assert service.result(task)["state"] == "FAILURE"


def test_a_message_in_the_form_of_celery_3_runs(service: Service) -> None:
    task = str(uuid4())
    publish(service, json.dumps({"task": "message.echo", "id": task, "args": [1], "kwargs": {}}), {})
    assert service.result(task) == {"state": "SUCCESS", "result": 1}


@pytest.mark.parametrize("of_the_broker", on_one_worker("rabbitmq"), indirect=True)
def test_a_delayed_message_that_rabbitmq_gives_up_is_poison(service: Service) -> None:
    deaths = [{"reason": "delivery_limit", "queue": "low_priority"}, {"reason": "expired", "queue": "celery_delayed_0"}]
    publish(service, BODY, TASK | {"x-death": deaths}, queue="dead_letter")
    [letter] = service.wait_for_letters()
    assert (letter["reason"], letter["deliveries"], letter["queue"]) == ("poison", 20, "low_priority")


#: Parts of a message in Kombu's form that can't be what they are.
PARTS: list[dict[str, Any]] = [
    {"body": "!!!"},
    {"body": 5},
    {"body": None},
    {"headers": []},
    {"headers": "text"},
    {"headers": {"own": {"__type__": "nothing", "__value__": 5}}},
    {"properties": []},
    {"properties": {"body_encoding": "nothing"}},
    {"properties": {"delivery_info": "text"}},
    {"properties": {"delivery_info": [["a", "b"]]}},
]
MESSAGE: dict[str, Any] = {"body": "e30=", "properties": {"body_encoding": "base64"}, "headers": TASK}
#: What others may put into a queue: on Redis, a message is JSON of that form.
FOREIGN = [
    *(b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000, b"1" * 5000, b"1],[2"),
    *(json.dumps(MESSAGE | part).encode() for part in PARTS),
    b'{"body": "\t", "properties": {}}',
    b'{"body": "\xed\xa0\x80", "properties": {}}',
]


def test_text_that_is_not_a_message_does_not_end_a_worker(service: Service) -> None:
    if service.broker is service.redis:
        with redis.Redis.from_url(service.redis.url) as client:
            client.lpush("default", *FOREIGN)
    else:
        for text in FOREIGN:
            publish(service, text, {})
    assert service.result(service.send("message.echo.delay(1)")) == {"state": "SUCCESS", "result": 1}
    letters = service.wait_for_letters(len(FOREIGN))
    assert {(letter["queue"], letter["reason"]) for letter in letters} == {("default", "undecodable")}


def test_the_embedded_broker_logs_a_rejected_message(project: InstalledProject, tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("messages", "control", "results")}
    for folder in folders.values():
        Path(folder).mkdir()
    options = {"data_folder_in": folders["messages"], "data_folder_out": folders["messages"]}
    variables = {
        "CELERY_BROKER_URL": "filesystem://localhost",
        "CELERY_BROKER_TRANSPORT_OPTIONS": json.dumps(options | {"control_folder": folders["control"]}),
        "CELERY_RESULT_BACKEND": f"file://{folders['results']}",
    }
    with Worker(project, env=variables, log=tmp_path / "worker.log", arguments=["--pool=solo"]) as worker:
        worker.wait_ready()
        command = ["celery", "-A", f"{project.slug}.celery", "call", "message.reject", "--args", '["no customer"]']
        done = run_command(project, command, variables, output=tmp_path / "call")
        assert done.returncode == 0, done.stderr
        worker.wait_for('"reason": "rejected", "error": "Reject: no customer"')
