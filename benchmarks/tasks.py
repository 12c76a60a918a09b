"""Tasks on real workers and servers, in tasks per second: see throughput.py for how they are measured.

All workers have two processes unless said otherwise, log at level INFO into a file, and keep results in Redis. Each
task takes an integer, which the project validates. The servers are new and on this machine, so that they and the
workers share its processors. Children are replaced after 1,000 tasks, as the project's settings have it, which is part
of the numbers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from support.project import InstalledProject, run_python
from support.servers import start_postgres, start_rabbitmq, start_redis

from .leases import HELD
from .report import Row
from .run import Run
from .throughput import Side, rates

#: What a bare app needs to lose no task when a process dies, and to leave waiting ones to other workers. Everything
#: else is as Celery has it: no state "started", no limits, on RabbitMQ a classic queue.
BARE: dict[str, object] = {
    "task_acks_late": True,
    "worker_prefetch_multiplier": 1,
    "broker_connection_retry_on_startup": True,
    "task_default_queue": "bare",
}


@contextmanager
def redis_databases(run: Run, name: str) -> Iterator[list[str]]:
    """A Redis, as the URLs of its databases. Each worker gets two: one for messages, one for results."""
    with start_redis(run.folder / "redis" / name) as server:
        base = server.url.rpartition("/")[0]
        yield [f"{base}/{number}" for number in range(16)]


@contextmanager
def _postgres(run: Run) -> Iterator[str]:
    """A PostgreSQL, as the URL of a role with a password. One that TEST_POSTGRESQL_URL names is taken as it is."""
    with start_postgres(run.folder / "postgres") as server:
        if not server.command:
            yield server.url
            return
        role = password = "benchmark"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"create role {role} login password '{password}'".encode())
            [path] = connection.execute("show hba_file").fetchone() or [""]
        # The first line that matches counts; the others trust everybody.
        rules = Path(path)
        rules.write_text(f"host all {role} all scram-sha-256\n{rules.read_text()}")
        server.restart()
        yield server.url.replace("postgres@", f"{role}:{password}@", 1)


# --- async tasks ------------------------------------------------------------------------------------------------------


def async_with_a_query(run: Run) -> list[Row]:
    """One `SELECT 1` on PostgreSQL in a transaction.

    The project's async task, on its loop and engine that outlive tasks, against (a) `asyncio.run` with a new engine in
    each task, and (b) a plain task with a sync engine that each process keeps. The pool settings are the project's.
    The role logs in with a password, as anywhere but on a developer's machine; there is no TLS, and no network.
    """
    project = run.full_project("redis")
    with redis_databases(run, "async-db") as databases, _postgres(run) as url:
        tasks = ("benchmark.query", "benchmark.query_in_new_loop", "benchmark.query_without_loop")
        sides = [_side(project, task, databases, DATABASE_URL=url) for task in tasks]
        ours, new_loop, sync = rates(run, "async-db", sides)
    what = "async task with one query on PostgreSQL"
    return [
        Row(
            what=what,
            baseline_is="`asyncio.run` and a new engine in each task",
            unit="tasks/s",
            baseline=new_loop,
            ours=ours,
            at_least=4,
        ),
        Row(
            what=what,
            baseline_is="sync engine, kept by the process",
            unit="tasks/s",
            baseline=sync,
            ours=ours,
            at_least=0.95,
        ),
    ]


def async_without_work(run: Run) -> list[Row]:
    """A coroutine that returns at once against a plain function that does."""
    project = run.full_project("redis")
    with redis_databases(run, "async-noop") as databases:
        sides = [_side(project, task, databases) for task in ("benchmark.async_noop", "benchmark.noop")]
        ours, sync = rates(run, "async-noop", sides)
    return [
        Row(
            what="async task without work",
            baseline_is="sync task without work",
            unit="tasks/s",
            baseline=sync,
            ours=ours,
            at_least=0.9,
        )
    ]


def concurrent_awaits(run: Run) -> list[Row]:
    """100 tasks that each await 100 ms: 100 threads of one process against two processes."""
    project = run.full_project("redis")
    with redis_databases(run, "awaits") as databases:
        threads = ("--pool", "threads", "--concurrency", "100")
        sides = [
            _side(project, "benchmark.wait", databases, arguments=threads),
            _side(project, "benchmark.wait", databases),
        ]
        ours, prefork = rates(run, "awaits", sides, tasks=100)
    return [
        Row(
            what="100 tasks that await 100 ms, `--pool=threads --concurrency=100`",
            baseline_is="prefork, 2 processes",
            unit="tasks/s",
            baseline=prefork,
            ours=ours,
        )
    ]


def held_messages(run: Run) -> list[Row]:
    """A task without work, on a worker that holds and renews 10,000 messages, and on one that holds none."""
    project = run.full_project("redis")
    with redis_databases(run, "held") as databases:
        variables = {"CELERY_WORKER_ETA_TASK_LIMIT": "none"}
        holding, empty = (_side(project, "benchmark.noop", databases, held=held, **variables) for held in (HELD, 0))
        ours, baseline = rates(run, "held", [holding, empty])
    return [
        Row(
            what=f"task without work on Redis, {HELD:,} messages with a countdown held",
            baseline_is="none held",
            unit="tasks/s",
            baseline=baseline,
            ours=ours,
        )
    ]


def _side(
    project: InstalledProject, task: str, databases: list[str], *, arguments: Any = None, held: int = 0, **more: str
) -> Side:
    """A task of the project on Redis; takes two of its databases."""
    options = {"arguments": arguments} if arguments else {}
    return Side(
        project=project,
        task=task,
        queue="default",
        broker=databases.pop(),
        results=databases.pop(),
        variables=more,
        held=held,
        **options,
    )


# --- the whole project ------------------------------------------------------------------------------------------------


def project_on_redis(run: Run) -> list[Row]:
    """See `_project_against_bare_apps`."""
    with redis_databases(run, "noop-redis") as databases:
        brokers = [databases.pop() for _ in range(3)]
        return _project_against_bare_apps(run, "redis", brokers, databases)


def project_on_rabbitmq(run: Run) -> list[Row]:
    """See `_project_against_bare_apps`."""
    with redis_databases(run, "noop-rabbitmq") as databases, start_rabbitmq(run.folder / "rabbitmq") as broker:
        return _project_against_bare_apps(run, "rabbitmq", [broker.url] * 3, databases)


def _project_against_bare_apps(run: Run, broker: str, brokers: list[str], databases: list[str]) -> list[Row]:
    """A task without work: the project with everything on against two bare apps.

    One has the same guarantees as far as settings give them: the project's settings of Celery, with quorum queues,
    confirmed publishing and the state "started", and none of its code. The ratio is what the code costs. The other has
    Celery's defaults, late acknowledgement and a prefetch of one (`BARE`); that ratio is reported, not aimed at.
    """
    project = run.full_project(broker)
    same = run.bare_app(f"bare-{broker}-same", project, _settings_of(project, brokers[0]))
    plain = run.bare_app(f"bare-{broker}-plain", project, BARE)
    sides = [
        Side(project=each, task="benchmark.noop", queue=queue, broker=url, results=databases.pop())
        for each, queue, url in zip((project, same, plain), ("default", "bare_default", "bare"), brokers, strict=True)
    ]
    ours, with_same, with_plain = rates(run, f"noop-{broker}", sides)
    what = f"task without work on {'Redis' if broker == 'redis' else 'RabbitMQ'}, everything on"
    return [
        Row(
            what=what,
            baseline_is="bare app with the same guarantees",
            unit="tasks/s",
            baseline=with_same,
            ours=ours,
            at_least=1.0 if broker == "redis" else 0.95,
        ),
        Row(
            what=what,
            baseline_is="bare app, late acknowledgement and prefetch 1",
            unit="tasks/s",
            baseline=with_plain,
            ours=ours,
        ),
    ]


def _settings_of(project: InstalledProject, broker: str) -> Mapping[str, object]:
    """The project's settings of Celery, less those that name its code, with queues of their own."""
    code = (
        "import json, pathlib; from celery_service.config.merge import configuration\n"
        "settings = configuration(root=pathlib.Path.cwd(), routes={})\n"
        "del settings['task_routes'], settings['worker_consumer']\n"
        # Celery then sets up logging itself; with this off, nobody would.
        "settings['worker_hijack_root_logger'] = True\n"
        "print(json.dumps(settings))"
    )
    settings: dict[str, Any] = run_python(
        project, code, {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": "redis://unused"}
    )
    del settings["broker_url"]
    settings.pop("result_backend", None)
    return settings | {
        "task_default_queue": "bare_default",
        "task_queues": {
            f"bare_{name}": details | {"exchange": f"bare_{name}"} for name, details in settings["task_queues"].items()
        },
    }
