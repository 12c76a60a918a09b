"""Probes fail for a process that hangs. They succeed for a process whose broker is unreachable.

These tests spend most of their time waiting, so a test watches several workers, each with its own HEALTH_DIR.
"""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from support.project import InstalledProject, Worker
from support.publisher import run_command
from support.servers import wait_until
from support.service import Service

#: Seconds without a sign of life that these tests allow. A RabbitMQ that is frozen costs up to nine.
SILENCE = 15
#: Long enough to notice that the signs have ended.
LONGER = SILENCE + 4
READY, WAITING = "ready", r"not ready: worker-\d+ is waiting for its broker"
STOPPING, SILENT = r"not ready: worker-\d+ is stopping", r"not alive: {}-\d+ gave no sign of life for \d+ seconds"
GONE = r"not alive: no {} runs here: no file in .*"
#: A probe is a process of its own.
PAUSE = 1


class Probe:
    """A probe as a container or a supervisor runs it: a separate process with an exit status."""

    def __init__(self, project: InstalledProject, folder: Path) -> None:
        self.project = project
        self.variables = {"HEALTH_DIR": str(folder), "HEALTH_MAX_SILENCE": str(SILENCE)}

    def ask(self, what: str) -> str:
        """Return the line that the probe prints, after a check that the exit status agrees."""
        command = ("python", "-m", "celery_service.lifecycle.health", self.project.slug, what)
        done = self.project.run(*command, env=self.variables, timeout_seconds=30)
        assert not done.stderr
        [line] = done.stdout.splitlines()
        assert done.returncode == (line not in {"alive", "ready"})
        return line

    def wait(self, what: str, pattern: str, seconds: float) -> None:
        """Wait until the probe gives this answer."""

        def matches() -> bool:
            answers.append(self.ask(what))
            return bool(re.fullmatch(pattern, answers[-1]))

        answers: list[str] = []
        try:
            wait_until(matches, seconds, f"{what}: {pattern}", longest_pause_seconds=PAUSE)
        except TimeoutError as error:
            raise TimeoutError(f"{error}, not {answers[-1]!r}") from None


def stay(what: str, *probes: Probe) -> None:
    """Run all probes for longer than the silence, and check that each gives the same answer every time."""

    def ask_and_look() -> bool:
        over = time.monotonic() > end
        assert {probe.ask(what) for probe in probes} == {"ready" if what == "ready" else "alive"}
        return over

    end = time.monotonic() + LONGER
    wait_until(ask_and_look, LONGER + 30, f"the end of {what}", longest_pause_seconds=PAUSE)


class Watched:
    """A worker and the probe that watches it."""

    def __init__(self, service: Service, name: str, *arguments: str, folder: str = "") -> None:
        self.probe = Probe(service.project, service.folder / f"health-{folder or name}")
        self.worker = service.worker(name, "--concurrency=1", *arguments, **self.probe.variables)

    @classmethod
    def ready(cls, service: Service, name: str, *arguments: str, folder: str = "") -> "Watched":
        """Start a worker, and wait until the probe says that it is ready."""
        watched = cls(service, name, *arguments, folder=folder)
        watched.probe.wait("ready", READY, 60)
        return watched

    def end(self) -> None:
        """Stop the worker, and check that the probe finds none."""
        assert self.worker.stop() == 0
        assert re.fullmatch(GONE.format("worker"), self.probe.ask("live"))


def test_a_busy_worker_is_alive_and_a_stopping_worker_is_not_ready(service: Service) -> None:
    busy = []
    for name in ("prefork", "threads", "solo", "stopping"):
        pool = "prefork" if name == "stopping" else name
        watched = Watched.ready(service, name, f"--pool={pool}", f"--queues={name}")
        # It keeps the process of a solo worker busy, too.
        service.send(f"probe.work.apply_async((notes, {name!r}, {LONGER}), queue={name!r})")
        service.wait_for_line(f"start {name}")
        busy.append(watched)
    stopping = busy.pop()
    stopping.worker.send(signal.SIGTERM)
    stopping.probe.wait("ready", STOPPING, 30)

    def look() -> bool:
        assert {each.probe.ask("ready") for each in busy} == {"ready"}
        answer = stopping.probe.ask("live")
        over = "end stopping" in service.lines()
        assert answer == "alive" or over
        return over

    wait_until(look, LONGER + 30, "the task of the worker that stops", longest_pause_seconds=PAUSE)
    assert stopping.worker.wait() == 0
    stopping.probe.wait("live", GONE.format("worker"), 10)
    for each in busy:
        each.end()


def test_a_worker_is_alive_and_not_ready_while_its_broker_is_stopped(service: Service) -> None:
    """The same for a worker that starts while its broker is stopped."""
    before = Watched.ready(service, "before")
    service.broker.stop()
    at_start = Watched(service, "at_start")
    for each in (before, at_start):
        each.probe.wait("ready", WAITING, 60)
    stay("live", before.probe, at_start.probe)
    service.broker.start()
    for each in (before, at_start):
        each.probe.wait("ready", READY, 60)
    assert service.result(service.send("hello_world.delay()"))["state"] == "SUCCESS"
    for each in (before, at_start):
        each.end()


