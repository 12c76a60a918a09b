"""A task ends in a result, a retry or a dead letter; and what one can do with a dead letter."""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.service import Service

#: A worker waits so many seconds for the result of a child that has died; by default, ten.
SOON = {"CELERY_WORKER_LOST_WAIT": "1"}


@pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))
def of_the_broker(
    request: pytest.FixtureRequest,
    project: InstalledProject,
    service_on: Callable[[str, InstalledProject, Path], AbstractContextManager[Service]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Service, Worker]]:
    """A service with one worker for all tests, which ends in order."""
    folder = tmp_path_factory.mktemp(request.param)
    with service_on(request.param, project, folder) as service, service.worker(**SOON) as worker:
        worker.wait_ready()
        yield service, worker


@pytest.fixture
def service(of_the_broker: tuple[Service, Worker]) -> Service:
    """The same without what the test before has left."""
    service, _ = of_the_broker
    (service.folder / "mended").unlink(missing_ok=True)
    assert service.dead_letters("purge", "--yes").returncode == 0
    service.notes.write_text("")
    return service


@pytest.fixture
def worker(of_the_broker: tuple[Service, Worker]) -> Worker:
    """The worker."""
    _, worker = of_the_broker
    return worker


def test_a_failure_keeps_its_story(service: Service) -> None:
    task = service.send("failing.fail.apply_async((notes, 'x'), {'more': [1]}, headers={'tenant': 'acme'})")
    assert service.result(task)["state"] == "FAILURE"
    [letter] = service.wait_for_letters()
    assert letter["id"] == letter["correlation_id"] == task
    assert letter["task"] == "failing.fail"
    assert (letter["args"], letter["kwargs"]) == ([str(service.notes), "x"], {"more": [1]})
    assert letter["options"]["headers"] == {"tenant": "acme"}
    assert (letter["reason"], letter["error"]) == ("failure", "RuntimeError: no x")
    assert 'raise RuntimeError(f"no {key}")' in letter["traceback"]
    assert letter["queue"] == "default"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", letter["failed_at"])


def test_a_task_that_succeeds_in_the_end_leaves_none(service: Service) -> None:
    assert service.result(service.send("failing.flaky.delay(notes, 2)"))["state"] == "SUCCESS"
    assert service.letters() == []


def test_retries_are_counted_and_keep_their_headers(service: Service) -> None:
    service.result(service.send("failing.flaky.apply_async((notes, 9), headers={'tenant': 'acme'})"))
    [letter] = service.wait_for_letters()
    assert letter["retries"] == 3
    assert letter["options"]["headers"] == {"tenant": "acme"}
    assert len(service.lines()) == 4


def test_a_hard_time_limit(service: Service) -> None:
    task = service.send("failing.hang.apply_async((notes,), headers={'tenant': 'acme'})")
    [letter] = service.wait_for_letters()
    assert (letter["id"], letter["reason"]) == (task, "time_limit")
    assert letter["args"] == [str(service.notes)]
    assert letter["options"]["headers"] == {"tenant": "acme"}


def test_a_hard_time_limit_of_its_own_is_kept_in_a_retry(service: Service) -> None:
    task = service.send("failing.limited.delay(notes)")
    assert service.result(task) == {"state": "FAILURE", "result": "SoftTimeLimitExceeded()"}
    assert service.lines() == ["start", "start"]
    [letter] = service.wait_for_letters()
    assert (letter["id"], letter["retries"], letter["options"]["time_limit"]) == (task, 1, 2)


def test_a_hard_time_limit_of_a_message_is_kept_when_it_comes_again(service: Service, worker: Worker) -> None:
    task = service.send("probe.work.apply_async((notes, 'a', 60), time_limit=8)")
    service.wait_for_line("start a")
    worker.kill_child()
    assert service.result(task) == {"state": "FAILURE", "result": "SoftTimeLimitExceeded()"}
    assert service.lines() == ["start a", "start a"]


