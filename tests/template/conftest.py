"""Shared code of these tests. None of them needs a server or an installed project."""

from collections.abc import Iterator

import pytest

from support.fast_copier import without_repetition


@pytest.fixture(scope="session", autouse=True)
def _fast_copier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, without_repetition():
        # Copier keeps a mirror of each remote template in the user's home.
        patch.setenv("COPIER_CACHE_DIR", str(tmp_path_factory.mktemp("mirrors")))
        yield
