"""The scripts of leases, and the rules for taking over, on a Redis without workers."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import kombu
import pytest
import redis
from celery_service.brokers.redis.lease import CLAIM, KOMBUS_TIMEOUT, PREFIX, Leases, _client_of
from kombu.utils.json import dumps

from support.servers import HOST, start_redis

TRANSPORT = "celery_service.brokers.redis.transport:Transport"
LEASE = 60.0
INDEX = "unacked_index"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A client of an empty Redis."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture
def leases(client: Any) -> Iterator[Leases]:
    """Leases of a process that has a channel, without the thread that renews them."""
    port = client.get_connection_kwargs()["port"]
    with kombu.Connection(f"redis://{HOST}:{port}/0", transport=TRANSPORT) as connection:
        leases = Leases()
        leases._channel = connection.channel()
        leases._client = _client_of(leases._channel)
        yield leases


def now(client: Any) -> float:
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


def hold(client: Any, age: float, *tags: str) -> None:
    """Record messages with these tags, last renewed this many seconds ago."""
    client.zadd(INDEX, dict.fromkeys(tags, now(client) - age))


def claim(client: Any, *, renewed: float = 0.0, count: int = 1000) -> list[str]:
    """Claim messages like a process that has renewed its own leases this many seconds ago."""
    arguments = (PREFIX, LEASE, max(LEASE, KOMBUS_TIMEOUT), now(client) - renewed, count)
    found: list[str] = client.eval(CLAIM, 1, INDEX, *arguments)
    return found


def tags(count: int, name: str = "dead") -> list[str]:
    return [f"{PREFIX}{LEASE:g}/{name}@host/{number}" for number in range(count)]


# --- renewal ----------------------------------------------------------------------------------------------------------


def test_ten_thousand_messages_are_renewed_by_one_command(leases: Leases, client: Any) -> None:
    mine = tags(10_000, "mine")
    hold(client, 45, *mine)
    for tag in mine:
        leases.add(tag, SimpleNamespace(headers={"task": "work", "id": tag}))
    client.config_resetstat()
    before = now(client)
    leases._renew(LEASE)
    assert client.info("commandstats")["cmdstat_eval"]["calls"] == 1
    assert client.zcount(INDEX, before, "+inf") == 10_000


def test_renewal_reports_lost_leases(leases: Leases, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    kept, lost = tags(2, "mine")
    hold(client, 45, kept)
    for tag, name in ((kept, "kept"), (lost, "lost")):
        leases.add(tag, SimpleNamespace(headers={"task": name, "id": "1"}))
    with caplog.at_level(logging.WARNING):
        leases._renew(LEASE)
        leases._renew(LEASE)
    [record] = caplog.records
    assert "lost the lease of 1 messages, which others may run as well: lost[1]. " in record.getMessage()
    assert client.zrange(INDEX, 0, -1) == [kept]


def test_a_message_that_is_being_fetched_is_renewed_without_a_warning(
    leases: Leases, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    leases._on_its_way = "leased/60/mine@host/next"
    with caplog.at_level(logging.WARNING):
        leases._renew(LEASE)
    assert not caplog.records
    hold(client, 45, leases._on_its_way)
    leases._renew(LEASE)
    assert client.zscore(INDEX, leases._on_its_way) > now(client) - 10


# --- taking over ------------------------------------------------------------------------------------------------------


def test_a_claimed_message_is_not_claimed_again_within_a_lease(client: Any) -> None:
    hold(client, LEASE + 1, *tags(3))
    assert sorted(claim(client)) == tags(3)
    assert claim(client) == []
    # Who has claimed the first one dies before it is back in its queue.
    hold(client, LEASE + 1, tags(1)[0])
    assert claim(client) == tags(1)


def test_a_renewed_message_is_not_claimed(client: Any) -> None:
    hold(client, LEASE - 5, *tags(3))
    assert claim(client) == []


def test_a_holder_with_a_longer_lease_keeps_it(client: Any) -> None:
    """This happens while a deployment shortens the lease."""
    longer = f"{PREFIX}7200/other@host/1"
    hold(client, 7000, longer)
    assert claim(client) == []
    hold(client, 7300, longer)
    assert claim(client) == [longer]


def test_a_worker_that_renewed_too_long_ago_claims_nothing(client: Any) -> None:
    """The worker was frozen before its command reached Redis. The other workers may be alive."""
    hold(client, LEASE + 1, *tags(3))
    assert claim(client, renewed=LEASE / 4 + 1) == []
    assert client.zcount(INDEX, "-inf", now(client) - LEASE) == 3
    assert len(claim(client, renewed=LEASE / 4 - 1)) == 3


def test_tags_of_plain_kombu_last_an_hour(client: Any) -> None:
    hold(client, 3590, "young")
    hold(client, 3610, "old")
    assert claim(client) == ["old"]


def test_many_new_tags_of_plain_kombu_do_not_hide_a_dead_worker(client: Any) -> None:
    """The script reads 500 tags at a time."""
    hold(client, 3000, *(str(number) for number in range(1200)))
    hold(client, LEASE + 1, *tags(3))
    assert sorted(claim(client)) == tags(3)


def test_the_number_of_claims_is_limited(client: Any) -> None:
    hold(client, LEASE + 1, *tags(250))
    assert [len(claim(client, count=100)) for _ in range(4)] == [100, 100, 50, 0]


def test_a_worker_that_has_just_started_takes_over_nothing(leases: Leases, client: Any) -> None:
    hold(client, LEASE + 1, *tags(1))
    leases._renew(LEASE)
    assert leases._take_over(LEASE) == 0
    leases._unbroken_since -= LEASE
    assert leases._take_over(LEASE) == 1


@pytest.mark.parametrize(
    "seconds", [LEASE / 2 + 1, -1], ids=["longer than half a lease", "a Redis whose clock is behind"]
)
def test_after_a_gap_a_worker_waits_for_a_whole_lease(leases: Leases, client: Any, seconds: float) -> None:
    leases._renew(LEASE)
    hold(client, LEASE + 1, *tags(1))
    leases._renewed, leases._unbroken_since = leases._renewed - seconds, 0.0
    leases._renew(LEASE)
    assert leases._take_over(LEASE) == 0
    leases._renewed, leases._unbroken_since = leases._renewed - LEASE / 4, 0.0  # as it goes on normally
    leases._renew(LEASE)
    assert leases._take_over(LEASE) == 1


def test_a_message_that_is_taken_over_is_the_next_of_its_queue(
    leases: Leases, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channel = leases._channel
    message = channel.prepare_message("{}", properties={"delivery_info": {"exchange": "", "routing_key": "default"}})
    client.lpush("default", "another")
    client.hset("unacked", tags(1)[0], dumps([message, "", "default"]))
    hold(client, LEASE + 1, *tags(1))
    leases._renew(LEASE)
    leases._unbroken_since -= LEASE
    with caplog.at_level(logging.WARNING):
        assert leases._take_over(LEASE) == 1
    assert "took over 1 messages from dead@host, which has not renewed them" in caplog.text
    assert client.llen("default") == 2
    assert client.rpop("default") != "another"
    assert (client.hlen("unacked"), client.zcard(INDEX)) == (0, 0)


@pytest.mark.parametrize("text", ["", "no JSON", "1],[2", "5", '{"body": "", "headers": null, "properties": {}}'])
def test_text_that_is_not_a_message_is_put_back_unchanged(leases: Leases, client: Any, text: str) -> None:
    client.lpush("default", "another")
    client.hset("unacked", tags(1)[0], f'[{text},"","default"]')  # as fetch.lua writes it
    hold(client, LEASE + 1, *tags(1))
    leases._renew(LEASE)
    leases._unbroken_since -= LEASE
    assert leases._take_over(LEASE) == 1
    assert client.rpop("default") == text
    assert (client.hlen("unacked"), client.zcard(INDEX)) == (0, 0)
