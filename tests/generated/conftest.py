"""Generated projects, rendered without Copier's repeated work."""

from collections.abc import Iterator

import pytest

from support.fast_copier import without_repetition


@pytest.fixture(scope="session", autouse=True)
def _fast_copier() -> Iterator[None]:
    with without_repetition():
        yield
