"""What `celery doctor` makes of the answers of workers."""

import time
from typing import Any

import pytest
from celery import Celery
from celery_service.observability import overview
from celery_service.observability.doctor import workers
from celery_service.observability.report import release_of


def report(app: Celery, **changes: Any) -> dict[str, Any]:
    """Give the answer of a worker that is well."""
    return {
        "service": "unit",
        "release": release_of(app),
        "time": time.time(),
        "queues": ["default", "high_priority", "low_priority"],
        "active": 1,
        "concurrency": 4,
        "leases_held": 1,
        "leases_lost": 0,
    } | changes


def problems(app: Celery, monkeypatch: pytest.MonkeyPatch, *answers: tuple[str, Any]) -> list[str]:
    monkeypatch.setattr(workers, "ask_workers", lambda *_: list(answers))
    monkeypatch.setattr(app.conf, "broker_read_url", "filesystem://")
    monkeypatch.setattr(workers, "lengths", lambda _, names: [(name, overview.Length(0, 0)) for name in names])
    found = workers.check(app)
    return [f"{each.check}: {each.text}" for each in found if each.level in ("warning", "broken")]


def test_workers_that_are_well(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(app, monkeypatch, ("a@h", report(app)), ("b@h", report(app))) == []


def test_a_worker_that_has_lost_leases(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    found = problems(app, monkeypatch, ("a@h", report(app)), ("b@h", report(app, leases_lost=2)))
    text = "leases: b@h lost the leases of 2 messages since they started: their tasks may have run twice"
    assert found == [text]


def test_two_workers_with_one_name(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    found = problems(app, monkeypatch, ("a@h", report(app)), ("a@h", report(app)))
    assert found == ["workers: several are called a@h"]


def test_a_worker_without_this_command(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it consumes isn't known, so no queue is said to lack a worker."""
    found = problems(app, monkeypatch, ("a@h", report(app, queues=[])), ("old@h", {"error": "KeyError"}))
    assert found == ["releases: old@h run a release that can't tell its own"]


def test_workers_with_another_release_than_the_command(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    other = release_of(app) | {"celery": "5.6.0"}
    [found] = problems(app, monkeypatch, ("a@h", report(app, release=other)))
    assert found.startswith("releases: workers run another release (celery 5.6.0 instead of 5.7.")


@pytest.mark.parametrize(
    ("routes", "queues"),
    [
        ([{"a.*": {"queue": "one"}, "b.*": "two"}, lambda *_: None], {"one", "two"}),
        ({"a.*": {"queue": "one", "priority": 3}, "b": {"priority": 1}}, {"one"}),
        ([("a.*", {"queue": "one"}), ["b.*", "two"]], {"one", "two"}),
        (("a.*", {"queue": "one"}), {"one"}),
        (None, set()),
    ],
)
def test_the_queues_of_routes(routes: object, queues: set[str]) -> None:
    assert overview.routed(routes) == queues
