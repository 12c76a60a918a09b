"""`celery doctor` names what is broken, prints no warning where all is well, and never hangs."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from behaviour.conftest import ServiceOn
from support.distribution import on_one_worker
from support.project import InstalledProject, Worker
from support.publisher import run_command
from support.servers import Server, free_port, replica_of, start_redis, wait_until
from support.service import Service, full_project, service_on_redis, service_on_sentinel

#: Where the servers of a test are away, everything together takes at most so many seconds. A busy machine adds some.
LIMIT = 10 + 15


class Doctor:
    """What the command has found."""

    def __init__(self, service: Service, **variables: str) -> None:
        """Run it."""
        command = ["celery", "-A", f"{service.project.slug}.celery", "doctor", "--json"]
        began = time.monotonic()
        done = run_command(
            service.project, command, service.variables | variables, output=service.folder / f"doctor{began}"
        )
        self.seconds = time.monotonic() - began
        self.status = done.returncode
        self.output = done.stdout + done.stderr
        assert done.stdout.startswith("{"), done.stderr
        self.found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
        self.settings: dict[str, dict[str, Any]] = json.loads(done.stdout)["settings"]

    def levels(self, check: str) -> set[str]:
        """Give the levels of the lines of a check."""
        return {each["level"] for each in self.found if each["check"] == check}

    def problems(self) -> list[str]:
        """Give the warnings, and what is broken."""
        return [
            f"{each['level']}: {each['check']}: {each['text']} {each['fix']}"
            for each in self.found
            if each["level"] in ("warning", "broken")
        ]

    def assert_only(self, level: str, check: str, *texts: str) -> None:
        """Check that there is one problem, of this kind and with these texts, and the exit status."""
        [problem] = self.problems()
        assert problem.startswith(f"{level}: {check}: ")
        for text in texts:
            assert text in problem
        assert self.status == {"warning": 1, "broken": 2}[level]


# --- with worker and beat -----------------------------------------------------------------------------------------

#: For what doesn't depend on the broker.
ON_REDIS = pytest.mark.parametrize("sound", on_one_worker("redis"), indirect=True)


@contextlib.contextmanager
def beat_of(service: Service, name: str = "beat") -> Iterator[Worker]:
    """Run a beat, and wait until it has shown itself."""
    schedule = ["--schedule", str(service.folder / f"{name}-schedule")]
    with (
        Worker(
            service.project,
            env=service.variables,
            log=service.folder / f"{name}.log",
            command="beat",
            arguments=schedule,
        ) as beat,
        redis.Redis.from_url(service.redis.url) as client,
    ):
        beat.wait_ready()
        sign = f"{os.uname().nodename}:{beat.pid}"
        wait_until(lambda: client.hexists(f"{service.project.slug}:beat", sign), 30, "the sign of beat")
        yield beat


@pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))
def sound(
    request: pytest.FixtureRequest,
    project: InstalledProject,
    service_on: ServiceOn,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service with a worker and beat, which needs no doctor."""
    folder = tmp_path_factory.mktemp(request.param)
    with service_on(request.param, project, folder) as service, service.worker() as worker, beat_of(service):
        worker.wait_ready()
        yield service


def test_a_sound_service_gets_no_warning(sound: Service) -> None:
    found = Doctor(sound)
    assert (found.status, found.problems()) == (0, []), found.output
    for check in ("broker", "results", "workers", "releases", "clocks", "queues", "beat", "dead letters", "versions"):
        assert found.levels(check) == {"ok"}, check
    if sound.broker is sound.redis:
        assert found.levels("leases") == {"ok"}
    else:
        assert found.levels("queue types") == found.levels("time limits") == {"ok"}
    assert found.settings["broker_url"]["source"] == "CELERY_BROKER_URL"
    assert found.settings["task_time_limit"] == {"value": 600.0, "source": "default of celery-service"}
    assert found.settings["worker_pool"]["source"] == "default of Celery"


def test_the_health_check_counts_what_is_there(sound: Service) -> None:
    task = sound.python(f"celery.send_task('{sound.project.slug}.tasks.monitoring.monitor_task_health').id")
    queues = {"high_priority": 0, "default": 0, "low_priority": 0, "dead_letter": 0}
    numbers = {"workers": 1, "active_tasks": 1, "queues": queues, "dead_letters": 0}
    assert sound.result(task) == {"state": "SUCCESS", "result": numbers}
    log = (sound.folder / "worker.log").read_text()
    [line] = [line for line in log.splitlines() if "celery_health_check" in line and task in line and "event" in line]
    logged = json.loads(line)
    assert {name: logged[name] for name in numbers} == numbers


