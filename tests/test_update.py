"""`copier update`: from earlier versions and to other answers. What comes out is what a fresh render gives, plus what
the user did; nothing less, nothing more."""

import functools
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import copier
import pytest

from support.history import (
    FIRST_COMMIT,
    NEWEST,
    OLDEST,
    asked_questions,
    commit_version,
    conflicts,
    difference,
    edit_like_a_user,
    first_commit,
    git,
    read_answers,
    read_config,
    read_questions,
    reasons_to_ask_for_trust,
    release,
    released_tags,
    run_copier,
    update,
)
from support.project import REPOSITORY, Project, commit_all, render

OTHER_ANSWERS = {"broker": "rabbitmq", "include_periodic_tasks": False, "include_docker": False, "ci": "gitlab"}


class Renders:
    """Fresh renders of one version, with and without a user's edits; each is made once."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = source
        self.folder = folder
        self.plain = functools.cache(self._plain)
        self.edited = functools.cache(self._edited)

    def get(self, answers: Mapping[str, Any]) -> Project:
        """The edited one."""
        return self.edited(json.dumps(answers, sort_keys=True))

    def _plain(self, answers: str) -> Project:
        return render(self._new_folder(), json.loads(answers), source=self.source, vcs_ref=NEWEST)

    def _edited(self, answers: str) -> Project:
        project = copy_project(self.plain(answers), self._new_folder())
        edit_like_a_user(project)
        return project

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder)) / "project"


def copy_project(project: Project, folder: Path) -> Project:
    shutil.copytree(project.folder, folder)
    return Project(folder=folder, slug=project.slug)


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Renders:
    """Fresh renders of the working tree."""
    return Renders(release(), tmp_path_factory.mktemp("fresh"))


# --- from earlier versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, OTHER_ANSWERS], ids=["defaults", "other answers"])
@pytest.mark.parametrize("origin", [FIRST_COMMIT, *released_tags()])
def test_an_earlier_version_becomes_a_fresh_render_with_the_edits_of_the_user(
    origin: str, given: dict[str, Any], tmp_path: Path
) -> None:
    template, old = tmp_path / "template", OLDEST if origin == FIRST_COMMIT else origin
    commit_version(template, old, origin)
    known = read_questions(template)
    answers = {name: answer for name, answer in given.items() if name in known}
    project = render(tmp_path / "project", answers, source=template, vcs_ref=old)
    edit_like_a_user(project)
    commit_all(project.folder)

    commit_version(template, NEWEST)
    # Migrations may run between versions; that copying needs no trust is for test_questions.py to show.
    update(project.folder, trust=bool(read_config(template).get("_migrations")))

    assert not conflicts(project.folder)
    fresh = render(tmp_path / "fresh", read_answers(project.folder), source=template, vcs_ref=NEWEST)
    edit_like_a_user(fresh)
    assert not difference(fresh.folder, project.folder)
    assert answers.items() <= read_answers(project.folder).items()


def test_a_shallow_clone_is_refused_with_the_remedy(tmp_path: Path) -> None:
    commit_version(tmp_path / "origin", OLDEST)
    commit_version(tmp_path / "origin", NEWEST)
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{tmp_path}/origin", "shallow")
    with pytest.raises(RuntimeError, match=r"shallow clone.*git fetch --unshallow"):
        first_commit(tmp_path / "shallow")


def test_the_first_commit_is_the_one_that_brought_copier_yml() -> None:
    commit = first_commit(REPOSITORY)
    assert git(REPOSITORY, "ls-tree", "--name-only", commit, "copier.yml")
    parents = git(REPOSITORY, "log", "-1", "--format=%P", commit).split()
    assert not any(git(REPOSITORY, "ls-tree", "--name-only", parent, "copier.yml") for parent in parents)


# --- to other answers ---------------------------------------------------------------------------------------------


def values_of(about: Mapping[str, Any]) -> list[Any]:
    """The answers between which a question is switched; for several of many: none, each alone, all."""
    if about["type"] == "bool":
        return [True, False]
    choices = about.get("choices", [])
    values = list(choices.values() if isinstance(choices, dict) else choices)
    values = [value["value"] if isinstance(value, dict) else value for value in values]
    return [[], *([value] for value in values), values] if about.get("multiselect") else values


def circuit(count: int) -> list[int]:
    """A walk from 0 back to 0 that makes every change between `count` values exactly once (Hierholzer)."""
    unused = {here: [there for there in range(count) if there != here] for here in range(count)}
    stack, walk = [0], []
    while stack:
        if unused[stack[-1]]:
            stack.append(unused[stack[-1]].pop())
        else:
            walk.append(stack.pop())
    return walk[::-1]


SWITCHED = {name: values_of(about) for name, about in asked_questions(REPOSITORY).items()}
SWITCHED = {name: values for name, values in SWITCHED.items() if values}


def test_the_circuit_makes_every_change_once() -> None:
    for count in (1, 2, 5):
        walk = circuit(count)
        steps = list(itertools.pairwise(walk))
        assert sorted(steps) == [(here, there) for here in range(count) for there in range(count) if here != there]
        assert (walk[0], walk[-1]) == (0, 0)


@pytest.mark.parametrize("question", [*SWITCHED])
def test_every_change_of_an_answer_gives_a_fresh_render(question: str, tmp_path: Path, renders: Renders) -> None:
    values = SWITCHED[question]
    walk = [values[number] for number in circuit(len(values))]
    project = copy_project(renders.get({question: walk[0]}), tmp_path / "project")
    commit_all(project.folder)
    for before, after in itertools.pairwise(walk):
        update(project.folder, {question: after})
        answers = read_answers(project.folder)
        assert answers[question] == after
        assert not conflicts(project.folder), f"{question}: {before} → {after}"
        problem = difference(renders.get(answers).folder, project.folder)
        assert not problem, f"{question}: {before} → {after}\n{problem}"
        commit_all(project.folder)


# --- conflicts ----------------------------------------------------------------------------------------------------


def change_template(template: Path, name: str, change: Callable[[str], str], tag: str) -> None:
    """Release another version of the template, with one file changed."""
    path = template / name
    before = path.read_text(encoding="utf-8")
    path.write_text(change(before), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    commit_all(template, tag)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The working tree as v1.0.0, to be changed."""
    commit_version(tmp_path / "template", "v1.0.0")
    return tmp_path / "template"


