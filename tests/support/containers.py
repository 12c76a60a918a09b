"""Docker, and a stack that a project's own `make up` started on it."""

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import pytest

from support.commands import attempt, environment, run
from support.project import Project
from support.servers import free_port, wait_until


def require_engine() -> None:
    """Skip the test if no Docker engine answers, or fail it if REQUIRE_SERVICES=1, as in CI."""
    if reason := _what_is_missing():
        if os.environ.get("REQUIRE_SERVICES") == "1":
            pytest.fail(f"{reason} (REQUIRE_SERVICES forbids skipping)")
        pytest.skip(reason)


@functools.cache
def _what_is_missing() -> str:
    if not shutil.which("docker"):
        return "docker is not installed"
    for command in (["docker", "info"], ["docker", "buildx", "version"], ["docker", "compose", "version"]):
        if attempt(*command, timeout=60).returncode:
            return f"`{' '.join(command)}` fails: nothing to build and to run images with"
    return ""


def assert_is_small(project: Project, budget: int) -> str:
    """Check the size of an image against the megabytes that it may add to the Python image; give a line about it."""
    image = project.slug.replace("_", "-")
    [base] = re.findall(r"^FROM (python:\S+)", (project.folder / "Dockerfile").read_text(), re.MULTILINE)
    sizes = run("docker", "image", "inspect", image, base, "--format", "{{.Size}}").split()
    ours, of_python = (int(size) / 1e6 for size in sizes)
    assert ours - of_python < budget
    return f"image {image}: {ours:.0f} MB, of which Python {of_python:.0f} MB"


class Stack:
    """A project whose `make up` has started everything, under a name and on ports of its own."""

    def __init__(self, project: Project, settings: dict[str, str]) -> None:
        """Prepare `.env` with free ports, and add `settings` to it."""
        self.project = project
        self.folder = project.folder
        self.settings = settings
        self.name = f"{project.slug}-{secrets.token_hex(4)}"
        text = (self.folder / ".env.example").read_text()
        ports = r"^#? ?((?!SMTP)\w+_PORT)=\d+"
        text = re.sub(ports, lambda found: f"{found[1]}={free_port()}", text, flags=re.MULTILINE)
        settings = {"COMPOSE_PROJECT_NAME": self.name} | settings
        text += "".join(f"{name}='{value}'\n" for name, value in settings.items())
        (self.folder / ".env").write_text(text)

    def __enter__(self) -> Self:
        try:
            self.make("up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._remove()

    def _remove(self) -> None:
        self.attempt("down", "--volumes", "--rmi", "local", "--timeout", "2")

    def make(self, *arguments: str) -> str:
        """Run make, as its user does."""
        return run("make", *arguments, cwd=self.folder, timeout=600)

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        """Run `docker compose`, and give what it prints."""
        return run("docker", "compose", *arguments, cwd=self.folder, timeout=timeout)

    def attempt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `docker compose`, whether it fails or not."""
        return attempt("docker", "compose", *arguments, cwd=self.folder)

    def python(self, code: str) -> Any:
        """Run code in the container of the worker, and give what it prints last, as JSON."""
        header = f"import json\nfrom {self.project.slug}.celery import celery\n"
        header += f"from {self.project.slug}.tasks import probe\nnotes = '/data/notes'\n"
        lines = self.compose("exec", "-T", "celery", "python", "-c", header + code).splitlines()
        return json.loads(lines[-1]) if lines else None

    def lines(self) -> list[str]:
        """Give what the probe tasks have noted so far."""
        return run("docker", "exec", self.containers("celery")[0], "cat", "/data/notes").splitlines()

    def wait_for_lines(self, lines: Sequence[str], seconds: float) -> None:
        """Wait until probe tasks have noted all of these."""
        try:
            self.wait_until(lambda: set(lines) <= set(self.lines()), seconds, f"{lines} in the notes of {self.name}")
        except TimeoutError as error:
            # CI shows the message only, and the worker's log says what became of the tasks.
            logged = self.logs("celery").splitlines()
            error.add_note("\n".join(["Noted:", *self.lines()[-30:], "Logged:", *logged[-30:]]))
            raise

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition that asks a container. Each call takes a quarter of a second."""
        wait_until(condition, seconds, what, longest_pause_seconds=0.5)

    def logs(self, service: str) -> str:
        """Give what the containers of a service have printed."""
        return self.compose("logs", "--no-log-prefix", service)

    def containers(self, service: str) -> list[str]:
        """Give the ids of its containers, stopped ones included."""
        # Tests ask often, and `docker compose ps` takes five times as long.
        labels = {"project": self.name, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return run("docker", "ps", "--all", "--quiet", *filters).split()

    def inspect(self, service: str) -> Any:
        """Give what the engine says of the first container of a service."""
        return json.loads(run("docker", "inspect", self.containers(service)[0]))[0]

    def health(self, service: str) -> str:
        """Give "healthy", "unhealthy" or "starting"."""
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def main_process(self) -> int:
        """Give the id, in its container, of the process that is to get the signals of the worker."""
        # Process 1 is the one that `init: true` adds.
        [process] = self.compose("exec", "-T", "celery", "cat", "/proc/1/task/1/children").split()
        return int(process)

    def last_probe(self, service: str) -> str:
        """Give when the last probe began."""
        return str(self.inspect(service)["State"]["Health"]["Log"][-1]["Start"])


@contextlib.contextmanager
def watching(stack: Stack) -> Iterator[None]:
    """Have `make watch` run meanwhile."""
    log = stack.folder / "watch.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["make", "watch"],
            cwd=stack.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(lambda: "Watch enabled" in log.read_text(), 60, "Watch enabled")
            yield
        finally:
            os.killpg(process.pid, 2)
            process.wait(30)
