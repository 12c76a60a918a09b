"""Probes tell a process that works from one that is frozen, and neither from a broker that is away."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.project import InstalledProject, Worker
from support.servers import start_redis, wait_until
from support.service import Service

#: Seconds without a sign of life that these tests allow. Above what a time-out of the broker takes.
SILENCE = 15
READY, WAITING = "ready", r"not ready: worker-\d+ is waiting for its broker"
STOPPING, SILENT = r"not ready: worker-\d+ is stopping", r"not alive: {}-\d+ gave no sign of life for \d+ seconds"


class Probe:
    """What a container or a supervisor asks: by a process of its own, and with its exit status."""

    def __init__(self, project: InstalledProject, folder: Path) -> None:
        self.project = project
        self.variables = {"HEALTH_DIR": str(folder), "HEALTH_MAX_SILENCE": str(SILENCE)}

    def ask(self, *arguments: str, **variables: str) -> str:
        """Give the line that it prints, when its status says the same."""
        command = ("python", "-m", f"{self.project.slug}.runtime.health", *arguments)
        done = self.project.run(*command, env=self.variables | variables, timeout_seconds=10)
        assert not done.stderr
        [line] = done.stdout.splitlines()
        assert done.returncode == (line not in {"alive", "ready"})
        return line

    def wait(self, what: str, pattern: str, seconds: float) -> None:
        """Wait until it answers so."""
        wait_until(lambda: re.fullmatch(pattern, self.ask(what)), seconds, f"{what}: {pattern}, not {self.ask(what)!r}")

    def stays(self, what: str, answer: str, seconds: float) -> None:
        """Ask again and again, for so long."""
        end = time.monotonic() + seconds
        wait_until(lambda: self.ask(what) != answer or time.monotonic() > end, seconds + 10, "the end")
        assert self.ask(what) == answer


@pytest.fixture
def probe(service: Service) -> Probe:
    return Probe(service.project, service.folder)


def start(service: Service, probe: Probe, *arguments: str) -> Worker:
    worker = service.worker("worker", *arguments, **probe.variables)
    probe.wait("ready", READY, 40)
    return worker


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_is_alive_and_ready_until_it_ends(service: Service, probe: Probe, pool: str) -> None:
    assert probe.ask("live").startswith("not alive: no worker runs here, says ")
    with start(service, probe, f"--pool={pool}", "--concurrency=1"):
        assert probe.ask("live") == "alive"
        # The task keeps the process of a solo worker busy.
        task = service.send(f"probe.work.delay(notes, 'a', {SILENCE + 5})")
        service.wait_for_line("start a")
        while "end a" not in service.lines():
            assert probe.ask("ready") == "ready"
        assert service.result(task)["state"] == "SUCCESS"
    assert probe.ask("live").startswith("not alive: no worker runs here, says ")


@pytest.mark.parametrize("state", ["stopped", "frozen"])
def test_a_worker_without_its_broker_is_alive_and_not_ready(service: Service, probe: Probe, state: str) -> None:
    leave, come_back = {
        "stopped": (service.broker.stop, service.broker.start),
        "frozen": (service.broker.pause, service.broker.resume),
    }[state]
    with start(service, probe):
        leave()
        try:
            # A frozen one is noticed when a time-out has passed.
            probe.wait("ready", WAITING, 90)
            probe.stays("live", "alive", 2 * SILENCE)
        finally:
            come_back()
        probe.wait("ready", READY, 60)
        assert service.result(service.send("hello_world.delay()"))["state"] == "SUCCESS"


@pytest.mark.parametrize("broker_name", ["rabbitmq"], indirect=True)
def test_a_worker_without_any_server_is_alive(service: Service, probe: Probe) -> None:
    """With RabbitMQ it cancels what runs when the connection is lost, and waits for Redis to write that down."""
    with start(service, probe) as worker:
        task = service.send("probe.interrupted.delay(notes, 'a', 300)")
        service.wait_for_line("start a")
        service.redis.stop()
        service.broker.stop()
        try:
            worker.wait_for("Failed operation", 60)
            probe.wait("ready", r"not ready: worker-\d+ is waiting for the result store", 15)
            probe.stays("live", "alive", 2 * SILENCE)
        finally:
            service.redis.start()
            service.broker.start()
        probe.wait("ready", READY, 60)
        assert service.result(task)["state"] == "SUCCESS"


def test_a_worker_that_waits_for_its_broker_at_start_is_alive(service: Service, probe: Probe) -> None:
    service.broker.stop()
    with service.worker(**probe.variables):
        try:
            probe.wait("ready", WAITING, 30)
            probe.stays("live", "alive", 2 * SILENCE)
        finally:
            service.broker.start()
        probe.wait("ready", READY, 60)


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_a_worker_that_waits_for_a_frozen_broker_can_be_stopped(service: Service, probe: Probe) -> None:
    worker = start(service, probe)
    service.broker.pause()
    try:
        probe.wait("ready", WAITING, 90)
        worker.send(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        service.broker.resume()


def test_a_frozen_worker_is_not_alive(service: Service, probe: Probe) -> None:
    worker = start(service, probe)
    worker.send(signal.SIGSTOP)
    try:
        probe.wait("live", SILENT.format("worker"), SILENCE + 5)
        assert probe.ask("ready").startswith("not ready: ")
    finally:
        worker.kill()
    assert probe.ask("live").startswith("not alive: no worker runs here, says ")


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_a_worker_whose_event_loop_hangs_is_not_alive(service: Service, probe: Probe) -> None:
    """As after a deadlock: its other threads, and the processes that run tasks, go on."""
    with start(service, probe) as worker:
        service.send("probe.stuck.delay()")
        probe.wait("live", SILENT.format("worker"), SILENCE + 15)
        worker.kill()


def test_a_worker_that_stops_is_alive_and_not_ready(service: Service, probe: Probe) -> None:
    worker = start(service, probe)
    service.send(f"probe.work.delay(notes, 'a', {SILENCE + 5})")
    service.wait_for_line("start a")
    worker.send(signal.SIGTERM)
    probe.wait("ready", STOPPING, 5)
    while "end a" not in service.lines():
        assert probe.ask("live") == "alive"
    assert worker.wait() == 0
    assert probe.ask("live").startswith("not alive: no worker runs here, says ")


def test_all_workers_of_a_machine_have_to_be_well(service: Service, probe: Probe) -> None:
    with start(service, probe):
        second = service.worker("second", **probe.variables)
        second.wait_ready()
        second.send(signal.SIGSTOP)
        probe.wait("live", SILENT.format("worker"), SILENCE + 5)
        second.kill()
        assert probe.ask("live") == "alive"


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_beat_is_alive_while_it_ticks(service: Service, probe: Probe) -> None:
    beat = Worker(
        service.project,
        env=service.variables | probe.variables,
        log=service.folder / "beat.log",
        command="beat",
        arguments=["--schedule", str(service.folder / "schedule")],
    )
    try:
        probe.wait("beat", "alive", 30)
        assert probe.ask("live").startswith("not alive: no worker runs here, says ")
        for leave, come_back in (
            (service.broker.stop, service.broker.start),
            (service.broker.pause, service.broker.resume),
        ):
            leave()
            probe.stays("beat", "alive", 2 * SILENCE)
            come_back()
        beat.send(signal.SIGSTOP)
        probe.wait("beat", SILENT.format("beat"), SILENCE + 5)
    finally:
        beat.kill()
    assert probe.ask("beat").startswith("not alive: no beat runs here, says ")


def test_the_embedded_broker_and_beat_have_signs_too(
    projects: Callable[[str], InstalledProject], tmp_path: Path
) -> None:
    project = projects("redis")
    probe = Probe(project, tmp_path)
    with Worker(
        project,
        env={"CELERY_BROKER_URL": "filesystem://localhost"} | probe.variables,
        log=tmp_path / "worker.log",
        arguments=["--concurrency=1", "--beat", "--schedule", str(tmp_path / "schedule")],
    ):
        probe.wait("ready", READY, 30)
        probe.wait("beat", "alive", 10)
        probe.stays("ready", READY, SILENCE + 5)
        assert probe.ask("beat") == "alive"


@pytest.mark.parametrize("arguments", [[], ["alive"], ["live", "ready"]])
def test_a_wrong_argument_gets_one_line(
    projects: Callable[[str], InstalledProject], tmp_path: Path, arguments: list[str]
) -> None:
    project = projects("redis")
    said = Probe(project, tmp_path).ask(*arguments)
    assert said == f"usage: python -m {project.slug}.runtime.health live|ready|beat"


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "soon"])
def test_the_silence_is_a_number_of_seconds(
    projects: Callable[[str], InstalledProject], tmp_path: Path, value: str
) -> None:
    said = Probe(projects("redis"), tmp_path).ask("live", HEALTH_MAX_SILENCE=value)
    wrong = f"not alive: HEALTH_MAX_SILENCE is {value!r}; it must be a number of seconds above 0"
    assert said == wrong if value else said.startswith("not alive: no worker runs here")


@pytest.mark.parametrize("trick", ["link", "open to all", "file"])
def test_a_folder_that_others_can_change_is_refused(
    projects: Callable[[str], InstalledProject], tmp_path: Path, trick: str
) -> None:
    project = projects("redis")
    folder = tmp_path / f"{project.slug}-{os.getuid()}"
    if trick == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif trick == "file":
        folder.touch(mode=0o600)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    probe = Probe(project, tmp_path)
    says = f"{folder} must be a folder of user {os.getuid()} with mode 0700"
    assert probe.ask("live") == f"not alive: {says}"
    with start_redis(tmp_path) as redis:
        for command in ("worker", "beat"):
            variables = {"CELERY_BROKER_URL": redis.url} | probe.variables
            worker = Worker(project, env=variables, log=tmp_path / f"{command}.log", command=command)
            assert worker.wait() == 1
            expected = f"{command}: {says}; HEALTH_DIR may name another place."
            assert worker.text().splitlines()[-1] == expected
