"""What is delivered twice is done once, unless it failed; here as remembered without a Redis."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery_service.tasks.once import StillRunning, once
from redis.exceptions import ConnectionError as RedisIsAway

done: list[str] = []


@pytest.fixture
def work(app: Celery) -> Iterator[Any]:
    """A task that tells whether it was the time to do it."""
    backend: Any = app.backend
    backend._cache.clear()

    @app.task(name="tests.work", default_retry_delay=0)
    def work(key: str = "", fails: bool = False, meanwhile: bool = False, lease: float = 60) -> bool:
        with once(key, lease=lease) as first:
            if first:
                done.append(key)
            if meanwhile:
                work(key)
            if fails:
                raise ValueError("in vain")
        return first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery.current_app", app)  # of `once`, which may stand below a `shared_task`
        yield work
    del app.tasks["tests.work"]
    done.clear()


def test_the_second_time_does_nothing(work: Any) -> None:
    assert [work("a"), work("a"), work("b")] == [True, False, True]
    assert done == ["a", "b"]


def test_what_failed_is_done_again(work: Any) -> None:
    with pytest.raises(ValueError, match="in vain"):
        work("c", fails=True)
    assert work("c")


def test_what_runs_elsewhere_is_neither_done_twice_nor_forgotten(work: Any) -> None:
    with pytest.raises(StillRunning, match=r"^tests\.work runs elsewhere; its lease ends in 60 s$"):
        work("d", meanwhile=True)
    assert done == ["d"]


def test_after_its_lease_it_is_done_again(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StillRunning):
        work("e", meanwhile=True, lease=5)
    with pytest.raises(StillRunning):
        work("e", fails=True, meanwhile=True, lease=5)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 6)
    assert work("e")


def test_without_a_key_it_is_done_once_for_each_message(work: Any) -> None:
    outcomes = [work.apply(task_id=message).get() for message in ("f", "f", "g")]
    assert outcomes == [True, False, True]


def test_a_plain_call_without_a_key_does_it(work: Any) -> None:
    assert [work(), work()] == [True, True]


def test_outside_of_a_task_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="belongs into the body of a task"), once("key"):
        pass


def test_any_text_may_be_a_key(work: Any) -> None:
    keys = ["/etc/passwd", "a b", "x" * 5000, "é"]
    assert [work(key) for key in keys * 2] == [True] * 4 + [False] * 4


def test_redis_is_away_before_the_work(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RedisIsAway

    monkeypatch.setattr(type(work.app.backend), "get", fail)
    with pytest.raises(RedisIsAway):
        work("h")
    assert done == []


def test_redis_goes_away_during_the_work(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done: to fail would have it done again."""
    backend = type(work.app.backend)
    original, calls = backend.set, []

    def fail_the_second_time(self: Any, key: Any, value: Any) -> Any:
        calls.append(key)
        if len(calls) == 2:
            raise RedisIsAway
        return original(self, key, value)

    monkeypatch.setattr(backend, "set", fail_the_second_time)
    assert work("i")
    assert len(calls) == 2