@ON_REDIS
def test_the_table_fits_80_columns(sound: Service) -> None:
    secret = f"redis://user:p@ss-word@localhost:{free_port()}/0"
    command = ["celery", "-A", f"{sound.project.slug}.celery", "doctor"]
    variables = sound.variables | {"CELERY_RESULT_BACKEND": secret}
    done = run_command(sound.project, command, variables, output=sound.folder / "table")
    assert done.returncode == 2
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "BROKEN   results" in done.stdout
    assert "→ Start the server, or correct its address" in done.stdout
    assert "redis://user:***@localhost" in done.stdout
    assert "ss-word" not in done.stdout + done.stderr


def test_a_queue_that_no_worker_consumes(sound: Service) -> None:
    routes = {"CELERY_TASK_ROUTES": '{"probe.work": {"queue": "nobodys"}}'}
    Doctor(sound, **routes).assert_only("warning", "queues", "no worker consumes nobodys", "--queues=nobodys")
    sound.python("probe.work.delay(notes, 'a').id", **routes)
    found = Doctor(sound, **routes)
    found.assert_only("broken", "queues", "1 messages wait in nobodys, which no worker consumes")


@ON_REDIS
def test_a_second_beat(sound: Service) -> None:
    with beat_of(sound, "second"):
        Doctor(sound).assert_only("warning", "beat", "2 run", "Stop all of them but one")
    # One that has stopped isn't counted any more.
    found = Doctor(sound)
    assert found.problems() == []


@ON_REDIS
def test_workers_on_another_release_and_with_another_clock(sound: Service, tmp_path: Path) -> None:
    other = sound.project.copy(tmp_path / "project")
    app = other.folder / other.slug / "celery.py"
    late = "import time\n_time = time.time\ntime.time = lambda: _time() - 3600\n"
    app.write_text(f"{app.read_text()}\n{late}")
    with Worker(other, env=sound.variables, log=sound.folder / "late.log", arguments=["--concurrency=1"]) as worker:
        worker.wait_ready()
        problems = Doctor(sound).problems()
    [release] = [each for each in problems if each.startswith("warning: releases: ")]
    assert "late@" in release
    assert "another release (code " in release
    [clock] = [each for each in problems if each.startswith("warning: clocks: ")]
    assert "late@" in clock
    assert re.search(r"(59|60) min behind this machine", clock)
    assert "chrony" in clock


@ON_REDIS
def test_dead_letters_that_wait(sound: Service) -> None:
    sound.send("failing.fail.delay(notes, 'x')")
    sound.wait_for_letters()
    try:
        Doctor(sound).assert_only("warning", "dead letters", "1 wait", "`dead-letters list`")
    finally:
        sound.dead_letters("purge", "--yes")


def test_a_redis_that_evicts(sound: Service) -> None:
    use = "broker" if sound.broker is sound.redis else "results"
    with changed(sound.redis, "maxmemory-policy", "allkeys-lru"):
        Doctor(sound).assert_only("warning", f"{use} memory", "allkeys-lru", "`maxmemory-policy noeviction`")


@ON_REDIS
def test_a_redis_that_is_nearly_full(sound: Service) -> None:
    with redis.Redis.from_url(sound.redis.url) as client:
        # So much that connections, which come and go, make little difference.
        client.setrange("filler", 40_000_000, "x")
        used = client.info("memory")["used_memory"]
        with changed(sound.redis, "maxmemory", str(int(used * 1.05))):
            found = Doctor(sound)
        client.delete("filler")
    [memory] = [each for each in found.problems() if "memory" in each]
    assert memory.startswith("warning: broker memory: ")
    assert "when it is full, Redis accepts no messages" in memory


@ON_REDIS
def test_a_redis_that_writes_nothing_to_disk(sound: Service) -> None:
    with changed(sound.redis, "appendonly", "no"):
        Doctor(sound).assert_only("warning", "broker disk", "a restart of Redis loses", "`appendonly yes`")


@contextlib.contextmanager
def changed(server: Server, name: str, value: str) -> Iterator[None]:
    """Change a setting of Redis for the time of a block."""
    with redis.Redis.from_url(server.url) as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
        try:
            yield
        finally:
            client.config_set(name, before)


