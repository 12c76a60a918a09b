"""Arguments are what the type hints say: at publish where the task is known, and in each pool."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.distribution import on_one_worker
from support.project import InstalledProject
from support.service import Service, service_on_redis

ORDER = "{'order_id': 1, 'quantity': 2}"
WHEN, KEY = "2030-01-31T12:00:00Z", "12345678-1234-5678-1234-567812345678"


@pytest.fixture
def broker_name() -> str:
    """The broker makes no difference to what arguments are."""
    return "redis"


@pytest.fixture(scope="module", params=on_one_worker("prefork"))
def pool(request: pytest.FixtureRequest) -> str:
    """The pool of the worker."""
    return str(request.param)


@pytest.fixture(scope="module")
def running(pool: str, project: InstalledProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a worker."""
    with (
        service_on_redis(project, tmp_path_factory.mktemp(pool)) as service,
        service.worker("worker", "--concurrency=2", f"--pool={pool}") as worker,
    ):
        worker.wait_ready()
        yield service


def run(service: Service, *expressions: str) -> list[Any]:
    """Evaluate expressions in a publisher; of what is refused, give what the error says."""
    return list(
        service.python(
            "from celery_service.tasks.arguments import InvalidArguments\n"
            "from datetime import UTC, datetime\n"
            "from uuid import UUID\n"
            "def run(call):\n"
            "    try: return call()\n"
            "    except InvalidArguments as error: return str(error)\n"
            f"[run(call) for call in [{', '.join(f'lambda: {each}' for each in expressions)}]]"
        )
    )


def by_name(task: str, *args: object) -> str:
    """Send as a program does that has none of the code."""
    return f"celery.send_task('typed.{task}', {args!r}).get(timeout=30)"


INTEGER = "Input should be a valid integer"
INTEGER_OF_TEXT = f"{INTEGER}, unable to parse string as an integer"
STRING = "Input should be a valid string"
#: What an error says at its end.
TAKES = {
    "add": "x, y",
    "aware": "when, key, order",
    "decorated": "x",
    "noted": "path, number",
    "odd": "thing, own, level, *rest, **more",
    "scale": "x, factor",
    "text": "value",
    "total": "numbers, extra",
    "twice": "items",
}


def refused(task: str, problems: str) -> str:
    """Give what an error says."""
    return f"typed.{task}: {problems}; it takes ({TAKES[task]})"


@pytest.mark.parametrize("pool", on_one_worker("prefork", "solo", "threads"), indirect=True)
def test_a_worker_refuses_invalid_arguments(running: Service) -> None:
    assert run(
        running,
        by_name("add", "1", 2),
        by_name("add", "one"),
        by_name("add", 1, 2, 3),
        by_name("text", 5),
        by_name("aware", WHEN, KEY, {"order_id": 1, "quantity": 2}),
        by_name("aware", WHEN, KEY, {"order_id": 1, "quantity": 0}),
        by_name("scale", "x" * 1000),
        by_name("decorated", None),
        by_name("untyped", "x"),
        by_name("twice", ["1", 2]),
        by_name("twice", [1, "x"]),
    ) == [
        3,
        refused("add", f"argument x: {INTEGER_OF_TEXT}"),
        refused("add", "argument number 3: Unexpected positional argument"),
        refused("text", f"argument value: {STRING}"),
        ["True", "datetime", "UUID", "Order"],
        refused("aware", "argument order.quantity: Input should be greater than or equal to 1"),
        refused("scale", f"argument x: {INTEGER_OF_TEXT}"),
        refused("decorated", f"argument x: {INTEGER}"),
        "'x'",
        [1, 2, 1, 2],
        refused("twice", f"argument items.1: {INTEGER_OF_TEXT}"),
    ]


def test_a_task_with_invalid_arguments_is_not_retried(running: Service) -> None:
    running.notes.write_text("")
    [sent] = run(running, "celery.send_task('typed.noted', (notes, 'x')).id")
    assert running.result(sent)["state"] == "FAILURE"
    run(running, "typed.noted.delay(notes, 1).get(timeout=30)")
    assert running.lines() == ["1 0"]  # The task of this line, and its number of retries.


def test_valid_arguments_arrive_in_every_way_to_send_a_task(running: Service) -> None:
    assert run(
        running,
        f"typed.aware.delay(datetime.now(UTC), UUID(int=0), {ORDER}).get(timeout=30)",
        f"typed.aware.delay({WHEN!r}, {KEY!r}, typed.Order(order_id=1, quantity=2)).get(timeout=30)",
        f"typed.celerys.delay({ORDER}).get(timeout=30)",
        "typed.odd.delay('a', [1], 'low', 1, '2', more=3).get(timeout=30)",
        "typed.odd.delay('a', [1], 'middle', more=0)",
        "chain(typed.add.s(1, 2), typed.add.s(3), typed.add.s(y=4))().get(timeout=30)",
        "chain(typed.add.s(1), group(typed.add.s(1), typed.add.s(2)), typed.total.s())().get(timeout=30)",
        "chord(typed.add.s(i) for i in range(4))(typed.total.s(extra=1)).get(timeout=30)",
        "typed.scale.map([1, 2]).delay().get(timeout=30)",
        "typed.add.starmap([(1, 2), (3, 4)]).delay().get(timeout=30)",
        "typed.add.chunks([(1, 2), (3, 4)], 1).apply_async().get(timeout=30)",
    ) == [
        ["True", "datetime", "UUID", "Order"],
        ["True", "datetime", "UUID", "Order"],
        {"order_id": 1, "quantity": 2},
        ["a", [1], "low", [1, 2], {"more": 3}],
        refused(
            "odd", "argument level: Input should be 'low' or 'high'; argument more: Input should be greater than 0"
        ),
        10,
        5,
        7,
        [2, 4],
        [3, 7],
        [[3], [7]],
    ]


def test_a_following_task_with_invalid_arguments_fails_when_it_runs(running: Service) -> None:
    assert run(
        running,
        "typed.add.delay(1).get(timeout=30)",
        "chain(typed.add.s(1), typed.text.s())().get(timeout=30)",
        "chord([typed.add.s(1), typed.add.s(2)])(typed.text.s()).get(timeout=30)",
        "typed.scale.map(['x']).delay().get(timeout=30)",
    ) == [
        1,
        refused("text", f"argument value: {STRING}"),
        refused("text", f"argument value: {STRING}"),
        refused("scale", f"argument x: {INTEGER_OF_TEXT}"),
    ]
    # The task before has not suffered.
    before = "chain(typed.add.s(1), typed.text.s())()"
    state = f"(lambda r: (r.get(timeout=30, propagate=False), r.parent.get(timeout=30), r.parent.state))({before})"
    assert run(running, f"{state}[1:]") == [[1, "SUCCESS"]]
