"""The servers of the fault suite, and the seed of its plans."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from support.chaos.bench import Servers, servers


@pytest.fixture(scope="session")
def chaos_seed(summary: list[str], testrun_uid: str) -> int:
    """The seed of the fault plans, one for all processes of pytest-xdist; told at the end, to repeat them."""
    number = int(os.environ.get("CHAOS_SEED") or int(testrun_uid[:8], 16))
    summary.append(f"the fault plans were those of CHAOS_SEED={number}")
    return number


@pytest.fixture(scope="session")
def servers_of(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Servers]]:
    """Give the servers of a broker, started once in each process. Every test begins by emptying them."""
    with ExitStack() as stack:

        def start(broker_name: str) -> Servers:
            rabbitmq = request.getfixturevalue("rabbitmq") if broker_name == "rabbitmq" else None
            return stack.enter_context(servers(broker_name, tmp_path_factory.mktemp(broker_name), rabbitmq))

        yield cache(start)


@pytest.fixture(params=["redis", "rabbitmq"])
def running(request: pytest.FixtureRequest, servers_of: Callable[[str], Servers]) -> Servers:
    """The servers of both brokers, one after the other."""
    return servers_of(request.param)
