"""Beat and dead letters."""

import time
from collections.abc import Iterator

from celery import Celery

from celery_service.dead_letters.store import DeadLetters
from celery_service.lifecycle import health
from celery_service.lifecycle.beat import INTERVAL, SILENCE, Beat, beats
from celery_service.lifecycle.schedule import entries
from celery_service.observability.doctor.finding import Finding, some, span
from celery_service.observability.doctor.workers import SKEW

#: Schedulers that several beats may run with, because one of them holds a lock.
WITH_A_LOCK = ("redbeat",)


def check_beat(app: Celery) -> Iterator[Finding]:
    """Look whether beat runs, if there is a schedule."""
    try:
        schedule = entries(app)
    except ValueError as error:
        fix = "Correct it in celery.py. Beat doesn't start with it."
        yield Finding("broken", "beat", f"the schedule is invalid: {error}", fix)
        return
    if not schedule:
        return
    found = beats(app)
    if found is None:
        yield from _on_this_machine(app, len(schedule))
        return
    running = [each for each in found if not each.stopped and each.silent < SILENCE]
    if not running:
        since = f"the last one ran {span(found[0].silent)} ago" if found else "none has run so far"
        yield Finding(
            *("broken", "beat"),
            f"no beat runs, {since}: {len(schedule)} scheduled tasks aren't sent",
            "Start beat, once: `celery beat`. If it runs, it hangs, or can't reach the result "
            "backend.",
        )
        return
    yield from _running(app, running, len(schedule))


def _running(app: Celery, running: list[Beat], count: int) -> Iterator[Finding]:
    # One that was killed looks alive for a minute.
    alive = [each.name for each in running if each.silent < 2.5 * INTERVAL]
    has_lock = any(name in str(app.conf.beat_scheduler) for name in WITH_A_LOCK)
    if len(alive) > 1 and not has_lock:
        text = f"{len(alive)} run ({some(alive)}): each sends all scheduled tasks"
        yield Finding("warning", "beat", text, "Stop all of them but one.")
    for each in running:
        if abs(each.ahead) > SKEW:
            where = "ahead of" if each.ahead > 0 else "behind"
            text = f"the clock of {each.name} is {span(abs(each.ahead))} {where} that of Redis"
            yield Finding("warning", "beat", text, "Run a time service such as chrony there.")
    latest = running[0]
    text = f"{latest.name} ticked {span(latest.silent)} ago, {count} entries"
    yield Finding("ok", "beat", text)


def _on_this_machine(app: Celery, count: int) -> Iterator[Finding]:
    """Look at the files of the health check: the embedded brokers are for one machine."""
    # `worker --beat` has no file of its own.
    names = [name for name, _, _ in health.running(str(app.main), "beat")]
    if names:
        yield Finding("ok", "beat", f"{names[0]} runs on this machine, {count} entries")
    else:
        text = "without a Redis for results, `worker --beat` isn't seen, nor are other machines"
        yield Finding("unseen", "beat", text)


def check_dead_letters(app: Celery) -> Iterator[Finding]:
    """Count the dead letters."""
    store = DeadLetters(app)
    if not store.are_kept:
        return
    count, oldest = store.number(), store.oldest()
    if not count or oldest is None:
        yield Finding("ok", "dead letters", "none")
        return
    yield Finding(
        *("warning", "dead letters"),
        f"{count} wait, the oldest for {span(time.time() - oldest)}",
        "`dead-letters list` shows them; replay or purge them: docs/dev/dead-letters.md.",
    )