@pytest.mark.parametrize("how", ["memory", "exit", "recursion"])
def test_a_task_that_could_end_the_worker_only_fails(service: Service, how: str) -> None:
    task = service.send(f"failing.end.delay(notes, {how!r})")
    error = {
        "memory": "MemoryError()",
        "exit": "RuntimeError('the task raised SystemExit(3)')",
        "recursion": "RecursionError('maximum recursion depth exceeded')",
    }[how]
    assert service.result(task) == {"state": "FAILURE", "result": error}
    [letter] = service.wait_for_letters()
    assert (letter["id"], letter["reason"], letter["retries"]) == (task, "failure", 0)
    assert service.result(service.send("hello_world.delay()"))["state"] == "SUCCESS"
    assert service.lines() == ["start"]


def test_a_poison_message_stops_after_three_deliveries(service: Service) -> None:
    task = service.send("failing.poison.delay(notes, 'child')")
    [letter] = service.wait_for_letters()
    outcome = service.result(task)
    assert outcome["state"] == "FAILURE"
    assert "PoisonMessage" in outcome["result"]
    assert (letter["id"], letter["reason"], letter["deliveries"]) == (task, "poison", 3)
    assert service.lines() == ["poison"] * 3


def test_an_unknown_task(service: Service) -> None:
    task = service.send("celery.send_task('no.such.task', (1, 2))")
    [letter] = service.wait_for_letters()
    assert service.result(task)["state"] == "FAILURE"
    assert (letter["id"], letter["task"], letter["reason"]) == (task, "no.such.task", "unknown_task")
    assert letter["args"] == [1, 2]
    assert "no task is named 'no.such.task'" in letter["error"]


@pytest.mark.parametrize("text", ["this is not JSON", '{"valid": "but no task"}', "[1, 2, 3]", "grün \0"])
def test_what_is_no_message_does_not_stop_the_worker(service: Service, text: str) -> None:
    _publish(service, text)
    [letter] = service.wait_for_letters()
    assert service.result(service.send("hello_world.delay()"))["state"] == "SUCCESS"
    assert (letter["task"], letter["reason"], letter["body"]) == (None, "undecodable", text)
    replayed = service.dead_letters("replay", "--yes")
    assert replayed.returncode == 1
    assert "is kept: it is no task" in replayed.stderr


def _publish(service: Service, text: str) -> None:
    if service.broker is service.redis:
        with redis.Redis.from_url(service.redis.url) as client:
            client.lpush("default", text)
        return
    with kombu.Connection(service.broker.url) as connection:
        channel: Any = connection.channel()
        message = channel.prepare_message(text, None, "application/json", "utf-8")
        channel.basic_publish(message, exchange="default", routing_key="default")


def test_replay_runs_each_once_and_says_where_it_comes_from(service: Service) -> None:
    kept = service.send("failing.fail.delay(notes, 'kept')")
    again = service.send("failing.fail.delay(notes, 'again')")
    service.wait_for_letters(2)
    service.notes.write_text("")

    dry = service.dead_letters("replay", again)
    assert "1 would be replayed; --yes does it" in dry.stdout
    assert len(service.letters()) == 2

    (service.folder / "mended").touch()
    done = service.dead_letters("replay", again, "--yes")
    assert (done.returncode, done.stdout) == (0, "1 replayed, 0 kept\n"), done.stderr
    service.wait_for_line(f"mended again {again}")
    assert service.lines() == [f"mended again {again}"]
    assert service.result(again) == {"state": "SUCCESS", "result": "again"}
    assert [letter["id"] for letter in service.letters()] == [kept]


def test_filters_and_purge(service: Service) -> None:
    service.send("failing.fail.delay(notes, 'one')")
    service.send("failing.other.delay()")
    service.wait_for_letters(2)
    assert [letter["task"] for letter in service.letters("--task", "failing.o*")] == ["failing.other"]
    assert [letter["task"] for letter in service.letters("--error", "no one")] == ["failing.fail"]
    assert service.letters("--older", "1h") == []
    assert len(service.letters("--newer", "1h")) == 2
    assert "1 would be dropped" in service.dead_letters("purge", "--task", "failing.other").stdout
    assert service.dead_letters("purge", "--task", "failing.other", "--yes").stdout == "1 dropped\n"
    assert [letter["task"] for letter in service.letters()] == ["failing.fail"]
    unknown = service.dead_letters("show", "no-such-id")
    assert (unknown.returncode, unknown.stderr) == (1, "Error: no dead letter has the id no-such-id\n")
    wrong = service.dead_letters("list", "--older", "soon")
    assert "'soon' is no span of time; write 90s, 15m, 6h or 7d" in wrong.stderr
