"""Messages that workers on Redis hold, by leases: see brokers/redis/lease.py."""

from collections import Counter
from collections.abc import Iterator

from celery import Celery

from celery_service.brokers.redis import LEASE, lease
from celery_service.observability.doctor.finding import Finding, some, span
from celery_service.observability.doctor.servers import redis_of_broker, uses_redis

#: The number of leases that are looked at, those that were renewed first.
MOST = 1000


def check(app: Celery) -> Iterator[Finding]:
    """Look for messages of workers that have died, and that no worker takes over."""
    if not uses_redis(app):
        return
    with redis_of_broker(app) as found:
        held = found.client.zcard(found.unacked)
        seconds, microseconds = found.client.time()
        now = seconds + microseconds / 1_000_000
        old = found.client.zrange(found.unacked, 0, MOST - 1, withscores=True)
    own = float(app.conf.broker_transport_options.get("visibility_timeout", LEASE))
    late = [(tag.decode(), now - at) for tag, at in old]
    overdue = [(tag, age) for tag, age in late if age > _lease_of(tag, own)]
    if not overdue:
        yield Finding("ok", "leases", f"{held} held, none overdue")
        return
    counts = Counter(lease.holder_of(tag) for tag, _ in overdue)
    holders = [name for name, _ in counts.most_common()]
    longest = span(max(age for _, age in overdue))
    yield Finding(
        *("warning", "leases"),
        f"{len(overdue)} of {held} messages held by {some(holders)} are overdue: "
        f"not renewed for up to {longest}",
        "Start a worker: within 75 seconds, it takes over what dead workers held. If workers run, "
        "they can't reach Redis.",
    )


def _lease_of(tag: str, own: float) -> float:
    """Return for how long a message is held without a renewal."""
    if not tag.startswith(lease.PREFIX):
        return max(own, lease.KOMBUS_TIMEOUT)
    text = tag.removeprefix(lease.PREFIX).partition("/")[0]
    return float(text) if text.isdecimal() else own
