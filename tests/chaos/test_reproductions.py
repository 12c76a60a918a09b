"""Deterministic tests of the bugs that the fault suite has found."""

import os
import signal
from collections.abc import Iterator

import pytest
import redis

from support.chaos.bench import Bench, Servers
from support.servers import wait_until


@pytest.fixture
def bench(request: pytest.FixtureRequest, running: Servers) -> Iterator[Bench]:
    """A bench without workers, with results in a separate Redis."""
    made = Bench(running, request.node.originalname, seed=0, store_apart=True, longest_outage=0)
    yield made
    for worker in made.workers:
        worker.kill()


def state_of(bench: Bench, task: str) -> str:
    return bench.states([task])[task]


def limit_memory(url: str, size: int) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory", size)


def test_messages_of_a_frozen_worker_run_on_another_worker(bench: Bench) -> None:
    """Redis gives a message to a waiting connection, and can't notice that nobody reads it."""
    frozen = bench.start_worker()
    frozen.wait_ready(60)
    os.killpg(frozen.pid, signal.SIGSTOP)
    bench.send("probe.work.apply_async((notes, 'a'), task_id='a')")
    frozen.kill()
    bench.start_worker()
    wait_until(lambda: state_of(bench, "a") == "SUCCESS", bench.lease + 30, "the task to end elsewhere")


def test_a_task_whose_result_can_not_be_stored_becomes_a_dead_letter(bench: Bench) -> None:
    """The task waits for the result store, which is unreachable until the time limit ends the task."""
    bench.start_worker().wait_ready(60)
    bench.send("probe.work.apply_async((notes, 'a', 1), task_id='a')")
    wait_until(lambda: "start a" in bench.notes.read_text(), 30, "the task to start")
    bench.store.stop()
    worker = bench.workers[0]
    worker.wait_for("Soft time limit", 30)
    bench.store.start()
    wait_until(lambda: state_of(bench, "a") in {"SUCCESS", "FAILURE"}, 60, "an outcome")
    if state_of(bench, "a") == "FAILURE":
        wait_until(lambda: [letter["id"] for letter in bench.dead_letters()] == ["a"], 30, "its dead letter")


def test_a_worker_survives_a_redis_that_is_out_of_memory(bench: Bench) -> None:
    bench.start_worker().wait_ready(60)
    for task in "ab":
        bench.send(f"probe.work.apply_async((notes, {task!r}, 2), task_id={task!r})")
    wait_until(lambda: "start b" in bench.notes.read_text(), 30, "the tasks to start")
    urls = {server.url for server in (bench.store, bench.broker) if server.name == "redis-server"}
    for url in urls:
        limit_memory(url, 1)
    bench.workers[0].wait_for("OutOfMemoryError|used memory", 30)
    for url in urls:
        limit_memory(url, 0)
    for task in "ab":
        wait_until(lambda name=task: state_of(bench, name) == "SUCCESS", 30, f"{task} to succeed")
    assert bench.workers[0].process.poll() is None
