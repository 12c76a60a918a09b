"""The short form of the fault suite: one module for each broker, so that they run side by side."""

from collections.abc import Iterator

import pytest

from support.chaos.bench import Servers, servers
from support.chaos.cells import seed


@pytest.fixture(scope="session")
def chaos_seed(summary: list[str]) -> int:
    """The seed of the fault plans; told at the end, to repeat them."""
    number = seed()
    summary.append(f"the fault plans were those of CHAOS_SEED={number}")
    return number


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers of the module's BROKER, one set for all of its cells."""
    with servers(request.module.BROKER, tmp_path_factory.mktemp("chaos")) as started:
        yield started
