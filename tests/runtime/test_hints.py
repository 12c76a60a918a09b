"""A task gets what its type hints say, or it doesn't run."""

import typing
from collections.abc import (
    Callable,
    Collection,
    Container,
    Generator,
    Iterable,
    Iterator,
    MutableSequence,
    Reversible,
    Sequence,
)
from datetime import UTC, date, datetime, timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NotRequired, Required, TypedDict
from uuid import UUID

import pytest
from celery import Celery, chain, chord, group
from celery_service.tasks.arguments import Arguments, InvalidArguments
from kombu.utils.json import dumps, loads
from pydantic import BaseModel, Field, with_config

if TYPE_CHECKING:
    from nowhere import Thing  # type: ignore[import-not-found]

ORDER = {"order_id": 1, "quantity": 2}
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Order(BaseModel):
    """A part of a message."""

    order_id: int
    quantity: int = Field(ge=1)


class Own:
    """Means nothing to pydantic."""


def arguments(body: Callable[..., Any], *, bound: bool = False) -> Arguments:
    return Arguments("task", body, bound=bound)


@with_config({"extra": "forbid"})
class Strict(TypedDict):
    """No other keys."""

    number: int


def taking(hint: Any) -> Callable[..., Any]:
    """A body whose only argument has this hint."""

    def body(value: Any) -> None: ...

    body.__annotations__["value"] = hint
    return body


def refusal(body: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """What is said of arguments that don't fit."""
    with pytest.raises(InvalidArguments) as caught:
        arguments(body).check(args, kwargs)
    return str(caught.value)


def plain(number: int, day: date, key: UUID, order: Order, size: float = 1.0) -> None: ...
def odd(
    thing: "Thing", own: Own, level: Literal["low", "high"], *rest: "int", **more: Annotated[int, Field(gt=0)]
) -> None: ...
def only(a: int, /, b: int, *, c: int) -> None: ...
def text(value: str) -> None: ...
def many(items: list[int]) -> None: ...


class Base(TypedDict):
    """Keys that must be there, and one that need not."""

    number: int
    day: NotRequired[date]


class Entry(Base, total=False):
    """Keys that need not be there."""

    sizes: Iterable[float]
    order: Required[Order]


def test_arguments_are_converted_from_json_to_the_types_of_the_hints() -> None:
    key = "12345678-1234-5678-1234-567812345678"
    (number, day, uuid, order), kwargs = arguments(plain).check(
        ["5", "2030-01-31", key, {"order_id": 1, "quantity": "2"}], {"size": "2.5"}
    )
    assert (number, day, uuid) == (5, date(2030, 1, 31), UUID(key))
    assert order == Order(order_id=1, quantity=2)
    assert kwargs == {"size": 2.5}


def test_an_argument_with_a_hint_unknown_to_pydantic_is_not_converted() -> None:
    own = Own()
    call = arguments(odd).check(("a", own, "low", 1, "2"), {"more": "3"})
    assert call == (("a", own, "low", 1, 2), {"more": 3})


@pytest.mark.parametrize(
    "hint",
    [
        Iterable[int],
        typing.Iterable[int],
        Iterable[int] | None,
        Annotated[Iterable[int], Field(max_length=2)],
        Collection[int],
        Container[int],
        Reversible[int],
        Sequence[int],
        MutableSequence[int],
    ],
)
def test_an_iterable_argument_arrives_as_a_checked_list(hint: Any) -> None:
    body = taking(hint)
    assert arguments(body).check((["1", 2],), {}) == (([1, 2],), {})
    assert refusal(body, [1, "x"]).startswith("task: argument value.1: Input should be a valid integer")
    assert refusal(body, "12").startswith("task: argument value: ")
    assert refusal(body, 12).startswith("task: argument value: ")


@pytest.mark.parametrize("hint", [Iterable, typing.Iterable, Collection, Sequence])
def test_an_iterable_argument_without_an_item_type_arrives_as_it_is(hint: Any) -> None:
    assert arguments(taking(hint)).check((["1", 2],), {}) == ((["1", 2],), {})


@pytest.mark.parametrize("hint", [Iterator[int], Generator[int, None, None], typing.Iterator[int]])
def test_an_iterator_argument_arrives_as_an_iterator_over_checked_items(hint: Any) -> None:
    (items,), _ = arguments(taking(hint)).check((["1", 2],), {})
    assert next(items) == 1
    assert list(items) == [2]
    assert refusal(taking(hint), [1, "x"]).startswith("task: argument value.1: Input should be a valid integer")


def test_an_iterable_inside_another_hint_is_checked() -> None:
    body = taking(dict[str, tuple[Iterable[int], Literal["a"]]])
    assert arguments(body).check(({"k": [["1"], "a"]},), {}) == (({"k": ([1], "a")},), {})
    assert refusal(body, {"k": [["x"], "a"]}).startswith("task: argument value.k.0.0: Input should be a valid integer")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"order": ORDER}, "argument value.number: Field required"),
        ({"number": 1}, "argument value.order: Field required"),
        ({"number": "x", "order": ORDER}, "argument value.number: Input should be a valid integer"),
        ({"number": 1, "order": ORDER, "day": "soon"}, "argument value.day: Input should be a valid date"),
    ],
)
def test_the_keys_of_a_typed_dict_are_checked(value: dict[str, Any], says: str) -> None:
    assert refusal(taking(Entry), value).startswith(f"task: {says}")
    assert refusal(taking(list[Entry]), [value]).startswith(f"task: {says}".replace("value", "value.0"))


