"""What is sent runs, once the way is free, whoever dies meanwhile: with workers of the tests' own."""

from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from support.project import InstalledProject
from support.servers import start_rabbitmq, start_redis, wait_until
from support.service import Service


def test_a_killed_worker_loses_nothing(service: Service) -> None:
    """On Redis, its lease must end first: see test_leases.py."""
    variables = {}
    if service.broker is service.redis:
        variables = {"CELERY_BROKER_TRANSPORT_OPTIONS": '{"visibility_timeout": 4}'}
    first = service.worker("first", **variables)
    task = service.send("probe.work.delay(notes, 'a', 1)")
    service.wait_for_line("start a")
    first.kill()
    with service.worker("second", **variables):
        assert service.result(task) == {"state": "SUCCESS", "result": "a"}
        assert service.lines() == ["start a", "start a", "end a"]


def test_a_busy_worker_leaves_messages_to_others(service: Service) -> None:
    with service.worker("busy") as busy:
        service.send("probe.work.delay(notes, 'long', 60)")
        service.wait_for_line("start long")
        service.send("[probe.work.delay(notes, key) for key in 'abc'][-1]")
        with service.worker("idle"):
            for key in "abc":
                service.wait_for_line(f"end {key}", seconds=30)
            assert "end long" not in service.lines()
        busy.kill()


def test_a_task_over_its_limit_ends_as_a_failure(service: Service) -> None:
    with service.worker(CELERY_TASK_TIME_LIMIT="2"):
        soft = service.result(service.send("probe.work.delay(notes, 'a', 30)"))
        assert soft["state"] == "FAILURE"
        assert "SoftTimeLimitExceeded" in soft["result"]
    with service.worker("hard", CELERY_TASK_TIME_LIMIT="2", CELERY_TASK_SOFT_TIME_LIMIT="none"):
        hard = service.result(service.send("probe.work.delay(notes, 'b', 30)"))
        assert hard["state"] == "FAILURE"
        assert "TimeLimitExceeded" in hard["result"]


def test_delays_work_on_a_broker_that_has_seen_no_worker(project: InstalledProject, tmp_path: Path) -> None:
    """And where the first one consumes a single queue."""
    with start_redis(tmp_path) as store, start_rabbitmq(tmp_path / "rabbitmq") as rabbitmq:
        variables = {"CELERY_BROKER_URL": rabbitmq.url, "CELERY_RESULT_BACKEND": store.url}
        with (
            Service(tmp_path, variables, broker=rabbitmq, redis=store, project=project) as service,
            service.worker("worker", "--concurrency=1", "-Q", "default") as worker,
        ):
            worker.wait_ready()
            task = service.send("probe.work.apply_async((notes, 'late'), countdown=2)")
            assert service.result(task)["state"] == "SUCCESS"
            assert "delayed_delivery" not in worker.text()


@pytest.mark.parametrize("broker_name", ["rabbitmq"], indirect=True)
def test_a_queue_that_is_created_by_name_has_the_same_type(service: Service) -> None:
    with (
        service.worker("worker", "--concurrency=1", "-Q", "named") as worker,
        kombu.Connection(service.broker.url) as to,
    ):
        worker.wait_ready()
        task = service.send("probe.work.apply_async((notes, 'a'), queue='named', countdown=5)")
        channel: Any = to.channel()
        # RabbitMQ keeps it, in the queue for the highest bit of 5.
        wait_until(
            lambda: channel.queue_declare("celery_delayed_2", passive=True).message_count, 4, "a message in there"
        )
        assert service.result(task)["state"] == "SUCCESS"
        # Declaring it anew raises an exception where its kind is another one.
        channel.queue_declare("named", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_the_length_of_a_list_is_the_number_of_waiting_messages_on_redis(service: Service) -> None:
    service.python("for priority in (0, 5, 9, 9): hello_world.apply_async(priority=priority)")
    with redis.Redis.from_url(service.redis.url) as client:
        assert [client.llen(queue) for queue in ("high_priority", "default", "low_priority")] == [2, 1, 1]


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_a_worker_leaves_dead_letters_alone_unless_asked(service: Service) -> None:
    task = service.send("probe.work.apply_async((notes, 'dead'), queue='dead_letter')")
    with service.worker():
        assert service.result(service.send("probe.work.delay(notes, 'alive')"))["state"] == "SUCCESS"
    assert service.lines() == ["start alive", "end alive"]
    with service.worker("asked", "--concurrency=1", "-Q", "dead_letter"):
        assert service.result(task)["state"] == "SUCCESS"


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_urgent_tasks_overtake_on_redis(service: Service) -> None:
    service.send("[probe.work.delay(notes, f'normal{i}') for i in range(5)][0]")
    service.send("probe.work.apply_async((notes, 'later'), priority=0)")
    last = service.send("probe.work.apply_async((notes, 'urgent'), priority=9)")
    with service.worker():
        service.result(last)
        service.wait_for_line("end later")
    ended = [line for line in service.lines() if line.startswith("end")]
    assert ended[0] == "end urgent"
    assert ended[-1] == "end later"