# --- without workers ----------------------------------------------------------------------------------------------


def test_no_worker_and_no_beat(project: InstalledProject, tmp_path: Path) -> None:
    with service_on_redis(project, tmp_path) as service:
        old = json.dumps({"body": "", "headers": {"sent_at": time.time() - 7300}, "properties": {}})
        with redis.Redis.from_url(service.redis.url) as client:
            client.rpush("default", old)
        service.python("celery.send_task('x', queue='low_priority').id")
        found = Doctor(service)
    assert found.status == 2
    workers, waits, *others = [each for each in found.problems() if ": beat: " not in each]
    assert workers.startswith("broken: workers: no worker answers")
    assert waits.startswith("broken: queues: 1 messages wait in default, which no worker consumes")
    assert [each.partition(", which")[0] for each in others] == [
        "broken: queues: 1 messages wait in low_priority",
        "warning: ages: the oldest message in default has waited for 2 h Run more workers for this queue.",
    ]
    [beat] = [each for each in found.problems() if ": beat: " in each]
    assert beat.startswith("broken: beat: no beat runs, none has run so far: 4 scheduled tasks aren't sent")
    [unseen] = [each["text"] for each in found.found if each["level"] == "unseen"]
    assert unseen == "the messages in low_priority don't say when they were sent"


def test_leases_of_a_worker_that_has_died(project: InstalledProject, tmp_path: Path) -> None:
    # Not shorter: this command receives answers as a worker does, and would take the message over.
    variables = {"CELERY_BROKER_TRANSPORT_OPTIONS": '{"visibility_timeout": 8}'}
    with service_on_redis(project, tmp_path) as service, redis.Redis.from_url(service.redis.url) as client:
        with service.worker("doomed", "--concurrency=1", **variables) as worker:
            worker.wait_ready()
            service.send("probe.work.delay(notes, 'a', 60)")
            service.wait_for_line("start a")
            worker.kill()
        [(_, renewed)] = client.zrange("unacked_index", 0, -1, withscores=True)
        wait_until(lambda: client.time()[0] > renewed + 9, 30, "the lease to be overdue")
        [leases] = [each for each in Doctor(service, **variables).problems() if ": leases: " in each]
    assert leases.startswith("warning: leases: 1 of 1 messages held by doomed@")
    assert "are overdue" in leases
    assert "Start a worker" in leases


def test_a_sentinel(project: InstalledProject, tmp_path: Path) -> None:
    with service_on_sentinel(project, tmp_path) as (service, _):
        found = Doctor(service)
    for check in ("broker", "results", "broker role", "leases", "dead letters"):
        assert found.levels(check) == {"ok"}, found.output


def test_a_user_of_redis_that_may_not_ask(project: InstalledProject, tmp_path: Path) -> None:
    with service_on_redis(project, tmp_path) as service, redis.Redis.from_url(service.redis.url) as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", "-info", "-config")
        found = Doctor(service, CELERY_BROKER_URL=service.redis.url.replace("redis://", "redis://limited:pw@"))
    assert found.levels("broker") == found.levels("leases") == {"ok"}, found.output
    assert found.levels("broker memory") == {"unseen"}


def test_a_replica(project: InstalledProject, tmp_path: Path) -> None:
    with (
        start_redis(tmp_path / "master") as master,
        start_redis(tmp_path / "replica", options=replica_of(master)) as replica,
        Service(
            tmp_path / "service", {"CELERY_BROKER_URL": replica.url}, broker=replica, redis=replica, project=project
        ) as service,
    ):
        [role] = [each for each in Doctor(service).problems() if " role: " in each]
    assert role.startswith("broken: broker role: a replica, which accepts no messages")


def test_the_schedule_names_an_unknown_task(project: InstalledProject, tmp_path: Path) -> None:
    changed_project = project.copy(tmp_path / "project")
    app = changed_project.folder / project.slug / "celery.py"
    app.write_text(app.read_text().replace("cleanup.cleanup_old_files", "cleanup.no_such_task"))
    with service_on_redis(changed_project, tmp_path / "service") as service:
        [beat] = [each for each in Doctor(service).problems() if ": beat: " in each]
    assert "the schedule is invalid: entry 'Clean up old files' names an unknown task" in beat


