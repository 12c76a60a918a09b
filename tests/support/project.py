"""Render a project, install what it depends on, and run its workers and publishers.

For example:

    project = install(render(tmp_path / "project", {"broker": "rabbitmq"}))
    with Worker(project, env={"CELERY_BROKER_URL": server.url}, log=tmp_path / "log") as worker:
        worker.wait_ready()
        run_python(project, "...", env)
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import copier

from .servers import child_pids, wait_until

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENTS = Path.home() / ".cache" / "copier-celery-service" / "environments"

# Beat says at level DEBUG only that it has looked at its schedule for the first time. Before that
# a SIGTERM ends it with an error: its handler needs what the interrupted start was importing.
READY = {"worker": r"@\S+ ready\.", "beat": r"beat: Waking up"}
LEVEL = {"worker": "INFO", "beat": "DEBUG"}


# --- render -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Project:
    """A rendered project."""

    folder: Path
    slug: str


def render(
    folder: Path,
    answers: Mapping[str, Any] | None = None,
    *,
    source: Path | None = None,
    vcs_ref: str | None = None,
) -> Project:
    """Render the template into `folder`, with the defaults for what `answers` doesn't say.

    The source is the working tree as it is, without its history, unless told otherwise. Pass
    answers to questions that are asked only: Copier accepts others too, and renders a project
    that nobody can choose. Raises what Copier raises, such as ValueError for a bad answer.
    """
    with copier.run_copy(
        str(source or working_tree()),
        folder,
        data=dict(answers or {}),
        vcs_ref=vcs_ref,
        defaults=True,
        quiet=True,
        unsafe=False,
    ) as done:
        return Project(folder=folder, slug=done.answers.combined["package_slug"])


@functools.cache
def working_tree() -> Path:
    """Copy the template's files, uncommitted ones included, to a folder without git; once."""
    temporary = tempfile.TemporaryDirectory(prefix="template-")
    _to_delete_at_exit.append(temporary)
    copy_working_tree(Path(temporary.name))
    return Path(temporary.name)


_to_delete_at_exit: list[tempfile.TemporaryDirectory[str]] = []


