"""A task ends in a result, a retry or a dead letter; and what one can do with a dead letter."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from support.servers import wait_until
from support.service import Service

TASKS = Path(__file__).with_name("failing_tasks.py")


@pytest.fixture
def failing(service: Service) -> Service:
    """A service with tasks that fail in every way."""
    module = service.project.folder / service.project.slug / "tasks" / "failing.py"
    module.write_text(TASKS.read_text())
    return service


def command(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return service.project.celery("dead-letters", *arguments, env=service.variables)


def letters(service: Service, *filters: str) -> list[dict[str, Any]]:
    done = command(service, "list", "--json", *filters)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def send(service: Service, call: str) -> str:
    header = f"from {service.project.slug}.tasks import failing\n"
    return str(service.python(f"{header}print(json.dumps({call}.id))"))


def wait_for_letter(service: Service, *filters: str) -> dict[str, Any]:
    (letter,) = wait_until(lambda: letters(service, *filters), 60, f"a dead letter {filters}")
    assert isinstance(letter, dict)
    return letter


def test_a_failure_keeps_its_story(failing: Service) -> None:
    with failing.worker():
        task = send(failing, "failing.fail.apply_async((notes, 'x'), {'more': [1]}, headers={'tenant': 'acme'})")
        assert failing.result(task)["state"] == "FAILURE"
        letter = wait_for_letter(failing)
    assert letter["id"] == letter["correlation_id"] == task
    assert letter["task"] == "failing.fail"
    assert (letter["args"], letter["kwargs"]) == ([str(failing.notes), "x"], {"more": [1]})
    assert letter["options"]["headers"] == {"tenant": "acme"}
    assert (letter["reason"], letter["error"]) == ("failure", "RuntimeError: no x")
    assert 'raise RuntimeError(f"no {key}")' in letter["traceback"]
    assert letter["queue"] == "default"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", letter["failed_at"])


def test_a_task_that_succeeds_in_the_end_leaves_none(failing: Service) -> None:
    with failing.worker():
        assert failing.result(send(failing, "failing.flaky.delay(notes, 2)"))["state"] == "SUCCESS"
        assert letters(failing) == []


def test_retries_are_counted_and_keep_their_headers(failing: Service) -> None:
    with failing.worker():
        failing.result(send(failing, "failing.flaky.apply_async((notes, 9), headers={'tenant': 'acme'})"))
        letter = wait_for_letter(failing)
    assert letter["retries"] == 3
    assert letter["options"]["headers"] == {"tenant": "acme"}
    assert len(failing.lines()) == 4


def test_a_hard_time_limit(failing: Service) -> None:
    with failing.worker():
        task = send(failing, "failing.hang.apply_async((notes,), headers={'tenant': 'acme'})")
        letter = wait_for_letter(failing)
    assert (letter["id"], letter["reason"]) == (task, "time_limit")
    assert letter["args"] == [str(failing.notes)]
    assert letter["options"]["headers"] == {"tenant": "acme"}


@pytest.mark.parametrize("who", ["child", "worker"])
def test_a_poison_message_stops_after_three_deliveries(failing: Service, who: str) -> None:
    variables = {}
    if failing.broker is failing.redis and who == "worker":
        options = {"visibility_timeout": 3, "unacked_restore_interval": 1}
        variables = {"CELERY_BROKER_TRANSPORT_OPTIONS": json.dumps(options), "CELERY_TASK_TIME_LIMIT": "2"}
    task = send(failing, f"failing.poison.delay(notes, {who!r})")
    if who == "worker":
        for number in range(1, 4):
            worker = failing.worker(f"worker{number}", **variables)
            wait_until(lambda n=number: len(failing.lines()) == n, 60, f"delivery {number}")
            worker.wait()
            worker.kill()
    with failing.worker("last", **variables):
        letter = wait_for_letter(failing)
        assert failing.result(task)["state"] == "FAILURE"
    assert (letter["id"], letter["reason"], letter["deliveries"]) == (task, "poison", 3)
    assert failing.lines() == ["poison"] * 3


def test_an_unknown_task(failing: Service) -> None:
    with failing.worker() as worker:
        worker.wait_ready()
        task = failing.send("celery.send_task('no.such.task', (1, 2))")
        letter = wait_for_letter(failing)
        assert failing.result(task)["state"] == "FAILURE"
    assert (letter["id"], letter["task"], letter["reason"]) == (task, "no.such.task", "unknown_task")
    assert letter["args"] == [1, 2]
    assert "no task is named 'no.such.task'" in letter["error"]


@pytest.mark.parametrize("text", ["this is not JSON", '{"valid": "but no task"}', "[1, 2, 3]", "grün \0"])
def test_what_is_no_message_does_not_stop_the_worker(failing: Service, text: str) -> None:
    with failing.worker() as worker:
        worker.wait_ready()
        _publish(failing, text)
        letter = wait_for_letter(failing)
        assert failing.result(failing.send("hello_world.delay()"))["state"] == "SUCCESS"
        assert worker.process.poll() is None
    assert (letter["task"], letter["reason"], letter["body"]) == (None, "undecodable", text)
    replayed = command(failing, "replay", "--yes")
    assert replayed.returncode == 1
    assert "is kept: it is no task" in replayed.stderr


def _publish(service: Service, text: str) -> None:
    if service.broker is service.redis:
        redis.Redis.from_url(service.redis.url).lpush("default", text)
        return
    with kombu.Connection(service.broker.url) as connection:
        channel: Any = connection.channel()
        message = channel.prepare_message(text, None, "application/json", "utf-8")
        channel.basic_publish(message, exchange="default", routing_key="default")


def test_replay_runs_each_once_and_says_where_it_comes_from(failing: Service) -> None:
    with failing.worker():
        kept = send(failing, "failing.fail.delay(notes, 'kept')")
        again = send(failing, "failing.fail.delay(notes, 'again')")
        wait_until(lambda: len(letters(failing)) == 2, 30, "two dead letters")
        failing.notes.write_text("")

        dry = command(failing, "replay", again)
        assert "1 would be replayed; --yes does it" in dry.stdout
        assert len(letters(failing)) == 2

        (failing.folder / "mended").touch()
        done = command(failing, "replay", again, "--yes")
        assert (done.returncode, done.stdout) == (0, "1 replayed, 0 kept\n"), done.stderr
        failing.wait_for_line(f"mended again {again}")
        assert failing.lines() == [f"mended again {again}"]
        assert failing.result(again) == {"state": "SUCCESS", "result": "again"}
        assert [letter["id"] for letter in letters(failing)] == [kept]


# On Redis, dead letters are with the broker: without it, there is nothing to read either.
@pytest.mark.parametrize("broker_name", ["rabbitmq"], indirect=True)
def test_a_replay_that_can_not_be_sent_keeps_the_record(failing: Service) -> None:
    with failing.worker():
        send(failing, "failing.fail.delay(notes, 'x')")
        wait_for_letter(failing)
    failing.broker.stop()
    try:
        done = command(failing, "replay", "--yes")
        assert done.returncode == 1
        assert "is kept: it can't be sent" in done.stderr
        assert len(letters(failing)) == 1
    finally:
        failing.broker.start()


def test_filters_and_purge(failing: Service) -> None:
    with failing.worker():
        send(failing, "failing.fail.delay(notes, 'one')")
        send(failing, "failing.other.delay()")
        wait_until(lambda: len(letters(failing)) == 2, 30, "two dead letters")
    assert [letter["task"] for letter in letters(failing, "--task", "failing.o*")] == ["failing.other"]
    assert [letter["task"] for letter in letters(failing, "--error", "no one")] == ["failing.fail"]
    assert letters(failing, "--older", "1h") == []
    assert len(letters(failing, "--newer", "1h")) == 2
    assert "1 would be dropped" in command(failing, "purge", "--task", "failing.other").stdout
    assert command(failing, "purge", "--task", "failing.other", "--yes").stdout == "1 dropped\n"
    assert [letter["task"] for letter in letters(failing)] == ["failing.fail"]
    unknown = command(failing, "show", "no-such-id")
    assert (unknown.returncode, unknown.stderr) == (1, "Error: no dead letter has the id no-such-id\n")
    wrong = command(failing, "list", "--older", "soon")
    assert "'soon' is no span of time; write 90s, 15m, 6h or 7d" in wrong.stderr


def test_the_number_of_records_is_bounded(failing: Service) -> None:
    with failing.worker(DEAD_LETTERS_MAX_COUNT="3"):
        last = send(failing, "[failing.fail.delay(notes, str(i)) for i in range(5)][-1]")
        failing.result(last)
        wait_until(lambda: any(letter["id"] == last for letter in letters(failing)), 30, "the last one")
        assert [letter["args"][1] for letter in letters(failing)] == ["2", "3", "4"]


def test_dead_letters_survive_a_restart_of_redis(failing: Service) -> None:
    with failing.worker():
        send(failing, "failing.fail.delay(notes, 'x')")
        wait_for_letter(failing)
        failing.redis.restart()
        assert len(letters(failing)) == 1


def test_nothing_is_acknowledged_while_the_record_can_not_be_kept(failing: Service) -> None:
    with failing.worker() as worker:
        task = send(failing, "failing.slow_fail.delay(notes)")
        failing.wait_for_line("failing soon")
        failing.redis.stop()
        worker.wait_for("(?i)retry|connection", 20)
        failing.redis.start()
        assert wait_for_letter(failing)["id"] == task
