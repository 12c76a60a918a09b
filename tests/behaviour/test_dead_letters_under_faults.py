"""Dead letters while workers die and servers go away."""

import re

import pytest

from support.servers import wait_until
from support.service import Service


def test_a_message_that_kills_its_worker_stops_after_three_deliveries(service: Service) -> None:
    variables = {}
    if service.broker is service.redis:
        variables = {"CELERY_BROKER_TRANSPORT_OPTIONS": '{"visibility_timeout": 3}'}
    task = service.send("failing.poison.delay(notes, 'worker')")
    for number in range(1, 4):
        worker = service.worker(f"worker{number}", **variables)
        wait_until(lambda n=number: len(service.lines()) == n, 60, f"delivery {number}")
        worker.wait()
        worker.kill()
    with service.worker("last", **variables):
        [letter] = service.wait_for_letters()
        assert service.result(task)["state"] == "FAILURE"
    assert (letter["id"], letter["reason"], letter["deliveries"]) == (task, "poison", 3)
    assert service.lines() == ["poison"] * 3


# On Redis, dead letters are with the broker: without it, there is nothing to read either.
@pytest.mark.parametrize("broker_name", ["rabbitmq"], indirect=True)
def test_a_replay_that_can_not_be_sent_keeps_the_record(service: Service) -> None:
    with service.worker():
        service.send("failing.fail.delay(notes, 'x')")
        service.wait_for_letters()
    service.broker.stop()
    try:
        done = service.dead_letters("replay", "--yes")
        assert done.returncode == 1
        assert "is kept: it can't be sent" in done.stderr
        assert len(service.letters()) == 1
    finally:
        service.broker.start()


def test_the_number_of_records_is_bounded(service: Service) -> None:
    with service.worker(DEAD_LETTERS_MAX_COUNT="3"):
        last = service.send("[failing.fail.delay(notes, str(i)) for i in range(5)][-1]")
        service.result(last)
        wait_until(lambda: any(letter["id"] == last for letter in service.letters()), 30, "the last one")
        assert [letter["args"][1] for letter in service.letters()] == ["2", "3", "4"]


# Dead letters are in the Redis of the results, whatever the broker is.
@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_the_bytes_of_records_are_bounded(service: Service) -> None:
    with service.worker(DEAD_LETTERS_MAX_BYTES="20000") as worker:
        for number in range(6):
            last = service.send(f"failing.fail.delay(notes, '{number}', more='x' * 4000)")
        wait_until(lambda: any(letter["id"] == last for letter in service.letters()), 30, "the last one")
        kept = [letter["args"][1] for letter in service.letters()]
        assert kept == ["0", "1", "2", "3", "4", "5"][-len(kept) :]
        assert 2 <= len(kept) <= 4
        worker.wait_for('"event": "dead_letters_dropped".*"max_bytes": 1')

        # One that is larger than all may be is kept without what makes it large.
        large = service.send("failing.fail.delay(notes, 'large', more='x' * 30000)")
        wait_until(lambda: service.letters()[-1]["id"] == large, 30, "the large one")
        others = [letter["args"][1] for letter in service.letters()[:-1]]
        assert others in (kept, kept[1:])
        assert service.letters()[-1]["error"] == "RuntimeError: no large"
        worker.wait_for(f'"event": "dead_letter_too_large".*"task_id": "{large}"')
        done = service.dead_letters("replay", large, "--yes")
        assert done.returncode == 1
        assert re.search(f"{large} is kept: it had 3[0-9]+ bytes, so its arguments were not kept", done.stderr)


def test_nothing_is_acknowledged_before_the_record_is_kept_for_good(service: Service) -> None:
    with service.worker("worker", "--concurrency=2") as worker:
        tasks = [
            service.send("failing.slow_fail.delay(notes)"),
            # Here nothing waits for the result store before the dead letter does.
            service.send("failing.slow_fail.apply_async((notes,), ignore_result=True)"),
        ]
        wait_until(lambda: len(service.lines()) == 2, 30, "two tasks")
        service.redis.stop()
        (service.folder / "fail now").touch()
        server = re.escape(f'"server": "{service.redis.url}"')
        worker.wait_for(f'"event": "result_backend_away".*"task_id": "{tasks[0]}".*{server}')
        worker.wait_for(f'"event": "dead_letter_waits".*"task_id": "{tasks[1]}".*{server}')
        service.redis.start()
        assert sorted(letter["id"] for letter in service.wait_for_letters(2)) == sorted(tasks)
        service.redis.restart()
        assert len(service.letters()) == 2
