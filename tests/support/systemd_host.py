"""A server with systemd, Redis and supervisor, on which a project is installed as docs/dev/systemd.md says.

It is a container in which systemd is the first process.
"""

import contextlib
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.commands import attempt, run
from support.project import Project
from support.servers import wait_until

#: The Python image of a project's Dockerfile, with what a server has.
DOCKERFILE = """
FROM {python}
RUN apt-get update -qq \\
    && apt-get install -y -qq --no-install-recommends dbus make redis-server supervisor systemd >/dev/null 2>&1 \\
    && systemctl disable --quiet redis-server supervisor
COPY --from={uv} /uv /usr/local/bin/uv
COPY . {folder}
RUN --mount=type=cache,target=/root/.cache/uv \\
    cd {folder} && UV_LINK_MODE=copy uv sync --quiet --no-dev --no-editable --python /usr/local/bin/python3
ENV container=docker
"""
#: systemd needs the unified hierarchy, which an engine may not give it.
INIT = (
    "test -e /sys/fs/cgroup/cgroup.procs"
    " || { umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; };"
    " exec /lib/systemd/systemd"
)
PASSWORD = "secret-of-redis"


@dataclass(frozen=True, kw_only=True)
class Host:
    """A running server with an installed project."""

    container: str
    project: Project
    distribution: str

    @property
    def notes(self) -> str:
        """The path of the file that probe tasks write to."""
        return f"/var/lib/{self.distribution}/notes"

    def unit(self, kind: str) -> str:
        """Return the name of a unit: "worker@default" or "beat"."""
        return f"{self.distribution}-{kind}"

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run a command as root. Raises AssertionError with the output when it fails."""
        return run("docker", "exec", self.container, *command, timeout=timeout)

    def shell(self, script: str, timeout: float = 60) -> str:
        """Run a script as root, in the folder of the project."""
        folder = f"/opt/{self.distribution}"
        return run("docker", "exec", "--workdir", folder, self.container, "sh", "-c", script, timeout=timeout)

    def attempt(self, script: str) -> tuple[int, str]:
        """Run a script, and return its status and its output."""
        done = attempt("docker", "exec", self.container, "sh", "-c", script)
        return done.returncode, done.stdout

    def show(self, kind: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", self.unit(kind)).strip()

    def main_process(self, kind: str) -> int:
        """Return the id of the main process of a unit, or 0."""
        return int(self.show(kind, "MainPID"))

    def wait_for_status(self, kind: str, text: str, seconds: float = 60) -> None:
        """Wait until a process has told systemd this."""
        self.wait(lambda: self.show(kind, "StatusText") == text, seconds, f"{kind} to say {text!r}")

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for a condition that asks the container."""
        try:
            wait_until(condition, seconds, what, longest_pause_seconds=0.5)
        except TimeoutError:
            print(self.attempt("journalctl --no-pager --lines 100; tail -n 50 /var/log/*/*.log")[1])
            raise

    def python(self, code: str) -> Any:
        """Run code in a publisher, and return what it prints last, as JSON."""
        header = f"import json\nfrom {self.project.slug}.celery import celery\n"
        header += f"from {self.project.slug}.tasks import probe\nnotes = {self.notes!r}\n"
        url = f"CELERY_BROKER_URL=redis://:{PASSWORD}@localhost/0"
        command = ["env", url, f"/opt/{self.distribution}/.venv/bin/python", "-c", header + code]
        lines = run("docker", "exec", "--workdir", "/", self.container, *command).splitlines()
        return json.loads(lines[-1]) if lines else None

    def lines(self) -> list[str]:
        """Return what probe tasks have noted so far."""
        return self.attempt(f"cat {self.notes}")[1].splitlines()

    def wait_for_lines(self, lines: Sequence[str], seconds: float = 60) -> None:
        """Wait until probe tasks have noted all of these."""
        self.wait(lambda: set(lines) <= set(self.lines()), seconds, f"{lines} in {self.notes}")


@contextlib.contextmanager
def start_host(project: Project, probe: Path) -> Iterator[Host]:
    """Install a project with the tasks of `probe` on a new server, without starting it."""
    name = project.slug.replace("_", "-")
    shutil.copy(probe, project.folder / project.slug / "tasks" / "probe.py")
    [python] = re.findall(r"^FROM (python:\S+)", (project.folder / "Dockerfile").read_text(), re.MULTILINE)
    [uv] = re.findall(r"^FROM (\S*/uv:\S+)", (project.folder / "Dockerfile").read_text(), re.MULTILINE)
    server = project.folder.parent / "server.Dockerfile"
    server.write_text(DOCKERFILE.format(python=python, uv=uv, folder=f"/opt/{name}"))
    (project.folder / ".dockerignore").unlink()
    image = container = f"{name}-server-{secrets.token_hex(4)}"
    run("docker", "build", "--quiet", "--tag", image, "--file", str(server), str(project.folder), timeout=600)
    options = ["--privileged", "--cgroupns=private", "--tmpfs=/run", "--tmpfs=/run/lock"]
    run("docker", "run", "--detach", "--name", container, *options, image, "sh", "-c", INIT)
    host = Host(container=container, project=project, distribution=name)
    try:
        host.wait(
            lambda: host.attempt("systemctl is-system-running")[1].strip() in {"running", "degraded"},
            60,
            "systemd to have started",
        )
        yield host
    finally:
        attempt("docker", "rm", "--force", "--volumes", container)
        attempt("docker", "rmi", "--force", image)
