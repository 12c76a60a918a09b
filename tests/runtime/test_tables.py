"""What commands print for people fits the terminal, and can't change it."""

import pytest
from celery_service.observability import terminal


def test_only_flexible_columns_are_cut() -> None:
    rows = [("a" * 20, "1 h", "task " * 10, "error " * 10), ("b", "2 min", "short", "e")]
    lines = list(terminal.table(("ID", "AGE", "TASK", "ERROR"), rows, flexible=(2, 3), most=60))
    assert lines == [
        "ID                    AGE    TASK            ERROR",
        "aaaaaaaaaaaaaaaaaaaa  1 h    task task tas…  error error er…",
        "b                     2 min  short           e",
    ]
    assert max(map(len, lines)) <= 60


def test_a_narrow_terminal_keeps_some_of_each_column() -> None:
    [_, line] = terminal.table(("ID", "ERROR"), [("i" * 36, "e" * 50)], flexible=(1,), most=20)
    assert line == f"{'i' * 36}  {'e' * 9}…"


def test_text_is_wrapped() -> None:
    text = f"→ {'word ' * 9}{'x' * 40}"
    lines = terminal.wrapped(text, 30, hang="  ")
    assert max(map(len, lines)) <= 30
    assert {line[:2] for line in lines} == {"→ ", "  "}
    assert "".join(text.split()) == "".join("".join(lines).split())


def test_wide_characters_take_two_columns() -> None:
    assert terminal.cut("日本語", 5) == "日本…"
    assert terminal.columns("日本…") == 5
    assert terminal.padded("日", 4) == "日  "


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\n\tb", "a b"), ("\x1b[2Jx", r"\x1b[2Jx"), ("\ud800", r"\ud800"), ("\x9b0m", r"\x9b0m"), ("grün", "grün")],
)
def test_text_cannot_change_the_terminal(text: str, shown: str) -> None:
    assert terminal.printable(text) == shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (7199, "119 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert terminal.span(seconds) == text
