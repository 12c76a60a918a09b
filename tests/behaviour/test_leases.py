"""Leases on Redis: a live worker keeps its messages, and the messages of a dead worker are taken over soon.

The four rules in brokers/redis/lease.py of the library have a test each. In most tests, a second worker consumes other
queues only: it runs no task of the test, and takes over messages without a valid lease.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celery
import pytest
import redis

from support.project import InstalledProject, Worker
from support.servers import wait_until
from support.service import Service, service_on_redis, service_on_sentinel

#: Seconds of a lease in these tests, but for those of the defaults. A busy machine must renew it in time.
LEASE = 4.0
POOLS = ("prefork", "solo", "threads")
#: The queue of workers that only take over.
ELSEWHERE = "elsewhere"


@pytest.fixture
def broker_name() -> str:
    """Redis only: RabbitMQ itself notices that a worker has died."""
    return "redis"


def worker(service: Service, name: str, *arguments: str, lease: float = LEASE, **variables: str) -> Worker:
    """Start a worker with a short lease."""
    options = json.loads(service.variables.get("CELERY_BROKER_TRANSPORT_OPTIONS", "{}")) | {"visibility_timeout": lease}
    arguments = arguments or ("--concurrency", "1")
    return service.worker(name, *arguments, **{"CELERY_BROKER_TRANSPORT_OPTIONS": json.dumps(options)} | variables)


@contextmanager
def bystander(service: Service, lease: float = LEASE) -> Iterator[Worker]:
    """Run a worker that takes over messages, but runs no task of the test."""
    with worker(service, "bystander", "--concurrency=1", "-Q", ELSEWHERE, lease=lease) as other:
        other.wait_ready()
        yield other


def start_long(service: Service, key: str, leases: float) -> str:
    """Send a task that takes this many leases, and wait until it has started."""
    task = service.send(f"probe.work.delay(notes, {key!r}, {leases * LEASE})")
    service.wait_for_line(f"start {key}")
    return task


def ends_once(service: Service, *keys: str, seconds: float = 60) -> None:
    """Wait until these tasks have ended and no message is held. Each task must have run once."""
    for key in keys:
        service.wait_for_line(f"end {key}", seconds)
    wait_until(lambda: not held(service), 20, "everything to be acknowledged")
    assert sorted(service.lines()) == sorted(f"{step} {key}" for key in keys for step in ("start", "end"))


def held(service: Service) -> int:
    """Return the number of messages that workers hold, including dead workers."""
    with redis.Redis.from_url(service.redis.url) as client:
        return int(client.zcard("unacked_index"))


# --- the defaults -----------------------------------------------------------------------------------------------------


def test_a_task_of_a_killed_worker_runs_on_another_worker_within_90_seconds(
    project: InstalledProject, tmp_path: Path
) -> None:
    """With a worker that already runs, and with one that starts after the kill. Both cases run in parallel."""
    with (
        service_on_redis(project, tmp_path / "there") as there,
        service_on_redis(project, tmp_path / "later") as later,
    ):
        first = {}
        for service in (there, later):
            first[service] = service.worker("first")
            service.send("probe.interrupted.delay(notes, 'a', 600)")
        for service in (there, later):
            service.wait_for_line("start a")
        with there.worker("second") as second:
            second.wait_ready()
            for service in (there, later):
                # As a plain Kombu worker leaves its lock that dies while it gives messages back.
                with redis.Redis.from_url(service.redis.url) as client:
                    client.set("unacked_mutex", "dead", ex=300)
                first[service].kill()
            killed = time.monotonic()
            with later.worker("second"):
                for service in (there, later):
                    service.wait_for_line("end a", 120)
                    assert time.monotonic() - killed < 90
                    assert service.lines() == ["start a", "start a", "end a"]
            second.wait_for(r"took over 1 messages from first@\S+, which has not renewed them")


# --- as long as one likes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_of_four_leases_and_a_countdown_of_three_run_once(service: Service, pool: str) -> None:
    arguments = (f"--pool={pool}", "--concurrency=2")
    with bystander(service), worker(service, "worker", *arguments, CELERY_TASK_TIME_LIMIT="none") as ours:
        ours.wait_ready()
        service.send(f"probe.work.apply_async((notes, 'later'), countdown={3 * LEASE})")
        start_long(service, "long", 4)
        ends_once(service, "long", "later")
        assert "lost the lease" not in ours.text()


def test_a_stopping_worker_waits_for_a_task_of_three_leases(service: Service) -> None:
    with bystander(service):
        stopping = worker(service, "worker", CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT="60")
        start_long(service, "long", 3)
        assert stopping.stop(60) == 0
        ends_once(service, "long")


# --- Redis goes away --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_task_survives_an_outage_of_redis_of_two_leases(service: Service, how: str) -> None:
    with bystander(service), worker(service, "worker"):
        task = start_long(service, "long", 5)
        if how == "stopped":
            service.redis.stop()
        else:
            service.redis.pause()
        time.sleep(2 * LEASE)  # the outage
        if how == "stopped":
            service.redis.start()
        else:
            service.redis.resume()
        ends_once(service, "long")
        assert service.result(task)["state"] == "SUCCESS"


def test_a_task_survives_if_redis_loses_its_data(project: InstalledProject, tmp_path: Path) -> None:
    with service_on_redis(project, tmp_path) as service, bystander(service), worker(service, "worker") as ours:
        task = start_long(service, "long", 3)
        with redis.Redis.from_url(service.redis.url) as client:
            client.flushall()
        ours.wait_for("lost the lease of 1 messages, which others may run as well: probe.work", 2 * LEASE)
        # `celery doctor` warns of it.
        answers = service.python("celery.control.broadcast('report_of_service', reply=True, timeout=30, limit=2)")
        reports = {name: report for answer in answers for name, report in answer.items()}
        assert {name.partition("@")[0]: report["leases_lost"] for name, report in reports.items()}["worker"] == 1
        ends_once(service, "long")
        assert service.result(task)["state"] == "SUCCESS"


def test_a_task_survives_a_failover_by_sentinel(project: InstalledProject, tmp_path: Path) -> None:
    """The replica, which becomes the master, has the leases."""
    with (
        service_on_sentinel(project, tmp_path) as (service, _),
        bystander(service) as other,
        worker(service, "worker") as ours,
    ):
        task = start_long(service, "long", 4)
        wait_until(lambda: held(service) == 1, 30, "the replica to know who holds the task")
        service.broker.kill()
        ours.wait_for("Connection to broker lost", 20)
        ends_once(service, "long")
        assert service.result(task) == {"state": "SUCCESS", "result": "long"}
        assert "took over" not in other.text()
        assert "lost the lease" not in ours.text()


# --- the rules --------------------------------------------------------------------------------------------------------

SHIFTED_CLOCK = """
import time
_time = time.time
time.time = lambda: _time() + {seconds}
"""


@pytest.mark.parametrize("seconds", [-86_400, 86_400], ids=["a day behind", "a day ahead"])
def test_rule_1_the_clock_of_a_worker_does_not_matter(service: Service, seconds: int) -> None:
    (service.folder / "sitecustomize.py").write_text(SHIFTED_CLOCK.format(seconds=seconds))
    with bystander(service):
        shifted = worker(service, "shifted", PYTHONPATH=str(service.folder))
        start_long(service, "long", 2)
        ends_once(service, "long")
        start_long(service, "killed", 60)
        shifted.kill()
        with worker(service, "second"):
            wait_until(lambda: service.lines().count("start killed") == 2, 6 * LEASE, "the task to run again")
            service.notes.write_text("")
            with redis.Redis.from_url(service.redis.url) as client:
                client.flushall()


def test_rule_2_the_first_worker_to_reconnect_takes_over_nothing(service: Service) -> None:
    """Redis is unreachable for longer than a lease. The worker that holds the task reconnects a little later."""
    with bystander(service) as other, worker(service, "worker") as ours:
        start_long(service, "long", 5)
        service.redis.stop()
        time.sleep(1.5 * LEASE)  # the outage
        os.killpg(ours.pid, signal.SIGSTOP)
        service.redis.start()
        with redis.Redis.from_url(service.redis.url) as client:
            # The other one is back, and renews.
            wait_until(lambda: other_is_connected(client), 20, "the other worker to be back")
        time.sleep(LEASE / 2)  # less than the lease that it must wait for
        os.killpg(ours.pid, signal.SIGCONT)
        ends_once(service, "long")
        assert "took over" not in other.text()


def other_is_connected(client: Any) -> bool:
    """Return whether a worker has run a script since this Redis was started."""
    return "cmdstat_eval" in client.info("commandstats")


def test_rule_3_a_plain_celery_worker_keeps_its_messages(service: Service) -> None:
    """A plain worker doesn't renew leases. Kombu's timeout of an hour applies to its messages."""
    plain = celery.Celery(broker=service.redis.url)
    service.send("probe.work.apply_async((notes, 'a'), queue='plain')")
    with bystander(service) as other, plain.connection_for_read() as connection:
        channel: Any = connection.channel()
        queue = connection.SimpleQueue("plain", channel=channel)
        message = queue.get(timeout=10)
        wait_until(lambda: held(service) == 1, 30, "the plain worker to hold it")
        until = time.monotonic() + 3 * LEASE
        wait_until(lambda: time.monotonic() > until or not held(service), 4 * LEASE, "three leases")
        assert held(service) == 1
        message.ack()
        assert "took over" not in other.text()


def test_rule_4_leases_of_running_tasks_are_renewed_on_the_next_connection(service: Service) -> None:
    with bystander(service), worker(service, "worker") as ours:
        start_long(service, "long", 4)
        service.redis.restart()
        ours.wait_for("Connection to broker lost", 20)
        ends_once(service, "long")


# --- frozen -----------------------------------------------------------------------------------------------------------


def test_a_worker_whose_event_loop_is_blocked_keeps_its_leases(service: Service) -> None:
    with bystander(service) as other, worker(service, "worker", "--concurrency=2") as ours:
        start_long(service, "long", 4)
        service.send(f"probe.block.delay({2 * LEASE})")
        ours.wait_for(f"the event loop was blocked for {2 * LEASE} s")
        assert "end long" not in service.lines()
        ends_once(service, "long")
        assert "took over" not in other.text()
        assert "lost the lease" not in ours.text()


@pytest.mark.parametrize("who", ["all its processes", "the main process"])
def test_a_worker_that_was_frozen_for_three_leases_logs_its_lost_leases(service: Service, who: str) -> None:
    with worker(service, "frozen") as frozen:
        task = start_long(service, "long", 2)
        with worker(service, "other") as other:
            other.wait_ready()
            freeze = os.killpg if who == "all its processes" else os.kill
            freeze(frozen.pid, signal.SIGSTOP)
            other.wait_for(r"took over 1 messages from frozen@\S+", 5 * LEASE)
            wait_until(lambda: service.lines().count("end long") >= 1, 5 * LEASE, "the task to end elsewhere")
            freeze(frozen.pid, signal.SIGCONT)
            frozen.wait_for(r"lost the lease of 1 messages, which others may run as well: probe.work\[", 2 * LEASE)
            wait_until(lambda: service.lines().count("end long") == 2, 4 * LEASE, "the first run to end as well")
            wait_until(lambda: not held(service), 30, "both to be acknowledged")
    assert service.lines().count("start long") == 2
    assert service.result(task)["state"] == "SUCCESS"


# --- the setting ------------------------------------------------------------------------------------------------------


def test_a_lease_of_hours_works_and_logs_a_warning(service: Service) -> None:
    with worker(service, "worker", lease=7200) as ours:
        ours.wait_for("visibility_timeout is 7200 s: what a dead worker held comes back after so long")
        assert service.result(service.send("probe.work.delay(notes, 'a')"))["state"] == "SUCCESS"


def test_replies_to_commands_need_no_acknowledgement(service: Service) -> None:
    """Nobody acknowledges replies."""
    with worker(service, "worker") as ours:
        ours.wait_ready()
        assert service.python("celery.control.inspect(timeout=30, limit=1).ping()")
        assert held(service) == 0


def test_all_messages_of_a_killed_worker_are_taken_over(service: Service) -> None:
    """There are more messages than the worker returns in one step."""
    count = 250
    killed = worker(service, "killed", "--concurrency=1", "--prefetch-multiplier=1000")
    killed.wait_ready()
    service.python(f"for number in range({count}): probe.work.apply_async((notes, str(number)), countdown=3)")
    wait_until(lambda: held(service) == count, 30, "the worker to hold all")
    killed.kill()
    with worker(service, "second", "--concurrency=4", "--pool=threads"):
        wait_until(lambda: len({*service.lines()}) == 2 * count, 60, "all to have run")
