"""Fixtures for all tests: a RabbitMQ, Copier without a developer's settings, and lines for the report."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.layers import Layers
from support.servers import Server, start_rabbitmq

SUMMARY = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUMMARY] = []
    config.pluginmanager.register(Layers())


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> list[str]:
    """Lines to show after the tests, whether they pass or fail."""
    return pytestconfig.stash[SUMMARY]


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One RabbitMQ for all tests of a process, because it takes seconds to start."""
    with start_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_developer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Without this, Copier would read default answers and trusted repositories from the user's settings file."""
    path = tmp_path_factory.mktemp("copier") / "settings.yml"
    path.write_text("{}\n")  # Copier refuses a file that is altogether empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPIER_SETTINGS_PATH", str(path))
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getvalue("dist") != "loadgroup":
        return None
    from support.distribution import Scheduling

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines: list[str] = config.stash[SUMMARY]
    for line in dict.fromkeys(lines):
        terminalreporter.write_line(line)


# With pytest-xdist the lines travel from the workers to the process that reports.


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["summary"] = session.config.stash[SUMMARY]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[SUMMARY] += getattr(node, "workeroutput", {}).get("summary", [])
