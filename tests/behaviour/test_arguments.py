"""Arguments are what the type hints say: at publish where the task is known, and in each pool."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.project import InstalledProject
from support.service import Service

TYPED = Path(__file__).with_name("typed_tasks.py")
ORDER = "{'order_id': 1, 'quantity': 2}"
WHEN, KEY = "2030-01-31T12:00:00Z", "12345678-1234-5678-1234-567812345678"


@pytest.fixture(scope="module", autouse=True)
def _tasks(projects: Callable[[str], InstalledProject]) -> None:
    project = projects("redis")
    (project.folder / project.slug / "tasks" / "typed.py").write_text(TYPED.read_text())


@pytest.fixture
def broker_name() -> str:
    """The broker makes no difference to what arguments are."""
    return "redis"


def run(service: Service, *expressions: str) -> list[Any]:
    """Evaluate expressions in a publisher, with the typed tasks as `t`; of an error, give what it says."""
    return list(
        service.python(
            f"from {service.project.slug}.tasks import typed as t\n"
            f"from {service.project.slug}.runtime.arguments import InvalidArguments\n"
            "from celery import chain, chord, group\n"
            "from datetime import UTC, datetime\n"
            "from uuid import UUID\n"
            "def run(call):\n"
            "    try: return call()\n"
            "    except InvalidArguments as error: return str(error)\n"
            f"print(json.dumps([run(call) for call in [{', '.join(f'lambda: {each}' for each in expressions)}]]))"
        )
    )


def by_name(task: str, *args: object) -> str:
    """Send as a program does that has none of the code."""
    return f"celery.send_task('typed.{task}', {args!r}).get(timeout=30)"


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_refuses_what_a_task_does_not_take(service: Service, pool: str) -> None:
    with service.worker("worker", "--concurrency=2", f"--pool={pool}"):
        assert run(
            service,
            by_name("add", "1", 2),
            by_name("add", "one"),
            by_name("add", 1, 2, 3),
            by_name("text", 5),
            by_name("aware", WHEN, KEY, {"order_id": 1, "quantity": 2}),
            by_name("aware", WHEN, KEY, {"order_id": 1, "quantity": 0}),
            by_name("scale", "x" * 1000),
            by_name("decorated", None),
            by_name("untyped", "x"),
        ) == [
            3,
            "typed.add: argument x must be a valid integer (got str)",
            "typed.add: argument number 3: Unexpected positional argument; it takes (x, y)",
            "typed.text: argument value must be a valid string (got 5)",
            ["True", "datetime", "UUID", "Order"],
            "typed.aware: argument order.quantity must be greater than or equal to 1 (got 0)",
            "typed.scale: argument x must be a valid integer (got str)",
            "typed.decorated: argument x must be a valid integer (got None)",
            "'x'",
        ]


def test_what_can_not_succeed_is_not_retried(service: Service) -> None:
    with service.worker() as worker:
        sent = run(service, "celery.send_task('typed.noted', (notes, 'x')).id")[0]
        assert service.result(sent)["state"] == "FAILURE"
        run(service, "t.noted.delay(notes, 1).get(timeout=30)")
        assert service.lines() == ["1 0"]
        assert "Retry in" not in worker.text()


def test_a_publisher_that_knows_the_task_hears_of_it_at_once(service: Service) -> None:
    # No worker runs.
    assert run(
        service,
        "t.add.delay('one')",
        "t.add.apply_async(kwargs={'z': 2})",
        "t.aware.delay(datetime.now(UTC), UUID(int=0))",
        "t.noted.delay(notes, 'many')",
        "t.total.s(extra='much')",
        "t.total.si('many')",
        "chain(t.add.s('one'), t.add.s(2))()",
        "group(t.add.s(1), t.add.s('two'))()",
        "t.add('one')",
        "t.scale.delay(None)",
        "t.aware.apply((0, UUID(int=0))).get()",
    ) == [
        "typed.add: argument x must be a valid integer (got str)",
        "typed.add: argument x: Missing required argument; argument z: Unexpected keyword argument; it takes (x, y)",
        "typed.aware: argument order: Missing required argument; it takes (when, key, order)",
        "typed.noted: argument number must be a valid integer (got str)",
        "typed.total: argument extra must be a valid integer (got str)",
        "typed.total: argument numbers must be a valid list (got str)",
        "typed.add: argument x must be a valid integer (got str)",
        "typed.add: argument x must be a valid integer (got str)",
        "typed.add: argument x must be a valid integer (got str)",
        "typed.scale: argument x must be a valid integer (got None)",
        "typed.aware: argument order: Missing required argument; it takes (when, key, order)",
    ]


def test_what_tasks_take_arrives_however_it_is_sent(service: Service) -> None:
    with service.worker("worker", "--concurrency=2"):
        assert run(
            service,
            f"t.aware.delay(datetime.now(UTC), UUID(int=0), {ORDER}).get(timeout=30)",
            f"t.aware.delay({WHEN!r}, {KEY!r}, t.Order(order_id=1, quantity=2)).get(timeout=30)",
            f"t.celerys.delay({ORDER}).get(timeout=30)",
            "t.odd.delay('a', [1], 'low', 1, '2', more=3).get(timeout=30)",
            "t.odd.delay('a', [1], 'middle', more=0)",
            "chain(t.add.s(1, 2), t.add.s(3), t.add.s(y=4))().get(timeout=30)",
            "chain(t.add.s(1), group(t.add.s(1), t.add.s(2)), t.total.s())().get(timeout=30)",
            "chord(t.add.s(i) for i in range(4))(t.total.s(extra=1)).get(timeout=30)",
            "t.scale.map([1, 2]).delay().get(timeout=30)",
            "t.add.starmap([(1, 2), (3, 4)]).delay().get(timeout=30)",
            "t.add.chunks([(1, 2), (3, 4)], 1).apply_async().get(timeout=30)",
        ) == [
            ["True", "datetime", "UUID", "Order"],
            ["True", "datetime", "UUID", "Order"],
            {"order_id": 1, "quantity": 2},
            ["a", [1], "low", [1, 2], {"more": 3}],
            "typed.odd: argument level must be 'low' or 'high' (got str); argument more must be greater than 0 (got 0)",
            10,
            5,
            7,
            [2, 4],
            [3, 7],
            [[3], [7]],
        ]


def test_what_follows_a_task_fails_where_it_runs(service: Service) -> None:
    refused = "typed.text: argument value must be a valid string (got {})"
    with service.worker("worker", "--concurrency=2"):
        assert run(
            service,
            "t.add.delay(1).get(timeout=30)",
            "chain(t.add.s(1), t.text.s())().get(timeout=30)",
            "chord([t.add.s(1), t.add.s(2)])(t.text.s()).get(timeout=30)",
            "t.scale.map(['x']).delay().get(timeout=30)",
        ) == [
            1,
            refused.format(1),
            refused.format("list"),
            "typed.scale: argument x must be a valid integer (got str)",
        ]
        # The task before has not suffered.
        before = "chain(t.add.s(1), t.text.s())()"
        state = f"(lambda r: (r.get(timeout=30, propagate=False), r.parent.get(timeout=30), r.parent.state))({before})"
        assert run(service, f"{state}[1:]") == [[1, "SUCCESS"]]
