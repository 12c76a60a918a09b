"""The command `size`: its numbers hold for a real worker, and its answer fits the service's settings."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from celery_service.observability.size import (
    CHILD_MB,
    COMMANDS,
    MAIN_MB,
    RABBITMQ_CONNECTIONS,
    REDIS_CONNECTIONS,
    RESULT_BYTES,
)

from support.project import Worker
from support.servers import wait_until
from support.service import Service

TASKS = 100
#: Memory depends on the versions of libraries.
TOLERANCE = 1.3


def connections(processes: list[int], url: str) -> int:
    """Return how many connections these processes have to a server, from Linux's tables."""
    port = f"{urlsplit(url).port:04X}"
    found = set[str]()  # of sockets: a process inherits some of its parent's
    for process in processes:
        table = Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]
        rows = [line.split() for line in table]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[2].endswith(f":{port}") and row[3] == "01"}
        found |= sockets & {str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir()}
    return len(found)


def megabytes(process: int) -> float:
    [kilobytes] = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(kilobytes) / 1000


def test_a_worker_needs_what_size_says(of_the_broker: tuple[Service, Worker]) -> None:
    service, worker = of_the_broker
    broker = "redis" if service.broker is service.redis else "rabbitmq"
    send = f"done = [probe.work.delay(notes, 'a') for _ in range({TASKS})]\n[each.get(timeout=60) for each in done]\n"
    service.python(send + "1")
    [child] = worker.children()
    main, of_child = REDIS_CONNECTIONS[broker]
    used = connections([worker.pid, child], service.redis.url)
    assert main + of_child - 2 <= used <= main + of_child
    if broker == "rabbitmq":
        used = connections([worker.pid, child], service.broker.url)
        assert RABBITMQ_CONNECTIONS - 2 <= used <= RABBITMQ_CONNECTIONS
    assert megabytes(worker.pid) <= TOLERANCE * MAIN_MB
    assert megabytes(child) <= TOLERANCE * CHILD_MB

    with redis.Redis.from_url(service.redis.url) as client:
        client.config_resetstat()
        before = len(service.lines())
        service.python(f"for _ in range({TASKS}): probe.work.delay(notes, 'a')")
        wait_until(lambda: len(service.lines()) == before + 2 * TASKS, 60, "the tasks")
        stats: Any = client.info("commandstats")
        commands = sum(each["calls"] for each in stats.values())
        # Besides the tasks, the worker asks for messages and sends heartbeats.
        assert COMMANDS[broker] * 0.9 <= commands / TASKS <= COMMANDS[broker] * 1.2
        result = next(iter(client.scan_iter("celery-task-meta-*")))
        assert client.memory_usage(result) <= TOLERANCE * RESULT_BYTES


@pytest.fixture
def size(of_the_broker: tuple[Service, Worker]) -> Any:
    """Run the command for some load, and return its lines by their names."""
    service, _ = of_the_broker

    def run(*arguments: str, **variables: str) -> dict[str, dict[str, Any]]:
        done = service.project.celery("size", "--json", *arguments, env=service.variables | variables)
        assert done.returncode == 0, done.stderr
        return {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}

    return run


def test_the_answer_follows_from_load_and_settings(size: Any, of_the_broker: tuple[Service, Worker]) -> None:
    service, _ = of_the_broker
    lines = size("--rate", "200", "--seconds", "1.5", CELERY_WORKER_CONCURRENCY="8")
    # 300 are busy at once: 429 at 70 % use.
    assert lines["processes"]["value"] == "429"
    assert lines["workers"]["value"] == "55"
    assert lines["results in Redis"]["value"] == "5.2 GB"
    assert lines["results in Redis"]["is_warning"]
    assert not lines["grace period"]["is_warning"]
    assert ("RabbitMQ connections" in lines) == (service.broker is not service.redis)
    lines = size("--rate", "200", "--seconds", "1.5", "--longest", "900", "--result-bytes", "0")
    assert lines["grace period"]["is_warning"]
    assert "CELERY_TASK_TIME_LIMIT" in lines["time limit"]["why"]
    assert not lines["results in Redis"]["is_warning"]


def test_people_get_a_table(of_the_broker: tuple[Service, Worker]) -> None:
    service, _ = of_the_broker
    done = service.project.celery("size", "--rate", "0.5", "--seconds", "2", env=service.variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("For 0.5 tasks a second that take 2 s each:\n\n  processes ")
    refused = service.project.celery("size", "--rate", "0", "--seconds", "2", env=service.variables)
    assert refused.returncode == 2
    assert "Invalid value for '--rate'" in refused.stderr
