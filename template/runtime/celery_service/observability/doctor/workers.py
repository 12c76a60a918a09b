"""Workers and queues: who answers, what each runs, and what waits."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from celery import Celery

from celery_service.brokers.queues import DEAD_LETTER_QUEUE
from celery_service.brokers.times import time_of
from celery_service.observability.doctor.finding import Finding, some, span
from celery_service.observability.doctor.servers import (
    is_embedded,
    redis_of_broker,
    redis_of_results,
    uses_rabbitmq,
    uses_redis,
)
from celery_service.observability.overview import Length, lengths, routed
from celery_service.observability.report import WAIT, ask_workers, is_report, release_of

#: A message that has waited for longer than this is reported, in seconds.
OLD = 60 * 60
#: Clocks that differ by more than this are reported, in seconds. Countdowns and schedules are as
#: wrong as the clocks.
SKEW = 5.0
#: A busy machine may need longer for the first answer, in seconds.
PATIENCE = 2.5


class Answers(NamedTuple):
    """What workers have answered, and when they were asked."""

    workers: list[tuple[str, Any]]
    began: float
    ended: float

    @property
    def reports(self) -> dict[str, Any]:
        """The answers of the workers that know the command."""
        return {name: answer for name, answer in self.workers if is_report(answer)}


def check(app: Celery) -> Iterator[Finding]:
    """Ask all workers, and then the broker for each queue."""
    if str(app.conf.broker_read_url).startswith("memory"):
        text = "messages are in the memory of each process: no other process sees them"
        yield Finding("unseen", "workers", text, "Name a broker in CELERY_BROKER_URL.")
        return
    began = time.time()
    found = ask_workers(app, WAIT) or ask_workers(app, PATIENCE)
    answers = Answers(found, began, time.time())
    yield from _workers(answers)
    yield from _releases(app, answers)
    yield from _clocks(app, answers)
    yield from _queues(app, answers)


def _workers(answers: Answers) -> Iterator[Finding]:
    if not answers.workers:
        fix = "Start a worker. One that runs is cut off from the broker, or too busy to answer."
        yield Finding("broken", "workers", "no worker answers: tasks don't run", fix)
        return
    names = Counter(name for name, _ in answers.workers)
    if twice := sorted(name for name, count in names.items() if count > 1):
        fix = "Give each worker a name of its own: --hostname=NAME@%h."
        yield Finding("warning", "workers", f"several are called {some(twice)}", fix)
    reports = answers.reports
    active = sum(each["active"] for each in reports.values())
    slots = sum(each["concurrency"] for each in reports.values())
    text = f"{len(answers.workers)} answering, {active} of {slots} processes busy"
    yield Finding("ok", "workers", text)
    if lost := {name: each["leases_lost"] for name, each in reports.items() if each["leases_lost"]}:
        yield Finding(
            *("warning", "leases"),
            f"{some(sorted(lost))} lost the leases of {sum(lost.values())} messages since they "
            "started: their tasks may have run twice",
            "The worker was frozen or cut off from Redis for longer than a lease. Look at its log, "
            "at its CPU limits and at the network.",
        )


def _releases(app: Celery, answers: Answers) -> Iterator[Finding]:
    check = "releases"
    if old := sorted(name for name, answer in answers.workers if not is_report(answer)):
        fix = "Restart them with the release that this command runs."
        yield Finding("warning", check, f"{some(old)} run a release that can't tell its own", fix)
    by_release = defaultdict(list)
    for name, report in answers.reports.items():
        by_release[tuple(sorted(report["release"].items()))].append(name)
    here = release_of(app)
    if len(by_release) > 1:
        first, *others = sorted(by_release, key=lambda each: -len(by_release[each]))
        for other in others:
            yield Finding(
                *("warning", check),
                f"{some(by_release[other])} run {_differences(dict(other), dict(first))} "
                f"than {some(by_release[first])}",
                "Finish the deployment, or restart the workers that run the old release.",
            )
    elif by_release and dict(next(iter(by_release))) != dict(here):
        (theirs,) = by_release
        yield Finding(
            *("warning", check),
            f"workers run {_differences(dict(theirs), dict(here))} than this command",
            "Restart them if the release here is the newer one.",
        )
    elif by_release:
        parts = [f"{name} {here[name]}" for name in ("celery", "library", "service", "code")]
        yield Finding("ok", check, ", ".join(part for part in parts if not part.endswith(" ")))


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    different = [
        f"{name} {value or '(none)'} instead of {other.get(name) or '(none)'}"
        for name, value in one.items()
        if value != other.get(name)
    ]
    return f"another release ({', '.join(different)})"


def _clocks(app: Celery, answers: Answers) -> Iterator[Finding]:
    check = "clocks"
    fix = "Run a time service such as chrony on these machines."
    wrong = []
    for name, report in answers.reports.items():
        # The answer was written between the question and the last answer.
        ahead = report["time"] - answers.ended
        behind = answers.began - report["time"]
        if max(ahead, behind) > SKEW:
            wrong.append(f"{name} is {_off(ahead, behind)} this machine")
    if redis := redis_of_results(app):
        began = time.time()
        seconds, microseconds = redis.client.time()
        theirs = seconds + microseconds / 1_000_000
        ahead, behind = theirs - time.time(), began - theirs
        if max(ahead, behind) > SKEW:
            wrong.append(f"Redis is {_off(ahead, behind)} this machine")
    if wrong:
        yield Finding("warning", check, some(wrong), fix)
    elif answers.reports or redis:
        yield Finding("ok", check, f"within {SKEW:g} s")


def _off(ahead: float, behind: float) -> str:
    return f"{span(ahead)} ahead of" if ahead > behind else f"{span(behind)} behind"


def _queues(app: Celery, answers: Answers) -> Iterator[Finding]:
    consumed = {queue for report in answers.reports.values() for queue in report["queues"]}
    names = dict.fromkeys([*app.amqp.queues, *sorted(routed(app.conf.task_routes) | consumed)])
    #: Workers of an older release don't tell what they consume.
    all_told = len(answers.reports) == len(answers.workers)
    waiting = {}
    for name, length in lengths(app, names):
        waiting[name] = length.waiting
        is_consumed = length.consumers > 0 if uses_rabbitmq(app) else name in consumed
        if not is_consumed and (all_told or uses_rabbitmq(app)):
            yield from _unconsumed(name, length, has_workers=bool(answers.workers))
    total = [f"{name} {count}" for name, count in waiting.items() if count]
    yield Finding("ok", "queues", f"waiting: {', '.join(total)}" if total else "all are empty")
    yield from _ages(app, [name for name, count in waiting.items() if count])


def _unconsumed(name: str, length: Length, *, has_workers: bool) -> Iterator[Finding]:
    fix = f"Start a worker with --queues={name}, or correct the name in ROUTES."
    if length.waiting:
        text = f"{length.waiting} messages wait in {name}, which no worker consumes"
        yield Finding("broken", "queues", text, fix)
    # On Redis, nobody consumes `dead_letter`. Without any worker, that is what is reported.
    elif has_workers and name != DEAD_LETTER_QUEUE:
        yield Finding("warning", "queues", f"no worker consumes {name}", fix)


def _ages(app: Celery, queues: list[str]) -> Iterator[Finding]:
    """Report messages that have waited for too long, as far as the broker shows them."""
    if not queues or is_embedded(app):
        return
    if not uses_redis(app):
        text = "quorum queues don't show how old their messages are"
        yield Finding("unseen", "ages", text)
        return
    silent = []
    with redis_of_broker(app) as found:
        for name in queues:
            # Publishers push to the left, workers take from the right.
            sent = time_of(found.client.lindex(f"{found.prefix}{name}", -1))
            if sent is None:
                silent.append(name)
            elif (age := time.time() - sent) > OLD:
                text = f"the oldest message in {name} has waited for {span(age)}"
                yield Finding("warning", "ages", text, "Run more workers for this queue.")
            else:
                yield Finding("ok", "ages", f"{name}: the oldest waits for {span(age)}")
    if silent:
        text = f"the messages in {some(silent)} don't say when they were sent"
        yield Finding("unseen", "ages", text)
