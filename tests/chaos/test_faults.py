"""The short form of `make chaos`: no task is lost if processes or servers are killed, frozen or restarted."""

import pytest

from support.chaos.bench import Servers
from support.chaos.cells import SHORT, Cell, assert_nothing_is_lost


@pytest.mark.parametrize("cell", SHORT, ids=lambda cell: cell.slug)
def test_nothing_is_lost(cell: Cell, running: Servers, chaos_seed: int) -> None:
    assert_nothing_is_lost(cell, running, chaos_seed)
