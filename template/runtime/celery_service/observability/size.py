"""The command `size`: compute how many workers a load needs, and what they need of their servers.

The numbers for each task, connection and process were measured with this library. The template's
tests/behaviour/test_size.py checks them. Everything else is computed from them.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from celery import Celery

from celery_service.config.addresses import scheme_of

#: Processes are busy for this part of the time: with more, waiting times grow quickly.
#: https://en.wikipedia.org/wiki/M/M/c_queue
USE = 0.7
#: An outage after which the queue must be short again, and in which time: seconds.
OUTAGE, CATCH_UP = 600, 1800
#: Commands that Redis runs for a task, with its publisher and its result.
COMMANDS = {"redis": 23, "rabbitmq": 10}
#: Connections to Redis: of a worker's main process, and of each process of its pool.
REDIS_CONNECTIONS = {"redis": (12, 1), "rabbitmq": (1, 1)}
#: Connections of a worker to RabbitMQ.
RABBITMQ_CONNECTIONS = 4
#: Commands of a worker that renew its leases and look for those that ended, in a lease.
LEASE_COMMANDS = 8
#: Memory in megabytes (RSS): of a main process, and of a process of the pool without libraries of
#: the service.
MAIN_MB, CHILD_MB = 80, 70
#: Bytes in Redis of a result that is a number or a short text.
RESULT_BYTES = 300
#: One Redis runs so many simple commands a second on a core. Redis's own benchmark says 100,000 and
#: more. Half of it is left for commands that take longer.
REDIS_COMMANDS = 50_000


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the service must do, and with what."""

    rate: float
    seconds: float
    cpu_seconds: float
    longest: float
    concurrency: int
    child_mb: float
    result_bytes: float
    broker: str
    lease: float
    grace: float
    prefetch: int
    result_expires: float
    time_limit: float | None
    database_connections: int | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the answer."""

    what: str
    value: str
    why: str
    is_warning: bool = False


@click.command(name="size")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    help="Tasks a second, at the peak.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    required=True,
    help="Mean time of a task.",
)
@click.option(
    "--cpu",
    "cpu_seconds",
    type=click.FloatRange(min=0),
    help="Mean processor time of a task in seconds; by default all of its time.",
)
@click.option(
    "--longest",
    type=click.FloatRange(min=0, min_open=True),
    help="The longest time of a task; by default ten times the mean.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Processes of a worker; by default CELERY_WORKER_CONCURRENCY, or the cores here.",
)
@click.option(
    "--child-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=CHILD_MB,
    show_default=True,
    help="Memory of a process of the pool.",
)
@click.option(
    "--result-bytes",
    type=click.FloatRange(min=0),
    default=RESULT_BYTES,
    show_default=True,
    help="Size of a result in Redis; 0 with ignore_result.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object for each line of the answer."
)
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **given: Any) -> None:
    """Compute the workers, memory and connections that a load needs."""
    app: Celery = ctx.obj.app
    app.loader.import_default_modules()
    load = _load(app, given)
    lines = list(size(load))
    if as_json:
        for line in lines:
            click.echo(json.dumps(asdict(line)))
        return
    click.echo(f"For {load.rate:g} tasks a second that take {load.seconds:g} s each:\n")
    width = max(len(line.what) for line in lines)
    values = max(len(line.value) for line in lines)
    for line in lines:
        mark = "! " if line.is_warning else "  "
        click.echo(f"{mark}{line.what:<{width}}  {line.value:>{values}}  {line.why}")
    click.echo("\ndocs/dev/scaling.md explains each line.")


def _load(app: Celery, given: dict[str, Any]) -> Load:
    conf: Any = app.conf
    broker = (
        "rabbitmq"
        if scheme_of(str(conf.broker_url or "")).startswith(("amqp", "pyamqp"))
        else "redis"
    )
    options = conf.broker_transport_options or {}
    database = sys.modules.get("celery_service.data.database")
    settings = getattr(database, "settings", None)
    seconds = given["seconds"]
    cpu = given["cpu_seconds"]
    return Load(
        rate=given["rate"],
        seconds=seconds,
        cpu_seconds=seconds if cpu is None else cpu,
        longest=given["longest"] or 10 * seconds,
        concurrency=given["concurrency"] or conf.worker_concurrency or os.cpu_count() or 1,
        child_mb=given["child_mb"],
        result_bytes=given["result_bytes"],
        broker=broker,
        lease=float(options.get("visibility_timeout") or 60),
        grace=conf.worker_soft_shutdown_timeout,
        prefetch=conf.worker_prefetch_multiplier,
        result_expires=float(
            getattr(conf.result_expires, "total_seconds", lambda: conf.result_expires or 0)()
        ),
        time_limit=conf.task_time_limit,
        database_connections=settings.pool_size + settings.max_overflow if settings else None,
    )


def size(load: Load) -> Iterator[Line]:
    """Yield what the load needs."""
    busy = load.rate * load.seconds
    usual = math.ceil(busy / USE)
    # What has waited during an outage is run besides what arrives.
    after = math.ceil(busy * (1 + OUTAGE / CATCH_UP))
    processes = max(usual, after)
    workers = math.ceil(processes / load.concurrency) + 1
    total = workers * load.concurrency
    yield Line(
        what="processes",
        value=f"{processes:,}",
        why=f"{busy:,.1f} are busy at once; {USE:.0%} use, and {CATCH_UP // 60} minutes to catch up"
        f" after an outage of {OUTAGE // 60}",
    )
    yield Line(
        what="workers",
        value=f"{workers:,}",
        why=f"with {load.concurrency} processes each, and one more, so that one may be missing",
    )
    cores = load.rate * load.cpu_seconds / USE
    yield Line(
        what="cores", value=f"{cores:,.1f}", why=f"{load.cpu_seconds:g} s of processor time a task"
    )
    memory = workers * MAIN_MB + total * load.child_mb
    yield Line(
        what="memory",
        value=_bytes(memory * 1e6),
        why=f"{MAIN_MB} MB a worker and {load.child_mb:g} MB a process",
    )
    yield from _of_stopping(load)
    yield from _of_messages(load, workers)
    yield from _of_redis(load, workers, total)
    if load.database_connections:
        connections = total * load.database_connections
        yield Line(
            what="database connections",
            value=f"{connections:,}",
            why=f"{load.database_connections} a process (pool size and overflow), all in use",
            # PostgreSQL's default: max_connections = 100.
            is_warning=connections > 100,
        )


def _of_stopping(load: Load) -> Iterator[Line]:
    fits = load.longest <= load.grace
    yield Line(
        what="grace period",
        value=f"{load.grace:g} s",
        why=f"the longest task, {load.longest:g} s, "
        + (
            "ends before a deployment kills it"
            if fits
            else "starts again elsewhere when a deployment stops its worker"
        ),
        is_warning=not fits,
    )
    if load.time_limit and load.longest > load.time_limit:
        yield Line(
            what="time limit",
            value=f"{load.time_limit:g} s",
            why=f"ends the longest task, {load.longest:g} s: raise CELERY_TASK_TIME_LIMIT",
            is_warning=True,
        )


def _of_messages(load: Load, workers: int) -> Iterator[Line]:
    held = workers * load.concurrency * load.prefetch
    yield Line(
        what="messages held",
        value=f"{held:,}",
        why=f"CELERY_WORKER_PREFETCH_MULTIPLIER={load.prefetch}",
    )
    if load.prefetch == 1 and load.seconds < 0.02:
        yield Line(
            what="prefetch",
            value="1",
            why="tasks are short: with 4, workers wait less for messages",
            is_warning=True,
        )


def _of_redis(load: Load, workers: int, processes: int) -> Iterator[Line]:
    main, child = REDIS_CONNECTIONS[load.broker]
    connections = workers * main + processes * child
    yield Line(
        what="Redis connections",
        value=f"{connections:,}",
        why=f"{main} a worker and {child} a process; publishers come on top",
        is_warning=connections > 8000,  # Redis's default: maxclients 10000
    )
    if load.broker == "rabbitmq":
        yield Line(
            what="RabbitMQ connections",
            value=f"{workers * RABBITMQ_CONNECTIONS:,}",
            why=f"{RABBITMQ_CONNECTIONS} a worker; publishers come on top",
        )
    leases = workers * LEASE_COMMANDS / load.lease if load.broker == "redis" else 0
    commands = load.rate * COMMANDS[load.broker] + leases
    yield Line(
        what="Redis commands",
        value=f"{commands:,.0f}/s",
        why=f"{COMMANDS[load.broker]} a task"
        + (f", and {leases:,.1f}/s for leases" if leases else "")
        + f"; one Redis runs about {REDIS_COMMANDS:,}/s",
        is_warning=commands > REDIS_COMMANDS,
    )
    results = load.rate * load.result_expires * load.result_bytes
    yield Line(
        what="results in Redis",
        value=_bytes(results),
        why=f"{load.result_bytes:g} bytes each, kept for {load.result_expires / 3600:g} hours"
        " (CELERY_RESULT_EXPIRES)",
        is_warning=results > 1e9,
    )
    waiting = load.rate * OUTAGE * 1000
    if load.broker == "redis":
        yield Line(
            what="messages in Redis",
            value=_bytes(waiting),
            why=f"that wait after an outage of {OUTAGE // 60} minutes, 1 kB each",
            is_warning=waiting > 1e9,
        )


def _bytes(number: float) -> str:
    for unit, size_ in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size_:
            return f"{number / size_:,.1f} {unit}"
    return f"{number / 1e3:,.1f} kB"
