"""The record of a message that can't succeed: what it says, and how to send it again."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery_service.dead_letters.store import DeadLetters, redis_of
from celery_service.dead_letters.story import own_headers, story, story_of_message

from support.forks import Forks


def sent(app: Celery, *args: Any, headers: dict[str, Any], **options: Any) -> Any:
    """A message as a worker gets it."""
    celerys, properties, body, _ = app.amqp.as_task_v2("id", "tests.task", args, {"key": "é"}, **options)
    return SimpleNamespace(
        headers=celerys | headers,
        properties=properties,
        delivery_info={"routing_key": "high_priority"},
        body=json.dumps(body).encode(),
        decode=lambda: json.loads(json.dumps(body)),
    )


def test_the_story_of_a_message(app: Celery) -> None:
    message = sent(app, 1, 2, headers={"tenant": "acme"}, retries=2)
    record = story_of_message(message, reason="unknown_task", error="no task is named 'tests.task'")
    assert {name: record[name] for name in ("id", "task", "args", "kwargs", "queue", "retries", "reason")} == {
        "id": "id",
        "task": "tests.task",
        "args": [1, 2],
        "kwargs": {"key": "é"},
        "queue": "high_priority",
        "retries": 2,
        "reason": "unknown_task",
    }
    assert record["error"] == "no task is named 'tests.task'"
    assert record["options"]["headers"] == {"tenant": "acme"}
    assert record["options"]["task_id"] == "id"
    assert record["failed_at"].endswith("+00:00")
    json.dumps(record)


@pytest.mark.parametrize("body", ["\ud800 text", b"\xff\xfe", b"[1, 2", b"{}"])
def test_a_message_that_is_no_task_is_kept_as_text(body: str | bytes) -> None:
    def decode() -> Any:
        return json.loads(body)

    message = SimpleNamespace(headers={}, delivery_info=None, body=body, decode=decode)
    record = story_of_message(message, reason="failure", error="not a task")
    assert (record["task"], record["reason"], record["queue"]) == (None, "undecodable", "")
    assert record["error"] == "not a task"
    assert record["body"]


def test_what_rabbitmq_has_delayed_belongs_to_its_queue() -> None:
    delayed = "0." * 27 + "1." + "default"
    context = Context({"id": "a", "task": "t", "delivery_info": {"routing_key": delayed}})
    assert story(context, reason="failure", error="x")["queue"] == "default"


def test_only_the_senders_own_headers_are_kept() -> None:
    headers = {"id": "a", "task": "t", "lang": "py", "argsrepr": "()", "x-death": [], "_private": 1, "tenant": "acme"}
    assert own_headers(Context(headers)) == {"tenant": "acme"}


def test_without_redis_it_is_only_logged(app: Celery) -> None:
    assert redis_of(app) is None
    store = DeadLetters(app)
    assert not store.are_kept
    assert list(store) == []
    store.add(story(Context({"id": "a", "task": "t"}), reason="failure", error="x"))


def test_the_command_says_so(forks: Forks, service: Any) -> None:
    variables = {"CELERY_BROKER_URL": "memory://"}
    for command in (["list"], ["show", "a"], ["replay", "--yes"], ["purge", "--yes"]):
        arguments = ("-A", "my_service.celery", "dead-letters", *command)
        done = forks.celery(*arguments, folder=service, variables=variables)
        assert done.returncode == 1
        assert done.stderr == "Error: results are not in Redis here; dead letters are only logged\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--older", "soon"], "'soon' is no span of time; write 90s, 15m, 6h or 7d"),
        (["show"], "Missing argument 'ID'."),
    ],
)
def test_a_wrong_argument_of_the_command_is_said(forks: Forks, service: Any, arguments: list[str], says: str) -> None:
    command = ("-A", "my_service.celery", "dead-letters", *arguments)
    done = forks.celery(*command, folder=service, variables={"CELERY_BROKER_URL": "memory://"})
    assert done.returncode == 2
    assert says in done.stderr