def copy_working_tree(folder: Path) -> None:
    """Copy every file that git tracks or would offer to track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        original, copy = REPOSITORY / name, folder / name
        if original.is_symlink() or original.is_file():  # else deleted, not yet committed
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(original, copy, follow_symlinks=False)


def commit_all(folder: Path, tag: str | None = None) -> None:
    """Commit everything in `folder`, a git repository from now on, and tag it."""
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    commit = [*identity, "-c", "commit.gpgsign=false", "commit", "-q", "-m", tag or "Commit"]
    commands = [["init", "-q", "-b", "main"], ["add", "-A"], [*commit, "--allow-empty"]]
    for arguments in [*commands, ["tag", tag]] if tag else commands:
        subprocess.run(["git", *arguments], cwd=folder, check=True)


# --- install ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InstalledProject(Project):
    """A project and the virtual environment that holds its dependencies."""

    environment: Path

    def program(self, name: str) -> str:
        """Give the path of a program of the environment, such as `celery`."""
        return str(self.environment / "bin" / name)

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout_seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the project's folder, with no variables of ours but these.

        Raises subprocess.TimeoutExpired when it takes too long.
        """
        return subprocess.run(
            [self.program(command[0]), *command[1:]],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"} | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def celery(
        self, *arguments: str, env: Mapping[str, str], timeout_seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `celery -A …` likewise."""
        return self.run("celery", "-A", f"{self.slug}.celery", *arguments, env=env, timeout_seconds=timeout_seconds)


def install(project: Project, python: str | None = None, *, complete: bool = False) -> InstalledProject:
    """Install the dependencies with uv; projects with equal ones share one environment.

    A `complete` one has an environment of its own, with the project installed as its users have it:
    `celery` then has the commands that the project adds.

    `python` is a version or a path; without it UV_PYTHON counts, then the running Python.
    The first time for a set of dependencies takes some seconds, later times some milliseconds.

    Raises RuntimeError with uv's output.
    """
    python = python or os.environ.get("UV_PYTHON") or sys.executable
    if complete:
        environment = project.folder / ".venv"
        _sync(project, python, environment)
        return InstalledProject(folder=project.folder, slug=project.slug, environment=environment)
    environment = ENVIRONMENTS / _key(project, python)
    done = environment / "complete"
    with _locked(environment.with_suffix(".lock")):
        if not done.exists():
            _sync(project, python, environment, "--no-install-project")
            done.touch()
    return InstalledProject(folder=project.folder, slug=project.slug, environment=environment)


def _key(project: Project, python: str) -> str:
    """Name what decides about the contents of an environment, and nothing else."""
    settings = tomllib.loads((project.folder / "pyproject.toml").read_text(encoding="utf-8"))
    about = settings["project"]
    lock = project.folder / "uv.lock"
    parts = [
        str(Path(python).resolve()) if "/" in python else python,
        about["requires-python"],
        about["dependencies"],
        about.get("optional-dependencies"),
        settings.get("dependency-groups"),
        settings.get("tool", {}).get("uv"),
        lock.read_text(encoding="utf-8") if lock.exists() else None,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _sync(project: Project, python: str, environment: Path, *options: str) -> None:
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    done = subprocess.run(
        [uv, "sync", "--python", python, *options],
        cwd=project.folder,
        env=_variables({"UV_PROJECT_ENVIRONMENT": str(environment)}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"uv sync ended with status {done.returncode}:\n{done.stderr}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time through: tests run in parallel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _variables(more: Mapping[str, str]) -> dict[str, str]:
    """Give the environment of a subprocess: ours, less what would change what is tested."""
    ours = ("CELERY_", "PYTHON", "VIRTUAL_ENV", "UV_PROJECT", "COV_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    for name in ("APP", "BROKER_URL"):  # Celery's command line reads them
        kept.pop(name, None)
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"} | dict(more)


# --- run --------------------------------------------------------------------------------------


def run_python(
    project: InstalledProject,
    code: str,
    env: Mapping[str, str] | None = None,
    *,
    timeout_seconds: float = 60,
) -> Any:
    """Run `code` in a Python of its own, in the project, and give what its last line of output is.

    That line is JSON; without any output the result is None. Raises RuntimeError with the output
    when the code fails, subprocess.TimeoutExpired when it takes too long.
    """
    done = subprocess.run(
        [project.program("python"), "-c", code],
        cwd=project.folder,
        env=_variables(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None


class Worker:
    """A worker, or beat, as `celery -A <slug>.celery …` in a process group of its own.

    It starts at once; `wait_ready()` waits. Its output goes to `log`, which is printed when the
    block raises. At the end of the block it is stopped.
    """

    def __init__(
        self,
        project: InstalledProject,
        *,
        env: Mapping[str, str],
        log: Path,
        command: str = "worker",
        arguments: Sequence[str] = (),
    ) -> None:
        """Start it. `command` is "worker" or "beat"; `arguments` follow it."""
        self.command = command
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # Two workers with one name would answer for each other.
        name = ["--hostname", f"{log.stem}@%h"] if command == "worker" else []
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(project.program("celery"), "-A", f"{project.slug}.celery", command),
                    *("--loglevel", LEVEL[command], *name, *arguments),
                ],
                cwd=project.folder,
                env=_variables(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The main process: the only one that gets signals from outside in production."""
        return self.process.pid

    def text(self) -> str:
        """Give the log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self, deadline_seconds: float = 30) -> None:
        """Wait until a worker consumes, or until beat has looked at its schedule.

        Raises RuntimeError with the log when it ends or takes longer.
        """
        self.wait_for(READY[self.command], deadline_seconds)

    def wait_for(self, pattern: str, deadline_seconds: float = 30) -> re.Match[str]:
        """Wait until the log matches, and give the match.

        Raises RuntimeError with the log when the process ends without it or takes longer.
        """

        def look() -> re.Match[str] | None:
            ended = self.process.poll() is not None  # asked before reading, to miss no last line
            match = re.search(pattern, self.text())
            if ended and not match:
                raise RuntimeError(f"{self.command} ended ({self.process.returncode}){self._tail()}")
            return match

        try:
            found: re.Match[str] = wait_until(look, deadline_seconds, f"{pattern!r} in {self.log}")
        except TimeoutError as error:
            raise RuntimeError(f"{error}{self._tail()}") from None
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        self.process.send_signal(number)

    def children(self) -> list[int]:
        """Give the ids of the processes that run the tasks, oldest first."""
        return child_pids(self.pid)

    def kill_child(self, pid: int | None = None) -> int:
        """End a child at once, as the kernel does when memory runs out: by default the oldest."""
        pid = pid or self.children()[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait(self, deadline_seconds: float = 30) -> int:
        """Wait until it has ended, and give its exit status: -15 means SIGTERM.

        Raises RuntimeError with the log when it takes longer; everything is killed then.
        """
        try:
            return self.process.wait(deadline_seconds)
        except subprocess.TimeoutExpired as error:
            self.kill()
            tail = self._tail()
            raise RuntimeError(f"still running after {deadline_seconds:g} s{tail}") from error

    def stop(self, deadline_seconds: float = 30) -> int:
        """Stop it as production does, by SIGTERM; running tasks are finished first.

        Gives the exit status, and raises as `wait` does. Does nothing to what has ended.
        """
        self.send(signal.SIGTERM)
        try:
            return self.wait(deadline_seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it and its children at once, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        """Use it until the end of the block."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Stop it or, when the block raised, print its log and kill it."""
        if kind is None:
            self.stop()
        else:
            print(f"--- {self.command}{self._tail()}")
            self.kill()

    def _tail(self, lines: int = 100) -> str:
        return "\n".join([f"; {self.log} ends:", *self.text().splitlines()[-lines:]])
