"""The cache in memory. tests/behaviour tests it with Redis, and with an outage of Redis."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import aiocache  # type: ignore[import-untyped]
import pytest
from celery_service.config.settings import ConfigurationError, read
from celery_service.data import cache as module
from celery_service.data.cache import Cache, Settings, from_environment
from celery_service.tasks import loop

VALUE = {"texts": ["a", "é"], "numbers": [1, 2.5, -3], "nothing": None, "yes": True}


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    """An empty cache."""
    monkeypatch.setattr(module, "settings", Settings())
    aiocache.caches.set_config({"default": from_environment(namespace="unit")})
    cache = Cache()
    yield cache
    loop.close_loops()


def test_a_sync_value_is_returned(cache: Cache) -> None:
    cache.sync.set("key", VALUE, ttl=300)
    assert cache.sync.get("key") == VALUE
    cache.sync.delete("key")
    assert cache.sync.get("key") is None
    assert cache.sync.get("key", default=0) == 0


def test_an_async_value_is_returned(cache: Cache) -> None:
    async def use() -> Any:
        await cache.set("key", VALUE)
        return await cache.get("key")

    assert asyncio.run(use()) == VALUE
    assert asyncio.run(use()) == VALUE  # on another loop


def test_a_value_expires_while_nothing_runs(cache: Cache) -> None:
    cache.sync.set("key", "value", ttl=0.05)
    time.sleep(0.1)  # the event loop is at rest meanwhile
    assert cache.sync.get("key") is None
    assert cache.sync.get_or_set("key", lambda: "new") == "new"


@pytest.mark.parametrize("ttl", [0, -1])
def test_a_ttl_of_zero_or_less_is_refused(cache: Cache, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl must be above 0"):
        cache.sync.set("key", "value", ttl=ttl)


def test_one_of_several_tasks_computes(cache: Cache) -> None:
    computed: list[int] = []

    async def compute() -> int:
        computed.append(1)
        await asyncio.sleep(0.1)
        return 42

    async def ask() -> list[int]:
        return await asyncio.gather(*(cache.get_or_set("key", compute) for _ in range(20)))

    assert asyncio.run(ask()) == [42] * 20
    assert len(computed) == 1


def test_an_error_while_computing_is_not_cached(cache: Cache) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.sync.get_or_set("key", lambda: 1 // 0)
    assert cache.sync.get_or_set("key", lambda: 1) == 1


async def _hang() -> str:
    await asyncio.sleep(60)
    return ""


async def _answer() -> str:
    return "answer"


def test_a_task_computes_when_the_lease_ends(cache: Cache) -> None:
    async def one_hangs() -> str:
        hanging = asyncio.ensure_future(cache.get_or_set("key", _hang, lease=0.2))
        await asyncio.sleep(0.05)
        answer = await cache.get_or_set("key", _answer, lease=0.2)
        hanging.cancel()
        return answer

    assert asyncio.run(one_hangs()) == "answer"


def test_a_value_that_is_not_json_is_an_error(cache: Cache) -> None:
    with pytest.raises(TypeError):
        cache.sync.set("key", object())


def test_clearing_deletes_all_values_and_cancels_their_timers(cache: Cache) -> None:
    async def use() -> list[Any]:
        await cache.set("a", 1, ttl=0.05)
        await cache.set("b", 2)
        cleared = await cache.clear()
        await cache.set("a", 3, ttl=60)
        await asyncio.sleep(0.1)  # the old value of `a` would have expired
        return [cleared, await cache.get("a"), await cache.get("b")]

    assert asyncio.run(use()) == [True, 3, None]
    cache.sync.set("c", 1)
    assert cache.sync.clear() is True
    assert cache.sync.get("c") is None


def test_clearing_fails_without_redis_or_without_a_namespace(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    monkeypatch.setenv("CACHE_URL", "redis://localhost:1/0")
    monkeypatch.setattr(module, "settings", read(Settings))
    aiocache.caches.set_config({"default": from_environment(namespace="unit")})
    assert cache.sync.clear() is False  # nothing answers there
    aiocache.caches.set_config({"default": from_environment(namespace="")})
    with pytest.raises(ValueError, match="no namespace"):
        Cache().sync.clear()


def test_a_cache_that_is_switched_off_keeps_nothing(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    monkeypatch.setenv("CACHE_URL", "none")
    monkeypatch.setattr(module, "settings", read(Settings))
    aiocache.caches.set_config({"default": from_environment(namespace="unit")})
    cache.sync.set("key", VALUE)
    assert cache.sync.get("key", default=0) == 0
    numbers = iter(range(2))
    assert [cache.sync.get_or_set("key", lambda: next(numbers)) for _ in range(2)] == [0, 1]
    cache.sync.delete("key")
    assert cache.sync.clear() is True
    # What a cache couldn't keep is a mistake all the same.
    with pytest.raises(TypeError):
        cache.sync.set("key", object())


def test_sync_code_below_a_running_loop_is_refused(cache: Cache) -> None:
    async def wrong() -> None:
        cache.sync.get("key")

    with pytest.raises(RuntimeError, match="event loop runs"):
        asyncio.run(wrong())


# --- CACHE_* ----------------------------------------------------------------------------------------------------------


def test_the_environment_configures_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", "redis://localhost:1/1")
    monkeypatch.setenv("CACHE_NAMESPACE", "theirs")
    monkeypatch.setenv("CACHE_TTL", "7")
    monkeypatch.setattr(module, "settings", read(Settings))
    configuration = from_environment(namespace="ours")
    assert configuration["cache"].__name__ == "RedisCache"
    assert (configuration["namespace"], configuration["ttl"], configuration["timeout"]) == ("theirs", 7, 0.5)
    monkeypatch.setenv("CACHE_NAMESPACE", "")
    monkeypatch.setattr(module, "settings", read(Settings))
    assert from_environment(namespace="ours")["namespace"] == "ours"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CACHE_URL", "redis://:hunter2@localhost:port/1", "CACHE_URL can't be read; its port must be a number from 1"),
        ("CACHE_URL", "redis://:hunter2@localhost/x", "CACHE_URL must have a number as its database, such as redis://"),
        ("CACHE_URL", "redis://:hunter2@localhost/0?x=1", "CACHE_URL must be memory://, none or such as redis://:pass"),
        ("CACHE_URL", "rediss://:hunter2@a?ssl_cert_reqs=x", "CACHE_URL must be memory://, none or such as redis://:p"),
        ("CACHE_URL", "ftp://localhost", "CACHE_URL must be memory://, none or such as redis://:password@host:6379/1."),
        ("CACHE_TTL", "0", "CACHE_TTL is '0'; it must be greater than or equal to 0.001."),
        ("CACHE_TTL", "inf", "CACHE_TTL is 'inf'; it must be a finite number."),
        ("CACHE_TIMEOUT", "nan", "CACHE_TIMEOUT is 'nan'; it must be a finite number."),
        ("CACHE_TIMEOUT", "never", "CACHE_TIMEOUT is 'never'; it must be a valid number."),
    ],
)
def test_an_invalid_variable_is_explained_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        read(Settings)
    assert str(caught.value).startswith(says)
    assert "hunter2" not in str(caught.value)
