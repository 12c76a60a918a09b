"""The template as users meet it: released versions in git, Copier's command line, projects that have been edited."""

import contextlib
import difflib
import functools
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import copier
import plumbum
import pytest
import yaml
from copier._cli import CopierApp

from support.environment import of_a_user
from support.project import REPOSITORY, Project, commit_all, working_tree
from support.render import copy_template, read_tree

FIRST_COMMIT = "first commit"
#: Lower and higher than every version that is ever released.
OLDEST, NEWEST = "v0.0.1", "v999.0.0"
ANSWERS_FILE = ".copier-answers.yml"


# --- versions -----------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str | Path) -> str:
    """Run git and give its output. Raises subprocess.CalledProcessError."""
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def released_tags(repository: Path = REPOSITORY) -> list[str]:
    """The tags that can render a project, oldest first. None where there is no git."""
    try:
        tags = git(repository, "tag", "--list", "v*", "--sort=version:refname").split()
    except (OSError, subprocess.CalledProcessError):
        return []
    return [tag for tag in tags if git(repository, "ls-tree", "--name-only", tag, "copier.yml")]


def first_commit(repository: Path = REPOSITORY) -> str:
    """The first commit that has a copier.yml. Raises RuntimeError when the clone doesn't go back that far."""
    if git(repository, "rev-parse", "--is-shallow-repository") == "true":
        raise RuntimeError(f"{repository} is a shallow clone, without its first commit: git fetch --unshallow --tags")
    commits = git(repository, "log", "--reverse", "--diff-filter=A", "--format=%H", "--", "copier.yml").split()
    if not commits:
        raise RuntimeError(f"no commit of {repository} has a copier.yml")
    return commits[0]


def commit_version(repository: Path, tag: str, origin: str | None = None) -> None:
    """Commit the template as it was at `origin`, a tag or FIRST_COMMIT, or else the working tree, under `tag`.

    Of the working tree, only what Copier reads.
    """
    if (repository / ".git").exists():
        git(repository, "rm", "-r", "-q", ".")
    repository.mkdir(parents=True, exist_ok=True)
    if origin is None:
        copy_template(repository)
    else:
        _extract(first_commit() if origin == FIRST_COMMIT else origin, repository)
    commit_all(repository, tag)


def _extract(commit: str, folder: Path) -> None:
    archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=folder, check=True, input=archive.stdout)


@functools.cache
def release() -> Path:
    """The working tree as a release, in a clean repository with nothing but that version; made once."""
    temporary = tempfile.TemporaryDirectory(prefix="release-")
    _to_delete_at_exit.append(temporary)
    repository = Path(temporary.name) / "copier-celery-service"
    commit_version(repository, NEWEST)
    return repository


_to_delete_at_exit: list[tempfile.TemporaryDirectory[str]] = []


# --- copier.yml ---------------------------------------------------------------------------------------------------


