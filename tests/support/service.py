"""Fixtures of behaviour tests: a project on real servers, its workers and its publishers."""

import contextlib
import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import kombu
import redis
from amqp.exceptions import NotFound

from support.project import InstalledProject, Worker, kept_project
from support.publisher import Publisher, run_command
from support.servers import Server, replica_of, start_redis, start_sentinel, wait_until

BEHAVIOUR = Path(__file__).parents[1] / "behaviour"
#: Our own tasks by the name of their module in the project: "probe" is probe_tasks.py.
TASK_MODULES = {path.stem.removesuffix("_tasks"): path for path in sorted(BEHAVIOUR.glob("*_tasks.py"))}
#: Those that need a database or a cache.
OF_THE_FULL_PROJECT = {"cached", "database", "traced"}
#: Everything that a service can have, both brokers included: which one it uses, CELERY_BROKER_URL says.
FULL = {"include_sqlalchemy": True, "include_aiocache": True, "include_fastapi": True}
EXTRAS = ("redis", "rabbitmq", "sqlalchemy", "aiocache", "fastapi", "flower", "opentelemetry", "prometheus", "sentry")
QUEUES = ("high_priority", "default", "low_priority", "dead_letter")
#: Where RabbitMQ keeps what is for later: a queue for each bit of the number of seconds.
DELAYED = tuple(f"celery_delayed_{bit}" for bit in range(28))


@functools.cache
def full_project() -> InstalledProject:
    """Give the project with a database and a cache, installed with all extras of our library."""
    return kept_project(FULL, TASK_MODULES, extras=EXTRAS)


@functools.cache
def plain_project() -> InstalledProject:
    """Return the project without options, in the same environment. Its processes start faster, in 2/3 of the time."""
    modules = {name: path for name, path in TASK_MODULES.items() if name not in OF_THE_FULL_PROJECT}
    return kept_project({}, modules, like=full_project())


@functools.cache
def api_project() -> InstalledProject:
    """Return the plain project with the HTTP API, in the same environment."""
    modules = {name: path for name, path in TASK_MODULES.items() if name not in OF_THE_FULL_PROJECT}
    return kept_project({"include_fastapi": True}, modules, like=full_project())


@functools.cache
def monitored_project(*monitoring: str, **options: bool) -> InstalledProject:
    """Return the plain project with these options of monitoring, and others, in the same environment."""
    modules = {name: path for name, path in TASK_MODULES.items() if name not in OF_THE_FULL_PROJECT}
    return kept_project(options | {"monitoring": sorted(monitoring)}, modules, like=full_project())


@functools.cache
def green_project(*monitoring: str) -> InstalledProject:
    """Give a project without async tasks, in an environment with gevent and eventlet, which users add themselves."""
    modules = {"green": TASK_MODULES["green"]}
    if monitoring:
        return kept_project({"monitoring": sorted(monitoring)}, modules, like=green_project())
    return kept_project({}, modules, extras=("redis", "rabbitmq", "prometheus"), add=("gevent", "eventlet"))


