"""What Redis does with the data: whether it evicts, keeps and accepts them."""

from collections.abc import Iterator
from typing import Any

from celery import Celery
from redis.exceptions import ResponseError

from celery_service.observability.doctor.finding import Finding, span
from celery_service.observability.doctor.servers import (
    Redis,
    redis_of_broker,
    redis_of_results,
    share_a_redis,
    uses_redis,
)

#: The part of `maxmemory` above which Redis is nearly full.
FULL = 0.9


def check_broker(app: Celery) -> Iterator[Finding]:
    """Check the Redis of the messages."""
    if uses_redis(app):
        with redis_of_broker(app) as found:
            yield from _check(found, "messages, results and dead letters")


def check_results(app: Celery) -> Iterator[Finding]:
    """Check the Redis of the results, if it is another one."""
    found = redis_of_results(app)
    if found and not share_a_redis(app):
        yield from _check(found, "results and dead letters")


def _check(redis: Redis, what: str) -> Iterator[Finding]:
    info = redis.client.info
    yield _role(redis, info("replication"))
    yield from _memory(redis, info("memory"), what)
    yield _persistence(redis, info("persistence"), what)


def _role(redis: Redis, about: dict[str, Any]) -> Finding:
    if about.get("role") == "master":
        return Finding("ok", f"{redis.uses} role", "master")
    fix = "Name the master, or use sentinel://, which finds it: docs/dev/redis.md."
    return Finding("broken", f"{redis.uses} role", "a replica, which accepts no messages", fix)


def _memory(redis: Redis, about: dict[str, Any], what: str) -> Iterator[Finding]:
    check = f"{redis.uses} memory"
    policy, limit = about.get("maxmemory_policy"), about.get("maxmemory")
    used = f"{about['used_memory'] / 1e6:.0f} MB used"
    if policy is None or limit is None:
        yield Finding("unseen", check, f"{used}; the server hides maxmemory and its policy")
        return
    if policy != "noeviction":
        yield Finding(
            *("warning", check),
            f"maxmemory-policy is {policy}: when its memory is full, Redis deletes {what}",
            "Set `maxmemory-policy noeviction`, or use another Redis for cached data.",
        )
    if not limit:
        yield Finding("ok", check, f"{used}, no maxmemory")
    elif about["used_memory"] < FULL * limit:
        yield Finding("ok", check, f"{used} of {limit / 1e6:.0f} MB, {policy}")
    else:
        yield Finding(
            *("warning", check),
            f"{used} of {limit / 1e6:.0f} MB: when it is full, Redis accepts no messages",
            "Raise maxmemory, run more workers, or purge dead letters.",
        )


def _persistence(redis: Redis, about: dict[str, Any], what: str) -> Finding:
    check = f"{redis.uses} disk"
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if about.get(name, "ok") != "ok"
    ]
    if failed:
        return Finding(
            *("broken", check),
            f"Redis can't write to its disk ({', '.join(failed)})",
            "Look at the free space of the disk and at the log of Redis.",
        )
    if about.get("aof_enabled"):
        return Finding("ok", check, "appendonly")
    fix = "Set `appendonly yes`: `redis-cli CONFIG SET appendonly yes`, then `CONFIG REWRITE`."
    try:
        snapshots = redis.client.config_get("save").get("save")
    except ResponseError:  # some providers forbid it
        return Finding("unseen", check, "no appendonly file; the server hides its snapshots")
    if not snapshots:
        text = f"nothing is written to disk: a restart of Redis loses {what}"
    else:
        since = span(max(0, redis.client.time()[0] - about.get("rdb_last_save_time", 0)))
        text = f"only snapshots, the last one {since} ago: a crash loses what came later"
    return Finding("warning", check, text, fix)
