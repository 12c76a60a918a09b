"""Nothing is lost on RabbitMQ, whatever is killed, frozen or restarted: the short form of `make chaos`."""

from collections.abc import Iterator

import pytest

from support.chaos.bench import Servers, servers
from support.chaos.cells import SHORT, SHORT_SCALE, Cell, run


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers("rabbitmq", tmp_path_factory.mktemp("chaos")) as started:
        yield started


@pytest.mark.parametrize("cell", SHORT, ids=lambda cell: cell.slug)
def test_nothing_is_lost(cell: Cell, running: Servers, chaos_seed: int) -> None:
    outcome = run(cell, running, SHORT_SCALE, chaos_seed)
    assert not outcome.problems(), "\n".join([*outcome.problems(), f"CHAOS_SEED={chaos_seed}", *outcome.journal])
