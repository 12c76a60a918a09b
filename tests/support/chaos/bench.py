"""A project on servers of its own, its workers, its publisher, and what became of each task."""

import contextlib
import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu
import redis
from amqp.exceptions import NotFound

from support import environment
from support.project import InstalledProject, Worker
from support.publisher import Publisher, run_command
from support.servers import Server, start_rabbitmq, start_redis, wait_until
from support.service import QUEUES, empty, plain_project

#: Redis keeps what it has confirmed, even when it is killed; by default it may forget a second.
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--enable-protected-configs", "yes")
CHILDREN = 2
#: What a task may take before its time limit ends it, outages aside.
MARGIN = 4
#: Seconds of a lease on Redis, so that a row takes seconds; and by default.
LEASE, DEFAULT_LEASE = 8.0, 60.0
#: After so many seconds at most, whoever waits for the result store looks again.
LOOKS_AGAIN = 2

#: The app of the project on the transport that comes with Kombu, everything else being the same. Kombu looks into this
#: table when a process first connects.
STOCK = """
from kombu.transport import TRANSPORT_ALIASES
from {slug}.celery import celery as app

TRANSPORT_ALIASES["redis"] = "kombu.transport.redis:Transport"
"""

#: Sends `count` tasks and writes one line for each: its id, its error or null, when it was sent, how long that took.
PUBLISHER = """
import json, random, time
from {slug}.celery import celery
from {slug}.tasks import probe

rng = random.Random({seed})
with open({ledger!r}, "a", buffering=1) as ledger:
    for number in range({count}):
        task_id = f"{cell}-{{number}}"
        sent_at, begun = time.time(), time.monotonic()
        error = None
        try:
            probe.work.apply_async(({notes!r}, task_id, rng.uniform(0, {longest})), task_id=task_id)
        except Exception as exception:
            error = repr(exception)
        took = time.monotonic() - begun
        ledger.write(json.dumps([task_id, error, sent_at, took]) + "\\n")
        time.sleep(max(0, {pace} - took))
"""


@dataclass(frozen=True)
class Servers:
    """The project and its servers. They serve one cell after the other."""

    name: str
    project: InstalledProject
    broker: Server
    #: A Redis for results and dead letters. On Redis the broker keeps them, except where a cell has them apart.
    store: Server
    folder: Path