def test_a_worker_is_alive_and_not_ready_while_its_broker_is_frozen(service: Service) -> None:
    """On Redis, the worker can also be stopped during this time."""
    waiting = Watched.ready(service, "waiting")
    stopped = Watched.ready(service, "stopped") if service.broker is service.redis else None
    service.broker.pause()
    # It is noticed when a time-out has passed.
    waiting.probe.wait("ready", WAITING, 90)
    if stopped:
        stopped.probe.wait("ready", WAITING, 90)
        stopped.end()
    stay("live", waiting.probe)
    service.broker.resume()
    waiting.probe.wait("ready", READY, 60)
    assert service.result(service.send("hello_world.delay()"))["state"] == "SUCCESS"
    waiting.end()


@pytest.mark.parametrize("broker_name", ["rabbitmq"], indirect=True)
def test_a_worker_without_any_server_is_alive(service: Service) -> None:
    """On RabbitMQ, it cancels its tasks when the connection is lost, and waits for Redis to store this."""
    watched = Watched.ready(service, "worker")
    task = service.send("probe.interrupted.delay(notes, 'a', 300)")
    service.wait_for_line("start a")
    service.redis.stop()
    service.broker.stop()
    watched.worker.wait_for("result_backend_away", 60)
    watched.probe.wait("ready", r"not ready: worker-\d+ is waiting for the result store", 30)
    stay("live", watched.probe)
    service.redis.start()
    service.broker.start()
    watched.probe.wait("ready", READY, 60)
    assert service.result(task)["state"] == "SUCCESS"
    watched.end()


def test_the_probe_fails_if_one_of_several_workers_hangs(service: Service) -> None:
    """One worker is frozen. On Redis, the event loop of another one hangs while its other threads go on."""
    stuck = Watched.ready(service, "stuck") if service.broker is service.redis else None
    if stuck:
        service.send("probe.stuck.delay()")
        stuck.worker.wait_for("probe.stuck is received", 30)
    well = Watched.ready(service, "well")
    frozen = Watched(service, "frozen", folder="well")
    frozen.worker.wait_ready()
    frozen.worker.send(signal.SIGSTOP)
    for each in filter(None, (stuck, well)):
        each.probe.wait("live", SILENT.format("worker"), SILENCE + 30)
        assert each.probe.ask("ready").startswith("not ready: ")
    if stuck:
        stuck.worker.kill()
    frozen.worker.kill()
    assert well.probe.ask("live") == "alive"
    well.end()


@pytest.mark.parametrize("broker_name", ["redis"], indirect=True)
def test_beat_is_alive_while_it_ticks(service: Service) -> None:
    probe = Probe(service.project, service.folder)
    beat = Worker(
        service.project,
        env=service.variables | probe.variables,
        log=service.folder / "beat.log",
        command="beat",
        arguments=["--schedule", str(service.folder / "schedule")],
    )
    try:
        probe.wait("beat", "alive", 30)
        assert re.fullmatch(GONE.format("worker"), probe.ask("live"))
        for leave, come_back in (
            (service.broker.stop, service.broker.start),
            (service.broker.pause, service.broker.resume),
        ):
            leave()
            stay("beat", probe)
            come_back()
        beat.send(signal.SIGSTOP)
        probe.wait("beat", SILENT.format("beat"), SILENCE + 30)
    finally:
        beat.kill()
    assert re.fullmatch(GONE.format("beat"), probe.ask("beat"))


def test_probes_work_with_the_filesystem_broker_and_embedded_beat(project: InstalledProject, tmp_path: Path) -> None:
    probe = Probe(project, tmp_path)
    with Worker(
        project,
        env={"CELERY_BROKER_URL": "filesystem://localhost", "FILES_DIR": str(tmp_path)} | probe.variables,
        log=tmp_path / "worker.log",
        arguments=["--concurrency=1", "--beat", "--schedule", str(tmp_path / "schedule")],
    ):
        probe.wait("ready", READY, 30)
        probe.wait("beat", "alive", 10)
        stay("ready", probe)
        assert probe.ask("beat") == "alive"


def test_a_folder_that_others_can_change_is_refused(project: InstalledProject, tmp_path: Path) -> None:
    folder = tmp_path / f"{project.slug}-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    probe = Probe(project, tmp_path)
    says = f"{folder} must be a folder of user {os.getuid()} with mode 0700"
    assert probe.ask("live") == f"not alive: {says}"
    variables = {"CELERY_BROKER_URL": "filesystem://localhost", "FILES_DIR": str(tmp_path)} | probe.variables
    for command in ("worker", "beat"):
        arguments = ["celery", "-A", f"{project.slug}.celery", command]
        done = run_command(project, arguments, variables, output=tmp_path / command)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == f"{command}: {says}; HEALTH_DIR may name another place."
