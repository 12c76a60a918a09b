"""The short form of the fault suite: one module for each broker, so that they run side by side."""

import pytest

from support.chaos.cells import seed


@pytest.fixture(scope="session")
def chaos_seed(summary: list[str]) -> int:
    """The seed of the fault plans; told at the end, to repeat them."""
    number = seed()
    summary.append(f"the fault plans were those of CHAOS_SEED={number}")
    return number
