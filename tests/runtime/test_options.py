"""A task is sent with what Celery can use, and runs within the limits that it is given."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery_service.tasks.arguments import InvalidArguments
from celery_service.tasks.limits import limits
from celery_service.tasks.options import check
from kombu import Queue

NOW = datetime.now(UTC)
SECONDS = "a number of seconds"
MOMENT = "a datetime with a time zone, such as datetime.now(UTC)"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"args": 5}, "args must be a list or a tuple, not 5"),
        ({"args": "text"}, "args must be a list or a tuple, not str"),
        ({"kwargs": [1]}, "kwargs must be a dict with a text for each key, not list"),
        ({"kwargs": {1: 2}}, "kwargs must be a dict with a text for each key, not dict"),
        ({"countdown": "1"}, f"countdown must be {SECONDS}, not str"),
        ({"countdown": timedelta(minutes=5)}, f"countdown must be {SECONDS}, not timedelta"),
        ({"countdown": float("inf")}, f"countdown must be {SECONDS}, not inf"),
        ({"eta": date(2030, 1, 31)}, f"eta must be {MOMENT}, not date"),
        ({"eta": datetime(2030, 1, 31)}, f"eta must be {MOMENT}, not one without"),
        ({"eta": "tomorrow"}, f"eta must be {MOMENT}, not str"),
        ({"eta": 60}, f"eta must be {MOMENT}, not 60"),
        ({"expires": "x"}, f"expires must be {SECONDS}, or {MOMENT}, not str"),
        ({"expires": datetime(2030, 1, 31)}, f"expires must be {SECONDS}, or {MOMENT}, not one without"),
        ({"queue": 5}, "queue must be the name of a queue, not 5"),
        ({"priority": "high"}, "priority must be a whole number from 0 to 255, not str"),
        ({"priority": 256}, "priority must be a whole number from 0 to 255, not 256"),
        ({"retries": "2"}, "retries must be a whole number, 0 or more, not str"),
        ({"retries": -1}, "retries must be a whole number, 0 or more, not -1"),
        ({"time_limit": "60"}, f"time_limit must be {SECONDS} above 0, not str"),
        ({"soft_time_limit": -5}, f"soft_time_limit must be {SECONDS} above 0, not -5"),
        ({"task_id": uuid4()}, "task_id must be a text, not UUID"),
    ],
)
def test_a_message_names_the_option_and_what_is_allowed(option: dict[str, Any], says: str) -> None:
    options = {"args": (), "kwargs": {}, **option}
    with pytest.raises(InvalidArguments) as caught:
        check("task", options.pop("args"), options.pop("kwargs"), options)
    assert str(caught.value) == f"task: {says}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"countdown": 0, "retries": 0, "priority": 0},
        {"countdown": 0.5, "eta": None, "expires": None, "queue": None, "priority": None},
        {"eta": NOW, "expires": 60},
        {"expires": NOW},
        # What a retry passes on.
        {"expires": NOW.isoformat()},
        {"queue": Queue("reports"), "time_limit": 60, "soft_time_limit": 50.0},
        {"headers": {"tenant": "acme"}, "some_option": object()},
    ],
)
def test_valid_options_are_accepted(options: dict[str, Any]) -> None:
    check("task", None, None, options)
    check("task", [1], {"a": 1}, options)


@pytest.fixture
def task(app: Celery) -> Iterator[Any]:
    """A task that retries at a time of its own choice."""

    @app.task(name="tests.options", bind=True)
    def body(self: Any, number: int = 1) -> None:  # noqa: ARG001
        """Name the wrong kind of time."""
        raise self.retry(countdown="1")

    yield body
    del app.tasks["tests.options"]


def test_every_way_to_send_a_task_refuses_an_invalid_option(app: Celery, task: Any) -> None:
    wrong: Any = {"countdown": "1"}
    calls: tuple[Callable[[], Any], ...] = (
        lambda: task.apply_async(**wrong),
        lambda: task.s(1).apply_async(**wrong),
        lambda: task.s(1).set(**wrong).delay(),
        lambda: app.send_task("tests.options", **wrong),
        lambda: app.send_task("somebody.elses", **wrong),
    )
    for call in calls:
        with pytest.raises(InvalidArguments, match=r": countdown must be a number of seconds, not str$"):
            call()
    with pytest.raises(InvalidArguments, match=r"^tests\.options: args must be a list or a tuple, not 5$"):
        task.apply_async(5)


def test_a_retry_with_a_wrong_option_is_a_failure(task: Any) -> None:
    outcome = task.apply()
    assert outcome.state == "FAILURE"
    assert str(outcome.result) == "tests.options: countdown must be a number of seconds, not str"


# --- time limits ------------------------------------------------------------------------------------------------------

Limits = tuple[float | None, float | None]


@pytest.mark.parametrize(
    ("of_message", "of_decorator", "of_worker", "effective"),
    [
        ((None, None), (None, None), (600, 540), (None, None)),
        ((None, None), (100, None), (600, 540), (100, 90)),
        ((100, None), (None, None), (600, 540), (100, 90)),
        ((3600, None), (None, None), (600, 540), (3600, 3240)),
        ((100, 50), (None, None), (600, 540), (100, 50)),
        ((100, 100), (None, None), (600, 540), (100, 100)),
        ((100, None), (400, 300), (600, 540), (100, 90)),
        ((100, None), (400, 50), (600, 540), (100, 50)),
        ((None, 50), (None, None), (600, 540), (None, 50)),
        ((None, 3600), (None, None), (600, 540), (None, 540)),
        ((100, None), (None, None), (None, None), (100, 90)),
        # CELERY_TASK_SOFT_TIME_LIMIT=none.
        ((100, None), (None, None), (600, None), (100, None)),
        # Somebody else's message.
        (("2", -1), (None, None), (600, 540), (None, None)),
        ("soon", (100, None), (600, 540), (100, 90)),
        (None, (None, None), (600, 540), (None, None)),
        ([], (None, None), (600, 540), (None, None)),
    ],
)
def test_the_limits_of_a_run(of_message: object, of_decorator: Limits, of_worker: Limits, effective: Limits) -> None:
    conf = SimpleNamespace(task_time_limit=of_worker[0], task_soft_time_limit=of_worker[1])
    hard, soft = of_decorator
    task = SimpleNamespace(time_limit=hard, soft_time_limit=soft, app=SimpleNamespace(conf=conf))
    assert limits(task, of_message) == effective
