"""`once` with a result backend other than Redis. tests/behaviour tests it with Redis."""

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
    """A task that returns whether it has done the work."""
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


def test_a_second_run_does_nothing(work: Any) -> None:
    assert [work("a"), work("a"), work("b")] == [True, False, True]
    assert done == ["a", "b"]


def test_work_that_failed_is_done_again(work: Any) -> None:
    with pytest.raises(ValueError, match="in vain"):
        work("c", fails=True)
    assert work("c")


def test_a_task_is_retried_while_the_work_runs_elsewhere(work: Any) -> None:
    with pytest.raises(StillRunning, match=r"^tests\.work runs elsewhere; its lease ends in 60 s$"):
        work("d", meanwhile=True)
    assert done == ["d"]


def test_work_is_done_again_after_its_lease(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StillRunning):
        work("e", meanwhile=True, lease=5)
    with pytest.raises(StillRunning):
        work("e", fails=True, meanwhile=True, lease=5)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 6)
    assert work("e")


def test_without_a_key_work_is_done_once_per_message(work: Any) -> None:
    outcomes = [work.apply(task_id=message).get() for message in ("f", "f", "g")]
    assert outcomes == [True, False, True]


def test_a_plain_call_without_a_key_does_the_work(work: Any) -> None:
    assert [work(), work()] == [True, True]


def test_once_is_refused_outside_of_a_task() -> None:
    with pytest.raises(RuntimeError, match="in the body of a task"), once("key"):
        pass


def test_any_string_can_be_a_key(work: Any) -> None:
    keys = ["/etc/passwd", "a b", "x" * 5000, "é"]
    assert [work(key) for key in keys * 2] == [True] * 4 + [False] * 4


def test_a_task_is_retried_if_redis_is_unreachable_before_the_work(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RedisIsAway

    monkeypatch.setattr(type(work.app.backend), "get", fail)
    with pytest.raises(RedisIsAway):
        work("h")
    assert done == []


def test_work_is_not_repeated_if_redis_becomes_unreachable_during_it(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work is done. If the task failed, it would be done again."""
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