def read_config(template: Path | None = None) -> dict[str, Any]:
    """Read copier.yml."""
    text = ((template or working_tree()) / "copier.yml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def read_questions(template: Path | None = None) -> dict[str, dict[str, Any]]:
    """Every question, the hidden ones included."""
    return {name: about for name, about in read_config(template).items() if not name.startswith("_")}


def asked_questions(template: Path | None = None) -> dict[str, dict[str, Any]]:
    """The questions that are not derived from the answers to others."""
    return {name: about for name, about in read_questions(template).items() if about.get("when") is not False}


def reasons_to_ask_for_trust(config: Mapping[str, Any]) -> list[str]:
    """Whatever makes `copier copy`, or every `copier update`, demand --trust: the template must have none of it."""
    reasons = [f"{key} is set" for key in ("_tasks", "_jinja_extensions") if key in config]
    for number, migration in enumerate(config.get("_migrations", []), start=1):
        if not isinstance(migration, dict) or "version" not in migration:
            reasons.append(f"migration {number} has no version, so it runs on every update: {migration}")
    return reasons


# --- projects -----------------------------------------------------------------------------------------------------


def call_copier(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call Copier's command line in this process: one of its own takes a second to start."""
    command = ["copier", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plumbum.colors, "use_color", 0)
        with plumbum.local.cwd(cwd), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            _, status = CopierApp.run(command, exit=False)
    return subprocess.CompletedProcess(command, status, stdout.getvalue(), stderr.getvalue())


def run_copier(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Copier's command line in a process of its own, without anybody at the keyboard."""
    return subprocess.run(
        [sys.executable, "-m", "copier", *arguments],
        cwd=cwd,
        env=of_a_user(variables_of_copier()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def variables_of_copier() -> dict[str, str]:
    """The variables that keep a developer's own settings out of the tests."""
    return {name: value for name, value in os.environ.items() if name.startswith("COPIER_")}


def read_answers(folder: Path) -> dict[str, Any]:
    """The stored answers, without what Copier notes about itself."""
    stored: dict[str, Any] = yaml.safe_load((folder / ANSWERS_FILE).read_text(encoding="utf-8"))
    return {name: answer for name, answer in stored.items() if not name.startswith("_")}


def update(
    project: Path, answers: Mapping[str, Any] | None = None, version: str = NEWEST, *, trust: bool = False
) -> None:
    """Run `copier update`, with new answers if there are any. The project must have no uncommitted changes."""
    with copier.run_update(
        project,
        data=dict(answers or {}),
        vcs_ref=version,
        defaults=True,
        overwrite=True,
        quiet=True,
        unsafe=trust,
    ):
        pass


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file, and every folder as None, less git's own."""
    tree = read_tree(folder)
    found: dict[str, bytes | None] = {file.path + ("*" if file.executable else ""): file.data for file in tree}
    found |= dict.fromkeys(tree.folders)
    return {path: data for path, data in found.items() if path != ".git" and not path.startswith(".git/")}


def difference(expected: Path, actual: Path) -> str:
    """Return the differences of two folders as text; "" if there are none."""
    wanted, found = contents(expected), contents(actual)
    lines = [f"missing: {path}" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"unexpected: {path}" for path in sorted(found.keys() - wanted.keys())]
    for path in sorted(wanted.keys() & found.keys()):
        if wanted[path] != found[path]:
            before, after = ((each[path] or b"").decode(errors="replace").splitlines() for each in (wanted, found))
            lines += difflib.unified_diff(before, after, f"expected/{path}", f"actual/{path}", lineterm="", n=1)
    return "\n".join(lines)


def conflicts(folder: Path) -> dict[str, int]:
    """The files that an update left unmerged: how many conflict markers each has, 0 for a reject file."""
    found = {}
    for path, data in contents(folder).items():
        markers = len(re.findall(rb"^(?:<{7} |>{7} )", data or b"", re.MULTILINE))
        if markers or path.endswith(".rej"):
            found[path] = markers
    return found


# --- what users do ------------------------------------------------------------------------------------------------

TASK = '''

@celery.task
def send_newsletter(to: str) -> None:
    """Written by the user."""
    send_email.delay(to, "News", "Nothing new.\\n")
'''

TEST = """

def test_of_the_user() -> None:
    assert send_email.name.endswith("send_email")
"""

NEW_FILE = '"""Written by the user."""\n'


def edits_of_a_user(slug: str) -> dict[str, Callable[[str], str]]:
    """The files of the template that a user changes, and how. Raises LookupError where the place isn't there."""

    def edit_pyproject(text: str) -> str:
        text = _below("# yours below this line", '    "httpx>=0.28",')(text)
        return _replacing('version = "0.1.0"', 'version = "0.2.0"')(text)

    return {
        f"{slug}/tasks/email.py": lambda text: text + TASK,
        "tests/tasks/test_email.py": lambda text: text + TEST,
        f"{slug}/settings.py": _below("--- yours", "    newsletter_size: int = 10"),
        "pyproject.toml": edit_pyproject,
    }


def edit_like_a_user(project: Project) -> None:
    """Change a project as its owner does: change files, add some, delete examples.

    Raises LookupError when the place for an edit is not there.
    """
    for path, edit in edits_of_a_user(project.slug).items():
        file = project.folder / path
        file.write_text(edit(file.read_text(encoding="utf-8")), encoding="utf-8")
    (project.folder / project.slug / "tasks/newsletter.py").write_text(NEW_FILE, encoding="utf-8")
    (project.folder / "NOTES.md").write_text("Ours.\n", encoding="utf-8")
    for example in (f"{project.slug}/tasks/reports.py", "tests/tasks/test_reports.py"):
        (project.folder / example).unlink()


def _below(anchor: str, line: str) -> Callable[[str], str]:
    """Add a line under the first one that holds the anchor."""

    def change(text: str) -> str:
        lines = text.splitlines()
        try:
            number = next(number for number, each in enumerate(lines) if anchor in each)
        except StopIteration:
            raise LookupError(f"no line with {anchor!r}") from None
        return "\n".join([*lines[: number + 1], line, *lines[number + 1 :], ""])

    return change


def _replacing(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        if old not in text:
            raise LookupError(f"no {old!r}")
        return text.replace(old, new, 1)

    return change
