"""Commands that a developer types: make, uv, docker."""

import os
import subprocess
from pathlib import Path

from support.environment import of_a_package_client


def run(*command: str, cwd: Path | None = None, timeout: float = 300, **variables: str) -> str:
    """Run a command as a developer does, and give what it prints.

    Raises AssertionError with the output when it fails, subprocess.TimeoutExpired when it takes too long.
    """
    done = attempt(*command, cwd=cwd, timeout=timeout, **variables)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


def attempt(
    *command: str, cwd: Path | None = None, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command like `run`, but return its result even if it fails. The output is in `stdout`."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment() | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def environment() -> dict[str, str]:
    """Give a user's environment, in which `docker` finds its engine, and `make` finds uv."""
    of_docker = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
    return of_a_package_client({"PATH": os.environ["PATH"]} | of_docker)
