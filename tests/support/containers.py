"""A Docker engine for tests, and a stack that a project's own `make up` started on it.

The engine is that of this machine. Where there is none, but the script `container-engine` is there, it brings one up,
with stand-ins under the names of the images that a project pulls.
"""

import contextlib
import fcntl
import functools
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest

from .project import REPOSITORY, Project
from .servers import free_port, wait_until

SCRIPT = REPOSITORY.parent / "shared" / "tools" / "container-engine"
FOLDER = Path(os.environ.get("CONTAINER_ENGINE_DIR") or Path(os.environ.get("TMPDIR", "/tmp")) / ".container-engine")
#: What images of other names are made of: packages and a command.
STAND_INS = {"axllent/mailpit": ["python3-aiosmtpd", "--", "python3", "-m", "aiosmtpd", "-n", "-l", "0.0.0.0:1025"]}


def run(*command: str, cwd: Path | None = None, timeout: float = 300, **variables: str) -> str:
    """Run a command with the engine's environment, and give what it prints.

    Raises AssertionError with the output when it fails, subprocess.TimeoutExpired when it takes too long.
    """
    done = attempt(*command, cwd=cwd, timeout=timeout, **variables)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


def attempt(
    *command: str, cwd: Path | None = None, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command likewise, and give how it ended; what it prints is in `stdout`."""
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


@functools.cache
def environment() -> dict[str, str]:
    """Give the environment in which `docker` works, without what would change a project.

    Skips the test where there is no engine; fails it where there ought to be one.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CELERY_", "COMPOSE_", "MAKE", "UV_PROJECT", "VIRTUAL_ENV"))
    }
    if _answers(kept):
        return kept
    if not SCRIPT.exists():
        pytest.skip("no Docker engine answers: nothing to build and to run images on")
    if os.getuid() != 0:
        _refuse("no Docker engine answers, and starting one takes root")
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = subprocess.run([SCRIPT, "up"], capture_output=True, text=True, timeout=600, check=False)
        if started.returncode:
            _refuse(f"{SCRIPT} could not start an engine:\n{started.stdout}{started.stderr}")
        exported = re.findall(r"(\w+)=(\S+)", (FOLDER / "env").read_text())
        ours = kept | {name: value.replace("$PATH", kept["PATH"]) for name, value in exported}
        _add_init()
        return ours


def _answers(variables: dict[str, str]) -> bool:
    if not shutil.which("docker", path=variables["PATH"]):
        return False
    done = subprocess.run(["docker", "info"], env=variables, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def _refuse(reason: str) -> NoReturn:
    if os.environ.get("REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason} (REQUIRE_SERVICES forbids skipping)")
    pytest.skip(reason)


def _add_init() -> None:
    """Give that engine the small process of `init: true`, which comes in a package of its own."""
    tini, link = Path("/usr/bin/tini-static"), FOLDER / "bin" / "docker-init"
    if not tini.exists():
        subprocess.run(["apt-get", "install", "-y", "-qq", "tini"], capture_output=True, timeout=300, check=False)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(tini)


def pull_images(project: Project) -> None:
    """Have every image that the project's files name, at least a stand-in for it."""
    texts = "".join((project.folder / name).read_text() for name in ("Dockerfile", "compose.yaml"))
    texts += (project.folder / "compose.override.yaml").read_text()
    named = re.findall(r"^(?:FROM| +image:) (\S+[:/]\S+)", texts, re.MULTILINE)
    if environment().get("DOCKER_HOST") != f"unix://{FOLDER}/docker.sock":
        return
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for image in dict.fromkeys(named):
            if attempt("docker", "image", "inspect", image).returncode:
                _stand_in(image)


def _stand_in(image: str) -> None:
    name, _, tag = image.partition(":")
    match name.rpartition("/")[2]:
        case "python":
            version = tag.partition("-")[0]
            run(str(SCRIPT), "python", version, timeout=900)
            run("docker", "tag", f"python:{version}-slim", image)
        case ("uv" | "redis" | "postgres" | "rabbitmq") as kind:
            run(str(SCRIPT), kind, tag, timeout=900)
        case _:
            run(str(SCRIPT), "debian", image, *STAND_INS[name], timeout=900)


class Stack:
    """A project whose `make up` has started everything, under a name and on ports of its own."""

    def __init__(self, project: Project, settings: dict[str, str]) -> None:
        """Prepare `.env` as somebody does whose ports are taken; `settings` are added to it."""
        self.project = project
        self.folder = project.folder
        self.name = f"{project.slug}-{secrets.token_hex(4)}"
        text = (self.folder / ".env.example").read_text()
        ports = r"^#? ?((?!SMTP)\w+_PORT)=\d+"
        text = re.sub(ports, lambda found: f"{found[1]}={free_port()}", text, flags=re.MULTILINE)
        settings = {"COMPOSE_PROJECT_NAME": self.name} | settings
        text += "".join(f"{name}='{value}'\n" for name, value in settings.items())
        (self.folder / ".env").write_text(text)

    def __enter__(self) -> Self:
        pull_images(self.project)
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
        return self.attempt("exec", "-T", "celery", "cat", "/data/notes").stdout.splitlines()

    def wait_for_lines(self, lines: Sequence[str], seconds: float) -> None:
        """Wait until probe tasks have noted all of these."""
        wait_until(lambda: set(lines) <= set(self.lines()), seconds, f"{lines} in the notes of {self.name}")

    def logs(self, service: str) -> str:
        """Give what the containers of a service have printed."""
        return self.compose("logs", "--no-log-prefix", service)

    def containers(self, service: str) -> list[str]:
        """Give the ids of its containers, stopped ones included."""
        return self.compose("ps", "--all", "--quiet", service).split()

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