def test_migrations_that_are_pending(tmp_path: Path) -> None:
    project = full_project().copy(tmp_path / "project")
    with service_on_redis(project, tmp_path / "service") as service:
        file = tmp_path / "test.db"
        database = {"DATABASE_URL": f"sqlite:///{file}"}
        [pending] = [each for each in Doctor(service, **database).problems() if ": migrations: " in each]
        assert pending.startswith("broken: migrations: 1 pending: ")
        assert "`alembic upgrade head`" in pending
        assert not file.exists()

        assert project.run("alembic", "upgrade", "head", env=service.variables | database).returncode == 0
        assert Doctor(service, **database).levels("migrations") == {"ok"}

        nothing = {"DATABASE_URL": f"postgresql://user:s3cret@localhost:{free_port()}/x"}
        found = Doctor(service, **nothing)
        [away] = [each["text"] for each in found.found if each["check"] == "migrations"]
        assert away.startswith("can't be seen: ")
        assert "s3cret" not in found.output


# --- servers that are away ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refused", "frozen"])
def test_servers_that_are_away(project: InstalledProject, tmp_path: Path, how: str) -> None:
    with service_on_redis(project, tmp_path) as service:
        if how == "frozen":
            service.redis.pause()
        else:
            service.redis.stop()
        found = Doctor(service)
        service.redis.recover()
    assert found.seconds < LIMIT
    assert found.status == 2
    assert found.levels("broker") == found.levels("results") == {"broken"}
    for check in ("leases", "workers", "beat", "dead letters"):
        assert found.levels(check) == {"unseen"}, check
    assert found.levels("versions") == {"ok"}


def test_a_rabbitmq_that_is_away(project: InstalledProject, tmp_path: Path) -> None:
    with service_on_redis(project, tmp_path) as service:
        found = Doctor(
            service,
            CELERY_BROKER_URL=f"amqp://user:s3cret@127.0.0.1:{free_port()}//",
            CELERY_RESULT_BACKEND=service.redis.url,
        )
    assert found.seconds < LIMIT
    assert found.levels("broker") == {"broken"}
    assert found.levels("results") == {"ok"}
    assert found.levels("queue types") == found.levels("workers") == {"unseen"}
    assert "s3cret" not in found.output


@pytest.mark.parametrize("broker", ["memory", "files"])
def test_the_embedded_brokers(project: InstalledProject, tmp_path: Path, broker: str) -> None:
    variables = {"memory": {"CELERY_BROKER_URL": "memory://"}, "files": {"DEV_BROKER": "files"}}[broker]
    copied = project.copy(tmp_path / "project")
    with contextlib.ExitStack() as stack:
        server: Any = None
        service = stack.enter_context(
            Service(tmp_path / "service", variables, broker=server, redis=server, project=copied)
        )
        if broker == "files":
            worker = stack.enter_context(service.worker(HEALTH_DIR=str(tmp_path)))
            worker.wait_ready()
        found = Doctor(service)
    assert (found.status, found.problems()) == (0, []), found.output
    assert found.levels("workers") == {"ok" if broker == "files" else "unseen"}


# --- RabbitMQ -----------------------------------------------------------------------------------------------------

ON_RABBITMQ = pytest.mark.parametrize("sound", on_one_worker("rabbitmq"), indirect=True)


@ON_RABBITMQ
def test_a_classic_queue(sound: Service) -> None:
    name = f"doctor.{os.getpid()}"
    queues = {name: {"exchange": name, "queue_arguments": {"x-queue-type": "quorum", "x-delivery-limit": 19}}}
    with kombu.Connection(sound.broker.url) as connection:
        channel: Any = connection.channel()
        channel.queue_declare(name, durable=True, auto_delete=False)
        found = Doctor(sound, CELERY_TASK_QUEUES=json.dumps(queues), CELERY_TASK_DEFAULT_QUEUE=name)
        channel.queue_delete(name)
    [wrong] = [each for each in found.problems() if ": queue types: " in each]
    assert wrong.startswith(f"broken: queue types: queue {name}: its type is ")
    assert "workers declare quorum" in wrong
    assert f"`rabbitmqctl delete_queue {name}`" in wrong


@ON_RABBITMQ
def test_a_time_limit_beyond_the_consumer_timeout(sound: Service) -> None:
    long = {"CELERY_TASK_TIME_LIMIT": "7200"}
    found = Doctor(sound, **long)
    found.assert_only("warning", "time limits", "7200 s, which isn't below RabbitMQ's consumer_timeout")
    assert Doctor(sound, **long, DOCTOR_CONSUMER_TIMEOUT="9000").problems() == []
