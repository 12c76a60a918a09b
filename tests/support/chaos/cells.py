"""The rows of the table, and how one is run and counted."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from support.chaos import faults
from support.chaos.bench import Bench, Servers

Fault = Callable[[Bench], None]


@dataclass(frozen=True)
class Cell:
    """Faults that happen while tasks run, and the allowed outcomes."""

    name: str
    faults: tuple[Fault, ...]
    #: Whether a task may run twice: its process or its acknowledgement was lost.
    doubles: bool
    #: Whether servers go away; how long, the scale says.
    outages: bool = False
    #: Whether an innocent task may become a dead letter: its process died, or its connection broke, in 3 deliveries.
    dead_letters: bool = False
    #: Results and dead letters are in a Redis of their own.
    store_apart: bool = False
    #: Leave every setting at our defaults; the other rows have a lease of 8 seconds and short limits.
    defaults: bool = False
    #: Run the workers on Kombu's own transport, to compare. It loses messages.
    stock: bool = False
    #: How many kills of the one worker, which always has a queue full of short tasks; 0: as in the other rows.
    kills: int = 0
    brokers: tuple[str, ...] = ("redis", "rabbitmq")

    @property
    def slug(self) -> str:
        """The name as a folder and a part of ids."""
        return "-".join(re.findall(r"\w+", self.name.lower()))


#: How often a busy worker is killed. Kombu's own transport loses a message in about one of six kills.
KILLS = 40

CELLS = (
    Cell("no fault", (), doubles=False),
    Cell("child killed", (faults.kill_child,), doubles=True, dead_letters=True),
    Cell("worker killed", (faults.kill_worker,), doubles=True, dead_letters=True),
    Cell("worker killed, default settings", (faults.kill_worker,), doubles=True, dead_letters=True, defaults=True),
    Cell("busy worker killed", (faults.kill_busy_worker,), doubles=True, dead_letters=True, kills=KILLS),
    Cell(
        "busy worker killed, Kombu's own transport",
        (faults.kill_busy_worker,),
        doubles=True,
        dead_letters=True,
        stock=True,
        kills=KILLS,
        brokers=("redis",),
    ),
    Cell("worker frozen, then killed", (faults.freeze_worker,), doubles=True, dead_letters=True),
    Cell("rolling deployment", (faults.deploy,), doubles=False),
    Cell("broker restarted", (faults.restart_broker,), doubles=True, outages=True, dead_letters=True),
    Cell("broker killed", (faults.kill_broker,), doubles=True, outages=True, dead_letters=True),
    Cell("broker frozen", (faults.freeze_broker,), doubles=True, outages=True),
    Cell("result store restarted", (faults.restart_store,), doubles=False, outages=True, store_apart=True),
    Cell("result store frozen", (faults.freeze_store,), doubles=False, outages=True, store_apart=True),
    Cell("Redis out of memory", (faults.fill_redis,), doubles=True, outages=True),
    Cell("disk of Redis full", (faults.fill_redis_disk,), doubles=True, outages=True),
    Cell("memory alarm", (faults.fill_memory,), doubles=True, outages=True, brokers=("rabbitmq",)),
    Cell("disk alarm", (faults.fill_disk,), doubles=True, outages=True, brokers=("rabbitmq",)),
    Cell("poison message", (faults.send_poison,), doubles=False),
    Cell("unknown task", (faults.send_unknown,), doubles=False),
    Cell("undecodable message", (faults.send_garbage,), doubles=False),
    Cell(
        "mix of all",
        (
            faults.kill_child,
            faults.kill_worker,
            faults.freeze_worker,
            faults.deploy,
            faults.restart_broker,
            faults.kill_broker,
            faults.freeze_broker,
            faults.restart_store,
            faults.freeze_store,
        ),
        doubles=True,
        outages=True,
        dead_letters=True,
        store_apart=True,
    ),
)

#: The short form: the same faults in fewer runs.
SHORT = (
    Cell(
        "children and workers killed",
        (faults.kill_child, faults.kill_worker, faults.freeze_worker),
        doubles=True,
        dead_letters=True,
    ),
    Cell("rolling deployment", (faults.deploy,), doubles=False),
    Cell(
        "broker restarted, killed, frozen",
        (faults.restart_broker, faults.kill_broker, faults.freeze_broker),
        doubles=True,
        outages=True,
        dead_letters=True,
    ),
    Cell(
        "result store restarted, frozen",
        (faults.restart_store, faults.freeze_store),
        doubles=False,
        outages=True,
        store_apart=True,
    ),
    Cell("memory or disk of Redis full", (faults.fill_redis, faults.fill_redis_disk), doubles=True, outages=True),
    Cell(
        "messages that can not succeed", (faults.send_poison, faults.send_unknown, faults.send_garbage), doubles=False
    ),
)


@dataclass(frozen=True)
class Scale:
    """The number of tasks and faults, and their durations."""

    tasks: int
    faults: int
    #: The longest time that something is away.
    outage: float
    #: Between two faults, seconds: from, to.
    between: tuple[float, float] = (0.3, 2.0)
    #: A task each so many seconds, of 0 to so many seconds.
    pace: float = 0.08
    longest: float = 0.2


#: For so many kills of a worker that always has something to do.
BUSY = Scale(tasks=60 * KILLS, faults=KILLS, outage=0, between=(0, 0), pace=0, longest=0.02)
SHORT_SCALE = Scale(tasks=100, faults=3, outage=5)
LONG_SCALE = Scale(tasks=120, faults=5, outage=60)


@dataclass(frozen=True)
class Outcome:
    """What was counted."""

    cell: Cell
    broker: str
    sent: int
    #: The publisher got an error; and how many of those ran all the same.
    unconfirmed: int
    unconfirmed_ran: int
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    dead: int
    condemned: int
    left: int
    casualties: tuple[str, ...]
    slowest_publish: float
    #: From being sent to its end, in seconds.
    slowest_task: float
    seconds: float
    journal: tuple[str, ...]

    def problems(self) -> list[str]:
        """Return the outcomes that are not allowed."""
        found = {
            f"lost: {', '.join(self.lost)}": self.lost and not self.cell.stock,
            f"ran twice: {', '.join(self.doubled)}": self.doubled and not self.cell.doubles,
            f"{self.dead} dead letters instead of {self.condemned}": (
                self.dead != self.condemned and not (self.cell.dead_letters and self.dead > self.condemned)
            ),
            f"{self.left} messages left behind": self.left and not self.cell.stock,
            f"workers ended by themselves: {', '.join(self.casualties)}": self.casualties,
            f"a publisher waited {self.slowest_publish:.1f} s": self.slowest_publish >= 10,
        }
        return [text for text, is_wrong in found.items() if is_wrong]


def seed() -> int:
    """Give the seed of this run: that of `CHAOS_SEED`, or a new one."""
    return int(os.environ.get("CHAOS_SEED") or time.time())


def run(cell: Cell, servers: Servers, scale: Scale, seed: int) -> Outcome:
    """Send tasks, let the faults happen, wait until all is done, and count."""
    begun = time.monotonic()
    if cell.kills:
        scale = BUSY
    bench = Bench(
        servers,
        cell.slug,
        seed,
        cell.store_apart,
        scale.outage,
        outages=max(scale.faults, len(cell.faults)) if cell.outages else 0,
        defaults=cell.defaults,
        stock=cell.stock,
        size=1 if cell.kills else 2,
    )
    with bench.running():
        publisher = bench.publisher(scale.tasks, scale.pace, scale.longest)
        try:
            _let_it_happen(bench, cell, scale)
            publisher.wait(600)
        finally:
            publisher.kill()
        bench.wait_until_drained(bench.lease + 60)
    return _count(bench, cell, time.monotonic() - begun)


def assert_nothing_is_lost(cell: Cell, servers: Servers, seed: int) -> None:
    """Run one cell of the short form; what is wrong is told with what happened when."""
    outcome = run(cell, servers, SHORT_SCALE, seed)
    assert not outcome.problems(), "\n".join([*outcome.problems(), f"CHAOS_SEED={seed}", *outcome.journal])


def _let_it_happen(bench: Bench, cell: Cell, scale: Scale) -> None:
    """Follow the plan: each fault once, then any of them, with random pauses in between."""
    times = max(scale.faults, len(cell.faults)) if cell.faults else 0
    order = [*bench.rng.sample(cell.faults, len(cell.faults))]
    order += [bench.rng.choice(cell.faults) for _ in range(times - len(order))]
    for fault in order:
        time.sleep(bench.rng.uniform(*scale.between))
        fault(bench)
        bench.replace_dead_workers()


def _count(bench: Bench, cell: Cell, seconds: float) -> Outcome:
    sent = bench.sent()
    confirmed = [each.task_id for each in sent if each.error is None]
    unconfirmed = {each.task_id for each in sent} - set(confirmed)
    results, ends, letters = bench.results(confirmed), bench.ends(), bench.dead_letters()
    states = {task: result.get("status", "") for task, result in results.items()}
    took = [
        datetime.fromisoformat(results[each.task_id]["date_done"]).timestamp() - each.at
        for each in sent
        if each.task_id in results and results[each.task_id].get("date_done")
    ]
    dead = {letter["id"] for letter in letters}
    return Outcome(
        cell=cell,
        broker=bench.servers.name,
        sent=len(sent),
        unconfirmed=len(unconfirmed),
        unconfirmed_ran=len(unconfirmed & ends.keys()),
        lost=tuple(
            f"{task} ({states[task] or 'no state'}, ended {ends[task]} times)"
            for task in confirmed
            if task not in dead and not (states[task] == "SUCCESS" and ends[task])
        ),
        doubled=tuple(task for task, times in ends.items() if times > 1),
        dead=len(letters),
        condemned=bench.condemned,
        left=bench.waiting(),
        casualties=tuple(bench.casualties),
        slowest_publish=max((each.seconds for each in sent), default=0.0),
        slowest_task=max(took, default=0.0),
        seconds=seconds,
        journal=tuple(bench.journal),
    )
