"""What Celery's integration tests use in place of their own app and worker.

This is copied beside them as `t/integration/ours.py`, and the end of their `conftest.py` imports everything from it.
So it runs in the environment of a generated project.
"""

import json
import os
import runpy
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

#: What ends as what: a test has failed when any part of it has.
_outcomes: dict[str, set[str]] = defaultdict(set)


def _make_app() -> Celery:
    """Make a new app, as the project does: a test may change its settings."""
    app: Celery = runpy.run_module(os.environ["SUITE_APP"])["celery"]
    app.set_default()
    app.set_current()
    return app


@pytest.fixture(scope="session")
def celery_session_app() -> Celery:
    """The app of those that need one for the session."""
    return _make_app()


@pytest.fixture
def celery_app(celery_session_app: Celery) -> Iterator[Celery]:  # noqa: ARG001
    """The app of a test."""
    with _make_app() as app:
        yield app


@pytest.fixture(scope="session")
def celery_session_worker(celery_session_app: Celery) -> Iterator[None]:
    """The worker is a process of its own, and runs already, unless the tests look into it."""
    if "SUITE_IN_PROCESS" not in os.environ:
        yield
        return
    for module in celery_session_app.conf.include:
        celery_session_app.loader.import_task_module(module)
    with start_worker(celery_session_app, pool="prefork"):
        yield


@pytest.fixture(autouse=True)
def ZZZZ_set_app_current(app: Celery) -> None:
    """Celery's own also insists on an app with the one queue `celery`."""
    app.set_current()
    app.set_default()


def pytest_runtest_logreport(report: Any) -> None:
    """Note how a part of a test has ended."""
    _outcomes[report.nodeid.removeprefix("t/integration/")].add(
        "xfailed" if hasattr(report, "wasxfail") else report.outcome
    )


def pytest_sessionfinish() -> None:
    """Write down how each test has ended."""
    ends = ("failed", "skipped", "xfailed", "passed")
    outcomes = {name: next(end for end in ends if end in found) for name, found in _outcomes.items()}
    Path(os.environ["SUITE_OUTCOMES"]).write_text(json.dumps(outcomes), encoding="utf-8")