class Service:
    """A project, the servers that it uses, and the workers and publishers that a test starts."""

    def __init__(
        self, folder: Path, variables: Mapping[str, str], *, broker: Server, redis: Server, project: InstalledProject
    ) -> None:
        """Create a service; `variables` name the servers."""
        self.project = project
        self.folder = folder
        self.broker = broker
        self.redis = redis
        self.variables = dict(variables)
        folder.mkdir(exist_ok=True)
        self.notes = folder / "notes"
        self.notes.touch()
        tasks = project.folder / project.slug / "tasks"
        self._modules = [name for name in TASK_MODULES if (tasks / f"{name}.py").exists()]
        #: What a publisher begins with.
        self.header = (
            f"from {project.slug}.celery import celery, hello_world\n"
            f"from {project.slug}.tasks import {', '.join(self._modules)}\n"
            "from celery import chain, chord, group\n"
            f"notes = {str(self.notes)!r}\n"
        )
        self._publishers: dict[Any, Publisher] = {}
        self._commands = 0

    # --- workers ---

    def worker(self, name: str = "worker", *arguments: str, **variables: str) -> Worker:
        """Start a worker; `variables` are added to its environment."""
        return Worker(
            self.project,
            env=self.variables | variables,
            log=self.folder / f"{name}.log",
            arguments=arguments or ("--concurrency", "1"),
        )

    # --- publishers ---

    def python(self, code: str, **variables: str) -> Any:
        """Run code in a publisher process, and give the value of its last line.

        It has `celery`, `hello_world`, the modules of our tasks and `notes`, the path that their tasks write to.
        """
        return self._publisher(self.variables | variables).run(self.header + code)

    def _publisher(self, variables: Mapping[str, str]) -> Publisher:
        """Return the publisher with this environment. After a fault of a server, it is a new one.

        Publishers here never see broken connections. Other tests cover these.
        """
        key = (frozenset(variables.items()), self.broker.changes, self.redis.changes)
        if key not in self._publishers:
            output = self.folder / f"publisher{len(self._publishers)}"
            self._publishers[key] = Publisher(self.project, variables, output=output)
        return self._publishers[key]

    def send(self, call: str) -> str:
        """Send a task, such as `probe.work.delay(notes, 'a')`, and give its id."""
        return str(self.python(f"{call}.id"))

    def result(self, task_id: str, seconds: float = 30) -> dict[str, Any]:
        """Wait for a task to end; give its state and its result, or what its error says."""
        found: dict[str, Any] = self.python(
            f"result = celery.AsyncResult({task_id!r})\n"
            f"result.get(timeout={seconds}, propagate=False)\n"
            "value = result.result\n"
            "{'state': result.state, 'result': repr(value) if isinstance(value, BaseException) else value}"
        )
        return found

    def state(self, task_id: str) -> str:
        """Give the state of a task as it is now."""
        return str(self.python(f"celery.AsyncResult({task_id!r}).state"))

    # --- dead letters ---

    def dead_letters(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `celery -A … dead-letters`."""
        self._commands += 1
        command = ["celery", "-A", f"{self.project.slug}.celery", "dead-letters", *arguments]
        return run_command(self.project, command, self.variables, output=self.folder / f"command{self._commands}")

    def letters(self, *filters: str) -> list[dict[str, Any]]:
        """Give the dead letters, oldest first, as the command lists them."""
        done = self.dead_letters("list", "--json", *filters)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wait_for_letters(self, count: int = 1, seconds: float = 60) -> list[dict[str, Any]]:
        """Wait until there are so many dead letters, and give them."""

        def are_there() -> bool:
            # The command takes a moment each time; this doesn't.
            with redis.Redis.from_url(self.redis.url) as client:
                return bool(client.zcard(f"{self.project.slug}:dead-letters:times") >= count)

        wait_until(are_there, seconds, f"{count} dead letters")
        found = self.letters()
        assert len(found) == count, found
        return found

    def forget(self) -> None:
        """Drop what an earlier test has left: dead letters, notes, and the file that makes tasks succeed."""
        (self.folder / "mended").unlink(missing_ok=True)
        assert self.dead_letters("purge", "--yes").returncode == 0
        self.notes.write_text("")

    # --- what tasks have noted ---

    def lines(self) -> list[str]:
        """Give what our tasks have noted so far."""
        return self.notes.read_text().splitlines()

    def wait_for_line(self, line: str, seconds: float = 30) -> None:
        """Wait until a task has noted a line."""
        try:
            wait_until(lambda: line in self.lines(), seconds, f"{line!r}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}, in {self.lines()}") from None

    def close(self) -> None:
        """Let the publishers end."""
        for publisher in self._publishers.values():
            publisher.close()

    def __enter__(self) -> Self:
        """Use it until the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let the publishers end."""
        self.close()


@contextlib.contextmanager
def service_on_redis(project: InstalledProject, folder: Path) -> Iterator[Service]:
    """Start a Redis, which keeps its data over restarts, and give the service that uses it for everything."""
    with (
        start_redis(folder, options=("--appendonly", "yes")) as server,
        Service(folder, {"CELERY_BROKER_URL": server.url}, broker=server, redis=server, project=project) as service,
    ):
        yield service


@contextlib.contextmanager
def service_on_sentinel(project: InstalledProject, folder: Path) -> Iterator[tuple[Service, Server]]:
    """Start a master, its replica and a Sentinel, and give the service that asks it, and the Sentinel.

    The broker of the service is the master; its Redis is the replica, which becomes the master.
    """
    with (
        start_redis(folder / "master") as master,
        start_redis(folder / "replica", options=replica_of(master)) as replica,
        start_sentinel(folder / "sentinel", master) as sentinel,
    ):
        variables = {
            "CELERY_BROKER_URL": sentinel.url,
            "CELERY_BROKER_TRANSPORT_OPTIONS": '{"master_name": "mymaster"}',
        }
        with Service(folder, variables, broker=master, redis=replica, project=project) as service:
            yield service, sentinel


@contextlib.contextmanager
def service_on_rabbitmq(project: InstalledProject, folder: Path, broker: Server) -> Iterator[Service]:
    """Give the service that uses this RabbitMQ, which is emptied first, and a new Redis."""
    broker.recover()
    try:
        empty(broker)
    except Exception as error:
        # Killed soon after a quorum queue was declared, RabbitMQ 3.10 may not open that queue again: what an earlier
        # test did to it is no matter of this one. docs/reliability.md says what it takes in production.
        print(f"RabbitMQ starts afresh, since it can't be emptied: {error!r}")
        broker.start_afresh()
    with start_redis(folder, options=("--appendonly", "yes")) as server:
        variables = {"CELERY_BROKER_URL": broker.url, "CELERY_RESULT_BACKEND": server.url}
        with Service(folder, variables, broker=broker, redis=server, project=project) as service:
            yield service


def empty(rabbitmq: Server) -> None:
    """Delete all messages in RabbitMQ, after it has noticed that killed workers are gone.

    The queues stay, because RabbitMQ 3.10 can crash if a quorum queue is deleted soon after it was declared.
    """
    # A queue without a leader answers nothing.
    with kombu.Connection(rabbitmq.url, transport_options={"read_timeout": 10}) as connection:

        def is_idle(queue: str) -> bool:
            channel: Any = connection.channel()
            try:
                return not channel.queue_declare(queue, passive=True).consumer_count
            finally:
                channel.close()

        for queue in (*QUEUES, *DELAYED):
            with contextlib.suppress(NotFound):
                wait_until(lambda name=queue: is_idle(name), 20, f"the consumers of {queue} to be gone")
                channel: Any = connection.channel()
                channel.queue_purge(queue)
                channel.close()
