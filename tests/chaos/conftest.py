"""The servers of the fault suite, and its seed."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from support.chaos.bench import Servers, servers


@pytest.fixture(scope="session")
def chaos_seed(summary: list[str], testrun_uid: str) -> int:
    """The seed of the faults, the same in all processes of pytest-xdist. It is printed at the end."""
    number = int(os.environ.get("CHAOS_SEED") or int(testrun_uid[:8], 16))
    summary.append(f"the fault plans were those of CHAOS_SEED={number}")
    return number


@pytest.fixture(scope="session")
def servers_of(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Servers]]:
    """Return the servers of a broker, started once in each process. Each test empties them first."""
    with ExitStack() as stack:

        def start(broker_name: str) -> Servers:
            rabbitmq = request.getfixturevalue("rabbitmq") if broker_name == "rabbitmq" else None
            return stack.enter_context(servers(broker_name, tmp_path_factory.mktemp(broker_name), rabbitmq))

        yield cache(start)


@pytest.fixture(params=["redis", "rabbitmq"])
def running(request: pytest.FixtureRequest, servers_of: Callable[[str], Servers]) -> Servers:
    """Run a test on the servers of both brokers."""
    return servers_of(request.param)
