"""Which tests one process of pytest-xdist runs: `pytest -n 5 --dist loadgroup`.

The tests of a file run in one process, because they share fixtures. Tests of real workers and servers are an exception:
most of them share nothing and mostly wait, so each goes to the next free process. Those that share a worker are kept
together by a parameter, which is a part of their names:

    @pytest.fixture(scope="module", params=on_one_worker("redis", "rabbitmq"))

The mark `xdist_group` would say so too, but pytest-xdist 3.8 loses it with pytest 9.2.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling  # type: ignore[import-untyped]

#: The layers whose tests are spread.
SPREAD = {"behaviour", "chaos"}
SHARED = "one worker"


def on_one_worker(*names: str) -> list[pytest.ParameterSet]:
    """Give parameters for a fixture that starts something for all tests of a module."""
    return list(_on_one_worker(names))


def _on_one_worker(names: tuple[str, ...]) -> Iterator[pytest.ParameterSet]:
    for name in names:
        yield pytest.param(name, id=f"{name}, {SHARED}")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives the tests of a scope to one process."""

    def _split_scope(self, nodeid: str) -> str:
        path, _, test = nodeid.partition("::")
        if PurePosixPath(path).parent.name not in SPREAD:
            return path
        shared = re.search(rf"\w+, {SHARED}", test)
        return f"{path} {shared[0]}" if shared else nodeid