@contextlib.contextmanager
def servers(broker_name: str, folder: Path, rabbitmq: Server | None = None) -> Iterator[Servers]:
    """Start what a broker needs, but for a RabbitMQ that is there already."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(start_redis(folder / "store", options=DURABLE))
        if broker_name == "redis":
            broker = stack.enter_context(start_redis(folder / "broker", options=DURABLE))
        else:
            broker = rabbitmq or stack.enter_context(start_rabbitmq(folder / "broker"))
        yield Servers(broker_name, plain_project(), broker, store, folder)


@dataclass
class Sent:
    """One line of the publisher."""

    task_id: str
    error: str | None
    at: float
    seconds: float


@dataclass
class Bench:
    """What one cell works with. The faults act on it."""

    servers: Servers
    cell: str
    seed: int
    store_apart: bool
    longest_outage: float
    outages: int = 0
    #: Leave every setting at our defaults.
    defaults: bool = False
    #: Run the workers on Kombu's own transport.
    stock: bool = False
    #: How many workers there are.
    size: int = 2
    rng: random.Random = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    #: What happened when, to understand a failure.
    journal: list[str] = field(default_factory=list)
    #: Workers that ended though nobody killed them.
    casualties: list[str] = field(default_factory=list)
    #: How many dead letters the injected messages must become.
    condemned: int = 0
    _started: int = 0
    _begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Empty the servers, and start recording."""
        self.rng = random.Random(f"{self.seed} {self.cell}")
        self.folder = self.servers.folder / self.cell
        self.folder.mkdir()
        self.notes = self.folder / "notes"
        self.ledger = self.folder / "ledger"
        self.notes.touch()
        self.ledger.touch()
        for server in (self.broker, self.servers.store):
            server.recover()
        for each in {self.store.url, self.servers.store.url}:
            with redis.Redis.from_url(each) as client:
                client.flushall()
        if self.servers.name == "rabbitmq":
            empty(self.broker)

    @property
    def broker(self) -> Server:
        """The server that holds the messages."""
        return self.servers.broker

    @property
    def store(self) -> Server:
        """The server that holds results and dead letters."""
        apart = self.store_apart or self.servers.name == "rabbitmq"
        return self.servers.store if apart else self.servers.broker

    @property
    def time_limit(self) -> float:
        """When a task is ended. It may have to wait for the result store in each of the outages."""
        return self.outages * (self.longest_outage + LOOKS_AGAIN) + MARGIN

    @property
    def lease(self) -> float:
        """Seconds after which other workers take over messages of a killed worker. Kombu's transport has no leases."""
        if self.defaults:
            return DEFAULT_LEASE
        return self.time_limit + MARGIN if self.stock else LEASE

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment of workers and publishers."""
        servers = {"CELERY_BROKER_URL": self.broker.url, "CELERY_RESULT_BACKEND": self.store.url}
        if self.defaults:
            return servers
        options = {"visibility_timeout": self.lease}
        on_redis = {"CELERY_BROKER_TRANSPORT_OPTIONS": json.dumps(options)} if self.servers.name == "redis" else {}
        limit = self.time_limit
        every_task = {
            "time_limit": limit,
            "soft_time_limit": limit - 1,
            "default_retry_delay": 1,
            "retry_backoff_max": 1,
        }
        return {
            **servers,
            "CELERY_TASK_TIME_LIMIT": str(limit),
            # A dead child is sometimes noticed only by this; the default of 10 seconds is above our time limit.
            "CELERY_WORKER_LOST_WAIT": "1",
            # Shorter than the example tasks have it.
            "CELERY_TASK_ANNOTATIONS": json.dumps({"*": every_task}),
            **on_redis,
        }

    def note(self, line: str) -> None:
        """Write into the journal."""
        self.journal.append(f"{time.monotonic() - self._begun:6.1f} s  {line}")

    # --- workers ---

    def start_worker(self) -> Worker:
        """Start one more worker; nobody waits for it."""
        self._started += 1
        worker = Worker(
            self.servers.project,
            env={**self.variables, "PYTHONPATH": str(self.folder)},
            log=self.folder / f"worker{self._started}.log",
            arguments=("--concurrency", str(CHILDREN)),
            app=self._app(),
        )
        self.workers.append(worker)
        return worker

    def _app(self) -> str:
        if not self.stock:
            return ""
        (self.folder / "stock.py").write_text(STOCK.format(slug=self.servers.project.slug))
        return "stock"

    def replace_dead_workers(self) -> None:
        """Restart dead workers, as a supervisor does, and record that."""
        for worker in [each for each in self.workers if each.process.poll() is not None]:
            self.note(f"{worker.log.stem} ended by itself with status {worker.process.returncode}")
            self.casualties.append(worker.log.stem)
            self.workers.remove(worker)
            self.start_worker()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have the workers run during the block; at its end, they stop in order."""
        try:
            for _ in range(self.size):
                self.start_worker()
            for worker in self.workers:
                worker.wait_ready(60)
            yield
            for worker in self.workers:
                status = worker.stop(60)
                assert status == 0, f"{worker.log} ended with status {status}"
        finally:
            for worker in self.workers:
                worker.kill()

    # --- publishers ---

    def publisher(self, count: int, pace: float, longest: float) -> subprocess.Popen[bytes]:
        """Start to send `count` tasks of 0 to `longest` seconds, one each `pace` seconds."""
        code = PUBLISHER.format(
            slug=self.servers.project.slug,
            seed=self.seed,
            ledger=str(self.ledger),
            notes=str(self.notes),
            cell=self.cell,
            count=count,
            pace=pace,
            longest=longest,
        )
        with (self.folder / "publisher.log").open("wb") as log:
            return subprocess.Popen(
                [self.servers.project.program("python"), "-c", code],
                cwd=self.servers.project.folder,
                env=environment.of_a_user(self.variables),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def send(self, call: str) -> None:
        """Send something else, such as `probe.crash.delay(notes)`."""
        slug = self.servers.project.slug
        code = (
            f"from {slug}.celery import celery\nfrom {slug}.tasks import probe\nnotes = {str(self.notes)!r}\n{call}.id"
        )
        with Publisher(self.servers.project, self.variables, output=self.folder / "sender") as publisher:
            publisher.run(code)

    # --- what became of it ---

    def sent(self) -> list[Sent]:
        """Give what the publisher has written."""
        return [Sent(*json.loads(line)) for line in self.ledger.read_text().splitlines()]

    def ends(self) -> Counter[str]:
        """Give how often each task has come to its end."""
        lines = [line.split(" ", 1) for line in self.notes.read_text().splitlines()]
        return Counter(line[1] for line in lines if line[0] == "end")

    def results(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Give what the result store has."""
        with redis.Redis.from_url(self.store.url) as client:
            found = client.mget([f"celery-task-meta-{task_id}" for task_id in ids]) if ids else []
        texts: list[Any] = list(found)
        return {task_id: json.loads(text) if text else {} for task_id, text in zip(ids, texts, strict=True)}

    def states(self, ids: list[str]) -> dict[str, str]:
        """Give the states in the result store."""
        return {task_id: result.get("status", "") for task_id, result in self.results(ids).items()}

    def dead_letters(self) -> list[dict[str, Any]]:
        """Ask as a user does."""
        command = ["celery", "-A", f"{self.servers.project.slug}.celery", "dead-letters", "list", "--json"]
        done = run_command(self.servers.project, command, self.variables, output=self.folder / "command")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _count_dead_letters(self) -> int:
        with redis.Redis.from_url(self.store.url) as client:
            return int(client.zcard(f"{self.servers.project.slug}:dead-letters:times"))

    def waiting(self) -> int:
        """Give how many messages the broker holds. RabbitMQ doesn't tell of those that a worker has."""
        if self.servers.name == "redis":
            with redis.Redis.from_url(self.broker.url) as client:
                held: Any = [client.llen(queue) for queue in QUEUES] + [client.hlen("unacked")]
                return int(sum(held))
        counts: list[int] = []
        self.each_queue(lambda channel, queue: counts.append(channel.queue_declare(queue, passive=True).message_count))
        return sum(counts)

    def each_queue(self, do: Any) -> None:
        """Do something with each queue of RabbitMQ that is there."""
        with kombu.Connection(self.broker.url, connect_timeout=10) as connection:
            for queue in QUEUES:
                with contextlib.suppress(NotFound):
                    do(connection.channel(), queue)

    def wait_until_drained(self, seconds: float) -> None:
        """Wait until each confirmed task has an outcome and the broker is empty, or until the deadline."""
        confirmed = [sent.task_id for sent in self.sent() if sent.error is None]

        def is_drained() -> bool:
            self.replace_dead_workers()
            ended = set(self.states(confirmed).values()) <= {"SUCCESS", "FAILURE"}
            return ended and not self.waiting() and self._count_dead_letters() >= self.condemned

        try:
            wait_until(is_drained, seconds, "the last task to end")
        except TimeoutError as error:
            self.note(str(error))
