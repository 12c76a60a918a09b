"""Start Prometheus, and check its files."""

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base import HOST, Server, free_port, require


def promtool(*arguments: str, given: str = "") -> None:
    """Run promtool.

    Raises AssertionError with its output when it finds a problem.
    """
    program = require("prometheus", shutil.which("promtool"))
    done = subprocess.run([program, *arguments], input=given, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def start_prometheus(folder: Path, config: Mapping[str, Any]) -> Server:
    """Start Prometheus with this configuration, and wait until it answers: 1 s."""
    program = require("prometheus", shutil.which("prometheus"))
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    url = f"http://{HOST}:{port}"

    def answers() -> bool:
        try:
            return bool(ask(url, "/-/ready"))
        except (urllib.error.URLError, ConnectionError):
            return False

    server = Server(
        name="Prometheus",
        url=url,
        answers=answers,
        command=[
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{port}",
        ],
        log=folder / "prometheus.log",
        start_seconds=60,
    )
    server.start()
    return server


def ask(url: str, path: str) -> str:
    """Return what Prometheus answers.

    Raises AssertionError with the answer when it is an error.
    """
    try:
        with urllib.request.urlopen(url + path, timeout=30) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it starts
            raise
        raise AssertionError(f"{path}: {error.read().decode()}") from None