def test_a_line_that_both_sides_changed_is_marked_where_it_stands_and_nothing_else(
    template: Path, tmp_path: Path
) -> None:
    project = render(tmp_path / "project", source=template, vcs_ref="v1.0.0")
    edit_like_a_user(project)  # bumps the version of the project, too
    commit_all(project.folder)
    change_template(
        template,
        "template/pyproject.toml.jinja",
        lambda text: text.replace('version = "0.1.0"', 'version = "1.0.0"'),
        "v2.0.0",
    )

    update(project.folder, version="v2.0.0")

    assert conflicts(project.folder) == {"pyproject.toml": 2}
    text = (project.folder / "pyproject.toml").read_text(encoding="utf-8")
    marked = text[text.index("<<<<<<<") : text.index(">>>>>>>")].splitlines()
    assert marked[1:] == ['version = "0.2.0"', "=======", 'version = "1.0.0"']
    changed = git(project.folder, "diff", "HEAD", "--name-only").split()
    assert sorted(changed) == [".copier-answers.yml", "pyproject.toml"]


# --- migrations ---------------------------------------------------------------------------------------------------

# As hooks/README.md shows it.
VERSIONED = """
_migrations:
  - version: v2.0.0
    command: ["{{ _copier_python }}", "{{ _copier_conf.src_path }}/hooks/v2.0.0_leave_a_mark.py"]
"""
UNVERSIONED = """
_migrations:
  - command: touch migrated
"""
HOOK = "import pathlib\npathlib.Path('migrated').touch()\n"


@pytest.fixture
def old_project(template: Path, tmp_path: Path) -> Project:
    project = render(tmp_path / "project", source=template, vcs_ref="v1.0.0")
    commit_all(project.folder)
    return project


def add_migration(template: Path, migration: str, tag: str = "v2.0.0") -> None:
    assert "_migrations" not in read_config(template), "write this test on the migration that there is now"
    (template / "hooks/v2.0.0_leave_a_mark.py").write_text(HOOK, encoding="utf-8")
    change_template(template, "copier.yml", lambda text: text + migration, tag)


def test_a_versioned_migration_asks_for_trust_when_an_update_passes_it_only(
    template: Path, old_project: Project, tmp_path: Path
) -> None:
    add_migration(template, VERSIONED)

    copied = run_copier("copy", "--defaults", "--vcs-ref=v2.0.0", template, "fresh", cwd=tmp_path)
    assert copied.returncode == 0, copied.stderr
    assert not (tmp_path / "fresh/migrated").exists()

    refused = run_copier("update", "--defaults", "--vcs-ref=v2.0.0", cwd=old_project.folder)
    assert refused.returncode == 4
    assert "--trust" in refused.stderr
    assert not git(old_project.folder, "status", "--porcelain")

    update(old_project.folder, version="v2.0.0", trust=True)
    assert (old_project.folder / "migrated").exists()
    (old_project.folder / "migrated").unlink()
    commit_all(old_project.folder)

    change_template(template, "template/Makefile.jinja", lambda text: text + "# newer\n", "v3.0.0")
    update(old_project.folder, version="v3.0.0")
    assert not (old_project.folder / "migrated").exists()
    assert "# newer" in (old_project.folder / "Makefile").read_text(encoding="utf-8")


def test_a_migration_without_version_asks_for_trust_on_every_update_so_the_policy_forbids_it(
    template: Path, old_project: Project
) -> None:
    assert not reasons_to_ask_for_trust(read_config(template))
    add_migration(template, UNVERSIONED)
    (reason,) = reasons_to_ask_for_trust(read_config(template))
    assert "no version" in reason
    with pytest.raises(copier.errors.UnsafeTemplateError):
        update(old_project.folder, version="v2.0.0")
