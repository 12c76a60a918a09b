"""The record of a message that can't succeed."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery_service.brokers.queues import queue_of
from celery_service.dead_letters.store import DeadLetters, redis_of
from celery_service.dead_letters.story import own_headers, story, story_of_message
from kombu import Exchange, Queue

from support.forks import Forks


def sent(app: Celery, *args: Any, headers: dict[str, Any], **options: Any) -> Any:
    """A message as a worker receives it."""
    celerys, properties, body, _ = app.amqp.as_task_v2("id", "tests.task", args, {"key": "é"}, **options)
    return SimpleNamespace(
        headers=celerys | headers,
        properties=properties,
        delivery_info={"routing_key": "high_priority"},
        body=json.dumps(body).encode(),
        decode=lambda: json.loads(json.dumps(body)),
    )


def test_the_record_of_a_message(app: Celery) -> None:
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
def test_a_message_that_is_no_task_is_stored_as_text(body: str | bytes) -> None:
    def decode() -> Any:
        return json.loads(body)

    message = SimpleNamespace(headers={}, delivery_info=None, body=body, decode=decode)
    record = story_of_message(message, reason="failure", error="not a task")
    assert (record["task"], record["reason"], record["queue"]) == (None, "undecodable", "")
    assert record["error"] == "not a task"
    assert record["body"]


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queue"),
    [
        ("", "reports.daily", "reports.daily"),
        ("default", "default", "default"),
        ("mail", "letters", "post"),  # its name is neither
        ("numbers", "1.2.3", "figures"),  # its binding is a pattern
        ("celery_delayed_delivery", "0." * 27 + "1.default", "default"),
        ("celery_delayed_delivery", "0." * 27 + "1.1.0.letters", "old"),
        ("elsewhere", "unknown", None),
        (None, None, None),
    ],
)
def test_the_queue_of_a_message(
    monkeypatch: pytest.MonkeyPatch, app: Celery, exchange: str | None, routing_key: str | None, queue: str | None
) -> None:
    for name, its_exchange, its_key in (
        ("post", "mail", "letters"),
        ("old", "mail", "1.0.letters"),
        ("figures", "numbers", "#"),
    ):
        monkeypatch.setitem(app.amqp.queues, name, Queue(name, Exchange(its_exchange, "topic"), its_key))
    assert queue_of(app, {"exchange": exchange, "routing_key": routing_key}) == queue


def test_only_the_senders_own_headers_are_kept() -> None:
    headers = {"id": "a", "task": "t", "lang": "py", "argsrepr": "()", "x-death": [], "_private": 1, "tenant": "acme"}
    assert own_headers(Context(headers)) == {"tenant": "acme"}


def test_without_redis_a_dead_letter_is_only_logged(app: Celery) -> None:
    assert redis_of(app) is None
    store = DeadLetters(app)
    assert not store.are_kept
    assert list(store) == []
    store.add(story(Context({"id": "a", "task": "t"}), reason="failure", error="x"))


def test_the_command_says_that_dead_letters_are_only_logged(forks: Forks, service: Any) -> None:
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
def test_a_wrong_argument_of_the_command_is_explained(
    forks: Forks, service: Any, arguments: list[str], says: str
) -> None:
    command = ("-A", "my_service.celery", "dead-letters", *arguments)
    done = forks.celery(*command, folder=service, variables={"CELERY_BROKER_URL": "memory://"})
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.parametrize("command", [["dead-letters"], ["dead-letters", "replay"], ["worker"], []], ids=" ".join)
def test_help_needs_no_broker(forks: Forks, service: Any, command: list[str]) -> None:
    done = forks.celery("-A", "my_service.celery", *command, "--help", folder=service, variables={})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    done = forks.celery("-A", "my_service.celery", "dead-letters", "list", folder=service, variables={})
    assert done.returncode == 1
    assert done.stderr.startswith("CELERY_BROKER_URL is not set; ")
