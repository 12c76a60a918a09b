"""Dead letters while workers die and servers go away."""

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


def test_nothing_is_acknowledged_before_the_record_is_kept_for_good(service: Service) -> None:
    with service.worker() as worker:
        task = service.send("failing.slow_fail.delay(notes)")
        service.wait_for_line("failing soon")
        service.redis.stop()
        worker.wait_for("(?i)retry|connection", 20)
        service.redis.start()
        assert [letter["id"] for letter in service.wait_for_letters()] == [task]
        service.redis.restart()
        assert len(service.letters()) == 1
