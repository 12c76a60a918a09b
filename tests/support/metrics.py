"""What a process serves to Prometheus."""

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from support.project import Worker

Labels = frozenset[tuple[str, str]]


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        """Parse what was served."""
        self.text = text
        self._samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def __contains__(self, name: str) -> bool:
        """Whether there is a series of this name."""
        return name in self._samples

    def __getitem__(self, name: str) -> float:
        """Give the only value of a metric."""
        [value] = self._samples[name].values()
        return value

    def sum(self, metric: str, /, **labels: str) -> float:
        """Add the values that have these labels; 0 if there are none."""
        return sum(value for found, value in self._samples.get(metric, {}).items() if labels.items() <= set(found))

    def values(self, metric: str, label: str) -> set[str]:
        """Give the values of a label."""
        return set(self._values(metric, label))

    def _values(self, metric: str, label: str) -> Iterator[str]:
        for labels in self._samples.get(metric, {}):
            yield from (value for key, value in labels if key == label)


def address(process: Worker) -> str:
    """Wait until a worker or beat serves metrics, and give the URL."""
    return process.wait_for(r"http://[\w.:\[\]]+/metrics").group()


def scrape(url: str, seconds: float = 10) -> Scrape:
    """Ask for the metrics."""
    with urllib.request.urlopen(url, timeout=seconds) as answer:
        return Scrape(answer.read().decode())


def listeners(pid: int) -> set[int]:
    """Give the TCP ports on which a process of this machine listens."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9]: int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
    return {inodes[inode] for inode in _sockets(pid) if inode in inodes}


def _sockets(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
        except FileNotFoundError:
            continue
        if found:
            yield found[1]
