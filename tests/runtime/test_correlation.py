"""The id that a request shares with what it leads to."""

import asyncio
import contextvars
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signals
from celery.app.task import Context
from celery_service import correlation
from celery_service.dead_letters.story import headers_of, story
from celery_service.observability.correlation import id_of


@pytest.fixture
def published() -> Iterator[list[dict[str, Any]]]:
    """The headers of what is published."""
    headers: list[dict[str, Any]] = []

    def remember(**message: Any) -> None:
        headers.append(dict(message["headers"]))

    signals.after_task_publish.connect(remember)
    yield headers
    signals.after_task_publish.disconnect(remember)


@pytest.fixture(scope="session")
def task(app: Celery) -> Any:
    """A task that returns the id."""

    @app.task(name="correlation.tell")
    def tell(*_: object) -> str | None:
        return correlation.current()

    return tell


def ids(published: list[dict[str, Any]]) -> list[str]:
    return [headers[correlation.HEADER] for headers in published]


def test_bind() -> None:
    assert correlation.current() is None
    with correlation.bind("outer") as bound:
        assert bound == correlation.current() == "outer"
        with pytest.raises(ZeroDivisionError), correlation.bind("inner"):  # noqa: PT012
            assert correlation.current() == "inner"
            raise ZeroDivisionError
        assert correlation.current() == "outer"
    assert correlation.current() is None


def test_bind_without_a_block() -> None:
    def request() -> str | None:
        correlation.bind("plain")
        return correlation.current()

    assert contextvars.copy_context().run(request) == "plain"
    assert correlation.current() is None


def test_requests_at_the_same_time() -> None:
    async def request(id_: str) -> str | None:
        with correlation.bind(id_):
            await asyncio.sleep(0)
            return correlation.current()

    async def requests() -> list[str | None]:
        return await asyncio.gather(*(request(str(number)) for number in range(5)))

    assert asyncio.run(requests()) == list("01234")
    with correlation.bind("here"), ThreadPoolExecutor() as pool:
        assert pool.submit(correlation.current).result() is None


@pytest.mark.parametrize("id_", ["", "a\nb", "a\x1b[0m", "x" * 201, None, 5, b"a"])
def test_what_is_no_id(id_: Any) -> None:
    with pytest.raises(ValueError, match=r"a correlation id is a text of 1 to 200 printable characters; .* is not"):
        correlation.bind(id_)
    assert correlation.current() is None


def test_a_message_has_the_id_that_is_bound(app: Celery, task: Any, published: list[dict[str, Any]]) -> None:
    with correlation.bind("request"):
        task.delay()
        app.send_task("somewhere.else")
        chain(task.s(), task.s()).delay()
    assert ids(published) == ["request"] * 3


def test_otherwise_it_is_the_id_of_the_task(task: Any, published: list[dict[str, Any]]) -> None:
    sent = [task.delay().id, task.delay().id]
    assert ids(published) == sent


def test_a_canvas_has_one_id(task: Any, published: list[dict[str, Any]]) -> None:
    for canvas in (
        group(task.s(), chain(task.s(), task.s()), group(task.s(), task.s())),
        chain(task.s(), group(task.s(), task.s())),
        chord([task.s(), chain(task.s(), task.s())], task.s()),
    ):
        published.clear()
        canvas.apply_async()
        assert published
        assert len(set(ids(published))) == 1
        assert correlation.current() is None


def test_who_sends_a_message_again_keeps_its_id(task: Any, published: list[dict[str, Any]]) -> None:
    with correlation.bind("here"):
        task.apply_async(headers={correlation.HEADER: "of the first time"})
        # From somebody else.
        task.apply_async(headers={correlation.HEADER: 5})
    assert ids(published) == ["of the first time", "here"]


def test_messages_of_other_versions() -> None:
    assert id_of({"id": "a", "root_id": "b", correlation.HEADER: "c"}) == "c"
    assert id_of({"id": "a", "root_id": "b", correlation.HEADER: ["c"]}) == "b"
    assert id_of({"id": "a", "root_id": None}) == "a"
    assert len(id_of({})) == 36


def test_a_dead_letter_has_the_id_and_its_replay_gets_it() -> None:
    context = Context({"id": "a", "root_id": "a", "task": "x", correlation.HEADER: "request", "tenant": "acme"})
    record = story(context, reason="failure", error="E: x")
    assert record["correlation_id"] == "request"
    assert record["options"]["headers"] == {"tenant": "acme"}
    assert headers_of(record) == {"replayed_from": "a", correlation.HEADER: "request"}


def test_eager_tasks_run_inside_others(task: Any) -> None:
    result = task.apply()
    assert result.get() == result.id
    assert correlation.current() is None
    with correlation.bind("request"):
        assert task.apply().get() == "request"
        assert correlation.current() == "request"
