"""A task ends in a result, a retry or a dead letter; and what one can do with a dead letter."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu
import pytest
import redis

from support import environment
from support.project import Worker
from support.servers import wait_until
from support.service import Service
from support.terminal import Terminal

#: A worker waits so many seconds for the result of a child that has died; by default, ten.
SOON = {"CELERY_WORKER_LOST_WAIT": "1"}


@pytest.fixture
def service(of_the_broker: tuple[Service, Worker]) -> Service:
    """The same without what the test before has left."""
    service, _ = of_the_broker
    service.forget()
    return service


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


def test_retries_and_replays_stay_in_their_queue(service: Service) -> None:
    with service.worker("daily", "--concurrency=1", "--queues=reports.daily", "--hostname=daily@%h") as worker:
        worker.wait_ready()
        service.send("failing.later.apply_async((notes, 'a'), queue='reports.daily')")
        [letter] = service.wait_for_letters()
        assert (letter["queue"], letter["retries"]) == ("reports.daily", 2)
        assert service.dead_letters("replay", "--yes").returncode == 0
        wait_until(lambda: len(service.lines()) == 6, 30, "three more attempts")
    assert service.lines() == ["a on daily"] * 6


def test_replays_at_the_same_time_send_each_once(service: Service) -> None:
    service.python("for number in range(12): failing.fail.delay(notes, str(number))\n1")
    letters = service.wait_for_letters(12)
    service.notes.write_text("")
    (service.folder / "mended").touch()
    with redis.Redis.from_url(service.redis.url) as client:
        # Another replay is about to send this one.
        client.set(f"{service.project.slug}:dead-letters:records:{letters[5]['id']}", 1)

    def replay(_: int) -> subprocess.CompletedProcess[str]:
        return service.project.celery("dead-letters", "replay", "--yes", env=service.variables)

    with ThreadPoolExecutor() as pool:
        replays = list(pool.map(replay, range(2)))
    assert [each.returncode for each in replays] == [0, 0]
    assert sum(int(each.stdout.split()[0]) for each in replays) == 11
    for each in replays:
        assert re.fullmatch(r"[0-9]+ skipped, since another replay sends them\n", each.stderr)
    wait_until(lambda: len(service.lines()) == 11, 30, "11 tasks")
    assert [letter["id"] for letter in service.letters()] == [letters[5]["id"]]


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


def test_on_a_terminal_the_list_is_a_table_that_fits(service: Service) -> None:
    task = service.send("failing.fail.delay(notes, 'x' * 200)")
    service.wait_for_letters()
    project = service.project
    command = [project.program("celery"), "-A", f"{project.slug}.celery", "dead-letters"]
    env = environment.of_a_user(service.variables)
    with Terminal(*command, "list", cwd=project.folder, env=env, columns=90) as terminal:
        assert terminal.end() == 0
    head, line = terminal.shown.splitlines()
    assert head.split() == ["ID", "AGE", "REASON", "TASK", "ERROR"]
    assert len(line) <= 90
    assert re.fullmatch(rf"{task}  \d+ s +failure  failing.fail +RuntimeError: no x+…", line)

    with Terminal(*command, "purge", "--yes", cwd=project.folder, env=env, columns=90) as terminal:
        assert terminal.end() == 0
    assert re.search(r"Purging .*100%", terminal.shown)
    assert terminal.shown.endswith("1 dropped\r\n")
    # Where nobody watches, a line is complete and there is no progress.
    assert service.dead_letters("list").stdout == ""


def test_the_callback_of_a_chord_runs_when_its_tasks_have_succeeded_by_replay(service: Service) -> None:
    parts = (
        "failing.fail.s(notes, 'a')",
        "chain(failing.fail.s(notes, 'c'), typed.text.s())",
        "chain(typed.text.s('b'), group(typed.text.s(), typed.text.si('d')))",
    )
    call = f"chord([{', '.join(parts)}])"
    callback = service.send(f"{call}(failing.collect.s(notes))")
    letters = service.wait_for_letters(3)
    assert service.result(callback)["state"] == "FAILURE"
    [waiting] = [letter for letter in letters if letter["reason"] == "chord"]
    members = [letter["id"] for letter in letters if letter is not waiting]
    assert (waiting["id"], waiting["task"]) == (callback, "failing.collect")
    assert re.fullmatch(r"failing\.fail\[.+\] of its chord failed: RuntimeError: no [ac]", waiting["error"])

    before = service.dead_letters("replay")
    assert "2 would be replayed; --yes does it" in before.stdout
    assert re.search(f"{callback} would be kept: .+ of its chord (is FAILURE|have not ended)", before.stderr)
    assert "replay its callback: dead-letters replay --reason chord" in before.stderr

    (service.folder / "mended").touch()
    done = service.dead_letters("replay", *members, "--yes")
    assert (done.returncode, done.stdout) == (0, "2 replayed, 0 kept\n"), done.stderr
    done = wait_until(lambda: _replayed(service, callback), 30, "the tasks to succeed")
    assert done.stdout == "1 replayed, 0 kept\n"
    results = ["a", "c", ["b", "d"]]
    service.wait_for_line(f"collected {results}")
    assert service.result(callback) == {"state": "SUCCESS", "result": results}
    assert service.letters() == []


def test_replay_says_that_it_can_not_run_a_group_after_a_chord(service: Service) -> None:
    callbacks = "group(failing.collect.s(notes), failing.collect.s(notes))"
    service.python(f"chord([failing.fail.s(notes, 'a'), typed.text.s('b')])({callbacks})\n1")
    [waiting] = [letter for letter in service.wait_for_letters(2) if letter["reason"] == "chord"]
    before = service.dead_letters("replay", waiting["id"])
    assert before.stdout == "0 would be replayed; --yes does it\n"
    assert f"{waiting['id']} would be kept: its callback is a group" in before.stderr


def _replayed(service: Service, letter: str) -> Any:
    done = service.dead_letters("replay", letter, "--yes")
    return done if done.returncode == 0 else None
