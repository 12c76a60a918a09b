"""On Redis, no message is lost while a worker takes it. See brokers/redis/ in the library."""

from typing import Any

import celery
import kombu
import pytest
import redis

from support.servers import wait_until
from support.service import Service

pytestmark = pytest.mark.parametrize("broker_name", ["redis"], indirect=True)


def held(service: Service) -> int:
    """Return the number of messages that workers hold, including dead workers."""
    with redis.Redis.from_url(service.redis.url) as client:
        return int(client.hlen("unacked"))


def test_a_message_of_a_plain_celery_app_runs(service: Service) -> None:
    """Other services may send tasks as well. They don't wake our workers, which poll for such messages."""
    with service.worker() as worker, celery.Celery(broker=service.redis.url) as other:
        worker.wait_ready()
        other.send_task("probe.work", [str(service.notes), "foreign"], queue="default")
        service.wait_for_line("end foreign", 30)


def test_plain_celery_workers_take_over_messages_of_our_workers(service: Service) -> None:
    """During an update, both kinds of workers run. They record held messages in the same format."""
    with service.worker() as worker:
        worker.wait_ready()
        service.send("probe.work.delay(notes, 'a', 60)")
        service.wait_for_line("start a")
        worker.kill()
    options = {"visibility_timeout": 0.1, "priority_steps": [0]}
    with kombu.Connection(service.redis.url, transport_options=options) as connection:
        channel: Any = connection.default_channel

        def restored() -> Any:
            channel.qos.restore_visible()
            return channel.basic_get("default")

        assert wait_until(restored, 30, "the message to be back in its queue").headers["task"] == "probe.work"


def test_a_task_that_runs_while_the_connection_breaks_runs_once(service: Service) -> None:
    with service.worker() as worker:
        worker.wait_ready()
        task = service.send("probe.work.delay(notes, 'a', 3)")
        service.wait_for_line("start a")
        service.redis.restart()
        assert service.result(task) == {"state": "SUCCESS", "result": "a"}
        wait_until(lambda: not held(service), 30, "the task to be acknowledged")
        service.result(service.send("probe.work.delay(notes, 'b')"))
    assert service.lines() == ["start a", "end a", "start b", "end b"]


def test_messages_of_tasks_that_have_not_started_are_returned_when_the_connection_breaks(service: Service) -> None:
    """Well before the lease ends, which takes a minute."""
    with service.worker() as worker:
        worker.wait_ready()
        service.send("probe.work.apply_async((notes, 'later'), countdown=5)")
        wait_until(lambda: held(service) == 1, 30, "the worker to have the message")
        service.redis.restart()
        worker.wait_for("Connection to broker lost", 20)
        service.wait_for_line("end later", 30)


def test_a_worker_waits_while_redis_refuses_writes(service: Service) -> None:
    with service.worker("worker", "-c", "2") as worker, redis.Redis.from_url(service.redis.url) as client:
        worker.wait_ready()
        running = service.send("probe.work.delay(notes, 'a', 3)")
        service.wait_for_line("start a")
        # As a replica does, or a Redis whose disk is full.
        client.config_set("min-replicas-to-write", 1)
        worker.wait_for("can't fetch messages from Redis, trying again every second: NOREPLICAS", 20)
        service.wait_for_line("end a", 20)
        client.config_set("min-replicas-to-write", 0)
        worker.wait_for("fetching messages from Redis again", 20)
        assert service.result(running) == {"state": "SUCCESS", "result": "a"}
        assert service.result(service.send("probe.work.delay(notes, 'b')")) == {"state": "SUCCESS", "result": "b"}
        wait_until(lambda: not held(service), 30, "both to be acknowledged")
        assert worker.process.poll() is None
    assert service.lines() == ["start a", "end a", "start b", "end b"]


def test_a_worker_waits_if_redis_refuses_writes_when_it_starts(service: Service) -> None:
    with redis.Redis.from_url(service.redis.url) as client:
        client.config_set("min-replicas-to-write", 1)
        with service.worker() as worker:
            worker.wait_for("Redis doesn't let a worker start, trying again in a second: NOREPLICAS", 30)
            client.config_set("min-replicas-to-write", 0)
            worker.wait_ready()
            assert service.result(service.send("probe.work.delay(notes, 'a')")) == {"state": "SUCCESS", "result": "a"}
