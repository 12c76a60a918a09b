"""A pytest plugin that starts the slowest tests first and reports how long each layer of tests took."""

from collections import Counter, defaultdict
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any

import pytest

#: The folders below tests/, with the long files first: they run beside the many short ones.
ORDER = ("artefacts", "chaos", "generated", "behaviour", "template", "runtime")
#: The longest file of those that run last, which would run alone at the end.
LONG = "test_update.py"


class Layers:
    """The folders below tests/, and the seconds of their tests with all that these set up."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tests: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: (ORDER.index(item.path.parent.name), item.path.name != LONG))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # With pytest-xdist, the process that reports gets all of them.
        layer = PurePosixPath(report.nodeid.partition("::")[0]).parent.name
        self.seconds[layer] += report.duration
        self.tests[layer] += report.when == "call"

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        processes = getattr(config.option, "numprocesses", None) or 1
        terminalreporter.section(f"layers: seconds of {processes} processes together" if processes > 1 else "layers")
        for layer, seconds in sorted(self.seconds.items(), key=itemgetter(1), reverse=True):
            terminalreporter.write_line(f"{layer:<12}{self.tests[layer]:>5} tests {seconds:>7.0f} s")