def test_the_values_of_a_typed_dict_are_converted() -> None:
    value = {"number": "1", "order": ORDER, "day": "2030-01-31"}
    (converted,), _ = arguments(taking(Entry)).check((value,), {})
    assert converted == {"number": 1, "order": Order(order_id=1, quantity=2), "day": date(2030, 1, 31)}


def test_a_typed_dict_may_refuse_other_keys() -> None:
    assert refusal(taking(Strict), {"number": 1, "more": 2}).startswith("task: argument value.more: Extra inputs")


def test_a_default_may_be_anything() -> None:
    def body(number: int = "many", items: list[int] = []) -> None: ...  # type: ignore[assignment]  # noqa: B006

    first = arguments(body).check((), {})
    assert first == ((), {"number": "many", "items": []})


@pytest.mark.parametrize(
    ("says", "body", "args", "kwargs"),
    [
        (
            "argument number: Input should be a valid integer, unable to parse string as an integer",
            plain,
            ("many", "2030-01-31", UUID(int=0), Order(order_id=1, quantity=1)),
            {},
        ),
        (
            "argument order.quantity: Input should be greater than or equal to 1",
            plain,
            (1, "2030-01-31", UUID(int=0), {"order_id": 1, "quantity": 0}),
            {},
        ),
        ("argument items.1: Input should be a valid integer", many, ([1, None],), {}),
        ("argument value: Input should be a valid string", text, (5,), {}),
        ("argument value: Missing required argument", text, (), {}),
        ("argument value: Missing required argument; argument z: Unexpected keyword argument", text, (), {"z": 1}),
        ("argument number 2: Unexpected positional argument", text, ("a", "b"), {}),
        ("argument level: Input should be 'low' or 'high'", odd, (1, 2, "middle"), {}),
        ("argument number 4: Input should be a valid integer, unable to parse string", odd, (1, 2, "low", "x"), {}),
        ("argument more: Input should be greater than 0", odd, (1, 2, "low"), {"more": 0}),
        ("argument a: Missing required positional only argument", only, (), {"b": 1, "c": 1}),
    ],
)
def test_a_message_names_the_task_the_argument_and_what_is_allowed(
    says: str, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert refusal(body, *args, **kwargs).startswith(f"task: {says}")


@pytest.mark.parametrize(
    ("body", "takes"),
    [
        (plain, "number, day, key, order, size"),
        (odd, "thing, own, level, *rest, **more"),
        (only, "a, b, c"),
        (text, "value"),
    ],
)
def test_a_message_says_what_the_task_takes(body: Callable[..., Any], takes: str) -> None:
    assert refusal(body, unknown=1).endswith(f"; it takes ({takes})")


def test_a_message_does_not_show_what_was_passed() -> None:
    assert "hunter2" not in refusal(plain, "hunter2", "hunter2", "hunter2", {"order_id": "hunter2"})


def test_a_message_stays_short() -> None:
    said = refusal(many, ["x"] * 1000)
    assert len(said) < 500
    assert said.count("; argument") == 2
    assert len(refusal(text, **{"x" * 5000: 1})) < 500


def test_the_task_itself_is_not_among_its_arguments() -> None:
    def body(self: object, x: int) -> None: ...

    assert arguments(body, bound=True).check(("1",), {}) == ((1,), {})


def test_incomplete_arguments_may_be_missing_but_not_unknown() -> None:
    assert arguments(text).check((), {}, complete=False) == ((), {})
    with pytest.raises(InvalidArguments):
        arguments(text).check((), {"other": 1}, complete=False)


def test_models_and_paths_travel_as_json() -> None:
    sent = dumps([Order(order_id=1, quantity=2), PurePosixPath("/a"), datetime(2030, 1, 1, tzinfo=UTC)])
    assert loads(sent) == [{"order_id": 1, "quantity": 2}, "/a", datetime(2030, 1, 1, tzinfo=UTC)]


# --- in tasks ---------------------------------------------------------------------------------------------------------


class Tasks(NamedTuple):
    """Tasks with hints."""

    later: Any
    anything: Any
    seen: list[Any]


@pytest.fixture
def tasks(app: Celery) -> Iterator[Tasks]:
    """What they are given, they append to `seen`."""
    seen: list[Any] = []

    @app.task(name="tests.later", autoretry_for=(Exception,))
    def later(day: date, days: int = 1) -> str:
        """Count days, and retry whatever happens."""
        seen.append((day, days))
        return (day + timedelta(days)).isoformat()

    @app.task(name="tests.anything", typing=False)
    def anything(day: date) -> str:
        """Take what comes."""
        return str(day)

    yield Tasks(later, anything, seen)
    for name in ("tests.later", "tests.anything"):
        del app.tasks[name]


def test_text_arguments_are_converted_when_a_task_runs(tasks: Tasks) -> None:
    assert tasks.later.apply(("2030-01-31", "2")).get() == "2030-02-02"
    assert tasks.later("2030-01-31") == "2030-02-01"
    assert tasks.seen == [(date(2030, 1, 31), 2), (date(2030, 1, 31), 1)]


def test_a_task_with_invalid_arguments_neither_runs_nor_is_retried(tasks: Tasks) -> None:
    outcome = tasks.later.apply(("2030-01-31", "many"))
    assert outcome.state == "FAILURE"
    assert isinstance(outcome.result, InvalidArguments)
    assert tasks.seen == []


def test_invalid_arguments_raise_an_error_in_a_publisher_and_in_a_plain_call(tasks: Tasks) -> None:
    calls: tuple[Callable[[], Any], ...] = (
        lambda: tasks.later("soon"),
        lambda: tasks.later.delay("soon"),
        lambda: tasks.later.apply_async(("soon",)),
        lambda: tasks.later.apply_async(kwargs={"day": "soon"}),
        lambda: tasks.later.si("soon"),
        lambda: tasks.later.s(day="soon"),
        lambda: chain(tasks.later.s("soon"), tasks.later.s())(),
        lambda: group([tasks.later.s("2030-01-31"), tasks.later.s("soon")])(),
        lambda: chord([tasks.later.s("soon")])(tasks.later.s()),
    )
    for call in calls:
        with pytest.raises(InvalidArguments, match=r"^tests.later: argument day: Input should be a valid date"):
            call()
    with pytest.raises(InvalidArguments, match=r"argument day: Missing required argument; it takes \(day, days\)$"):
        tasks.later.delay()


def test_an_incomplete_signature_checks_its_keyword_arguments(tasks: Tasks) -> None:
    assert tasks.later.s(days=2).kwargs == {"days": 2}
    with pytest.raises(InvalidArguments, match="argument days: "):
        tasks.later.s(days="many")


def test_typing_false_turns_the_checks_off(tasks: Tasks) -> None:
    assert tasks.anything("soon") == tasks.anything.apply(("soon",)).get() == "soon"
