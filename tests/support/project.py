"""Render a project, install it, and run its workers and programs.

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
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import copier

from support import environment
from support.processes import child_pids
from support.servers import wait_until

REPOSITORY = Path(__file__).parents[2]
#: Projects that were installed for many tests. One that nobody has used for so many seconds is deleted.
KEPT, KEPT_SECONDS = Path.home() / ".cache" / "copier-celery-service" / "projects", 4 * 3600

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
    """A project and the virtual environment in which it is installed."""

    environment: Path

    def program(self, name: str) -> str:
        """Give the path of a program of the environment, such as `celery`."""
        return str(self.environment / "bin" / name)

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout_seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the project's folder, as a user with these variables does.

        Raises subprocess.TimeoutExpired when it takes too long.
        """
        return subprocess.run(
            [self.program(command[0]), *command[1:]],
            cwd=self.folder,
            env=environment.of_a_user(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def celery(
        self, *arguments: str, env: Mapping[str, str], timeout_seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `celery -A …` like `run`."""
        return self.run("celery", "-A", f"{self.slug}.celery", *arguments, env=env, timeout_seconds=timeout_seconds)

    def copy(self, folder: Path) -> "InstalledProject":
        """Copy the project to a folder in which a test may change it.

        The environment stays the same: Python, and `celery -A`, look in the working folder first.
        """
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(".venv"))
        return InstalledProject(folder=folder, slug=self.slug, environment=self.environment)


def install(
    project: Project, python: str | None = None, *, compiled: bool = False, add: Sequence[str] = ()
) -> InstalledProject:
    """Install a project with uv, as its users do, into a virtual environment of its own.

    `python` is a version or a path. The default is UV_PYTHON, or else the running Python. Installing takes a second.
    It takes longer if `compiled`, which saves time if a test starts many processes. `add` names further dependencies.

    Raises RuntimeError with uv's output.
    """
    python = python or os.environ.get("UV_PYTHON") or sys.executable
    installed = InstalledProject(folder=project.folder, slug=project.slug, environment=project.folder / ".venv")
    done = subprocess.run(
        [
            shutil.which("uv") or str(Path(sys.executable).with_name("uv")),
            *(["add", *add] if add else ["sync"]),
            *("--python", python),
        ],
        cwd=project.folder,
        env=environment.of_a_package_client({"UV_COMPILE_BYTECODE": "1"} if compiled else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"uv ended with status {done.returncode}:\n{done.stderr}")
    if compiled:  # uv leaves out what is editable
        installed.run("python", "-m", "compileall", "-q", project.slug, "runtime", timeout_seconds=300)
    return installed


def kept_project(
    answers: Mapping[str, Any],
    task_modules: Mapping[str, Path],
    *,
    extras: Sequence[str] = (),
    add: Sequence[str] = (),
    like: InstalledProject | None = None,
) -> InstalledProject:
    """Return a project with these answers, and with these modules in its `tasks/`.

    The first call renders and installs it, with these extras of our library and the packages in `add`. Then it is kept
    for other test processes and later runs. With `like`, it is only rendered and uses the environment of that project.
    Tests must not change it: see `InstalledProject.copy`.
    """
    python = os.environ.get("UV_PYTHON") or sys.executable
    installed = [list(extras), list(add), like and like.folder.name]
    parts = [str(REPOSITORY), os.path.realpath(python), dict(answers), *installed]
    key = hashlib.sha256(json.dumps(parts).encode())
    for name, path in [*_sources(), *sorted(task_modules.items())]:
        key.update(f"\0{name}\0".encode() + path.read_bytes())
    folder = KEPT / key.hexdigest()[:16]
    about = folder.with_suffix(".json")  # written when all is there
    with _locked(folder.with_suffix(".lock")):
        if not about.exists():
            shutil.rmtree(folder, ignore_errors=True)
            project = render(folder, answers)
            for name, path in task_modules.items():
                shutil.copy(path, folder / project.slug / "tasks" / f"{name}.py")
            if not like:
                settings = folder / "pyproject.toml"
                wanted = f"celery-service[{','.join(extras)}]"
                settings.write_text(re.sub(r"celery-service\[.*?\]", wanted, settings.read_text()))
                install(project, compiled=True, add=add)
            about.write_text(json.dumps({"slug": project.slug}))
        about.touch()
        slug = json.loads(about.read_text())["slug"]
    _delete_unused()
    return InstalledProject(folder=folder, slug=slug, environment=like.environment if like else folder / ".venv")


def _sources() -> list[tuple[str, Path]]:
    """Return the sources that determine the content of a rendered project, in a stable order."""
    folders = ("template", "includes")
    paths = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if "__pycache__" not in path.parts]
    return [(str(path), path) for path in sorted([REPOSITORY / "copier.yml", *paths]) if path.is_file()]


def _delete_unused() -> None:
    """Delete projects that no recent run has used."""
    for about in KEPT.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            if about.stat().st_mtime < time.time() - KEPT_SECONDS:
                about.unlink()
                shutil.rmtree(about.with_suffix(""), ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, because tests run in parallel processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- run --------------------------------------------------------------------------------------


def run_python(
    project: InstalledProject,
    code: str,
    env: Mapping[str, str] | None = None,
    *,
    timeout_seconds: float = 60,
) -> Any:
    """Run `code` in a new Python process in the project, and return its last line of output.

    That line is JSON; without any output the result is None. Raises RuntimeError with the output
    when the code fails, subprocess.TimeoutExpired when it takes too long.
    """
    done = subprocess.run(
        [project.program("python"), "-c", code],
        cwd=project.folder,
        env=environment.of_a_user(env),
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
        app: str = "",
    ) -> None:
        """Start it. `command` is such as "worker"; `arguments` follow it. `app` is the project's by default."""
        self.command = command
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # Two workers with one name would answer for each other.
        name = ["--hostname", f"{log.stem}@%h"] if command == "worker" else []
        level = ["--loglevel", LEVEL[command]] if command in LEVEL else []
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(project.program("celery"), "-A", app or f"{project.slug}.celery", command),
                    *(*level, *name, *arguments),
                ],
                cwd=project.folder,
                env=environment.of_a_user(env),
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
