"""Faults. Each one does one thing to the bench, at a random time of the plan.

A wait in a fault is the duration of the outage.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import redis

from support.chaos.bench import Bench
from support.servers import wait_until


def _away(bench: Bench) -> None:
    """Let an outage last: mostly some seconds, one time in three the longest of this run."""
    longest = bench.longest_outage
    seconds = longest if bench.rng.random() < 1 / 3 else bench.rng.uniform(1, min(longest, 5))
    bench.note(f"… for {seconds:.1f} s")
    time.sleep(seconds)


def kill_child(bench: Bench) -> None:
    """Kill a child process, as the kernel does if memory runs out."""
    worker = bench.rng.choice(bench.workers)
    # Celery ends a worker that loses a child before it has started.
    worker.wait_ready(60)
    children = worker.children()
    if children:
        victim = bench.rng.choice(children)
        bench.note(f"SIGKILL to child {victim}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def kill_worker(bench: Bench) -> None:
    """Kill a worker, as a power cut does. The supervisor starts another one."""
    victim = bench.rng.choice(bench.workers)
    bench.note(f"SIGKILL to {victim.log.stem} and its children")
    bench.workers.remove(victim)
    victim.kill()
    bench.start_worker()


def kill_busy_worker(bench: Bench) -> None:
    """Kill a worker while it takes one message after the other."""
    victim = bench.rng.choice(bench.workers)
    victim.wait_ready(60)
    time.sleep(bench.rng.uniform(0, 0.3))
    bench.note(f"SIGKILL to {victim.log.stem} and its children")
    bench.workers.remove(victim)
    victim.kill()
    bench.start_worker()


def freeze_worker(bench: Bench) -> None:
    """Freeze a worker, as a machine does that swaps or loses its network, and kill it later."""
    victim = bench.rng.choice(bench.workers)
    bench.note(f"SIGSTOP to {victim.log.stem} and its children, then SIGKILL")
    bench.workers.remove(victim)
    os.killpg(victim.pid, signal.SIGSTOP)
    time.sleep(bench.rng.uniform(0.5, 2))
    victim.kill()
    bench.start_worker()


def deploy(bench: Bench) -> None:
    """Start a new worker, and stop an old one by SIGTERM once the new one is ready."""
    old = bench.workers[0]
    bench.start_worker().wait_ready(60)
    bench.note(f"SIGTERM to {old.log.stem}")
    bench.workers.remove(old)
    status = old.stop(60)
    if status:
        bench.casualties.append(f"{old.log.stem} (status {status})")


def restart_broker(bench: Bench) -> None:
    """Stop the broker in order, and start it again."""
    _restart(bench, bench.broker)


def kill_broker(bench: Bench) -> None:
    """Kill the broker, and start it again a while later."""
    bench.note("SIGKILL to the broker")
    bench.broker.kill()
    time.sleep(bench.rng.uniform(0, 2))
    bench.broker.start()
    bench.note("the broker is back")


def freeze_broker(bench: Bench) -> None:
    """Let the broker accept everything and answer nothing."""
    _freeze(bench, bench.broker)


def restart_store(bench: Bench) -> None:
    """Stop the result store in order, and start it again."""
    _restart(bench, bench.store)


def freeze_store(bench: Bench) -> None:
    """Let the result store accept everything and answer nothing."""
    _freeze(bench, bench.store)


def fill_redis(bench: Bench) -> None:
    """Let Redis refuse to store anything: `maxmemory` is reached, and the policy is `noeviction`."""
    bench.note("Redis is out of memory")
    with _redis(bench.store.url) as client:
        client.config_set("maxmemory", 1)
        try:
            _away(bench)
        finally:
            client.config_set("maxmemory", 0)
    bench.note("Redis has memory again")


def fill_redis_disk(bench: Bench) -> None:
    """Let Redis refuse to write anything: it couldn't save its data, and stops before more gets lost."""
    bench.note("the disk of Redis is full")
    with _redis(bench.store.url) as client:
        home = str(client.config_get("dir")["dir"])
        # A folder in which nobody can create a file.
        client.config_set("dir", "/proc")
        client.config_set("save", "3600 1")
        try:
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10, "the save to fail")
            _away(bench)
        finally:
            client.config_set("save", "")
            client.config_set("dir", home)
    bench.note("the disk of Redis has space again")


def fill_memory(bench: Bench) -> None:
    """Let RabbitMQ refuse publishers: its memory alarm."""
    _alarm(bench, ("set_vm_memory_high_watermark", "absolute", "1"), ("set_vm_memory_high_watermark", "0.4"))


def fill_disk(bench: Bench) -> None:
    """Let RabbitMQ refuse publishers: its disk alarm."""
    _alarm(bench, ("set_disk_free_limit", str(10**15)), ("set_disk_free_limit", str(10**7)))


def send_poison(bench: Bench) -> None:
    """Send a task that kills its process each time."""
    bench.note("a poison message")
    bench.condemned += 1
    bench.send("probe.crash.delay(notes)")


def send_unknown(bench: Bench) -> None:
    """Send a task that no worker has."""
    bench.note("an unknown task")
    bench.condemned += 1
    bench.send("celery.send_task('no.such.task')")


def send_garbage(bench: Bench) -> None:
    """Put something into a queue that is no message."""
    bench.note("an undecodable message")
    bench.condemned += 1
    text = "this is not JSON"
    if bench.servers.name == "redis":
        with _redis(bench.broker.url) as client:
            client.lpush("default", text)
        return
    with kombu.Connection(bench.broker.url) as connection:
        channel: Any = connection.channel()
        message = channel.prepare_message(text, None, "application/json", "utf-8")
        channel.basic_publish(message, exchange="default", routing_key="default")


def _restart(bench: Bench, server: Any) -> None:
    bench.note(f"stop {server.name}")
    server.stop()
    time.sleep(bench.rng.uniform(0, 2))
    server.start()
    bench.note(f"{server.name} is back")


def _freeze(bench: Bench, server: Any) -> None:
    bench.note(f"freeze {server.name}")
    server.pause()
    try:
        _away(bench)
    finally:
        server.resume()
    bench.note(f"{server.name} goes on")


def _alarm(bench: Bench, begin: tuple[str, ...], end: tuple[str, ...]) -> None:
    bench.note(" ".join(begin))
    _rabbitmqctl(bench.broker, *begin)
    try:
        _away(bench)
    finally:
        _rabbitmqctl(bench.broker, *end)
    bench.note(" ".join(end))


def _rabbitmqctl(server: Any, *arguments: str) -> None:
    script = Path(server.command[0]).with_name("rabbitmqctl")  # beside the one that starts the server
    subprocess.run([script, *arguments], env=server.environment, check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def _redis(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client
