"""`copier update`, from earlier versions and to other answers: the result equals a fresh render plus the user's edits.

An update merges three trees: the old version with the old answers, the project, and the new version with the new
answers. Files that the user hasn't edited come from the third tree. test_render.py checks this tree, so a few updates
that write and delete whole files are enough here. The merges of files that users edit remain:

- Copier updates a project from each earlier version, with the default answers and with other answers.
- Copier updates one project through a set of answers in which all pairs of options occur, and back to the first. The
  set contains every license and every version of Python.
- Every change of one answer, from every combination, is computed on rendered trees. Copier makes each distinct merge
  that results, all of them in one update of a template that contains the files before and after.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from support.history import (
    FIRST_COMMIT,
    NEWEST,
    OLDEST,
    call_copier,
    commit_version,
    conflicts,
    difference,
    edit_like_a_user,
    edits_of_a_user,
    first_commit,
    git,
    read_answers,
    read_config,
    read_questions,
    reasons_to_ask_for_trust,
    release,
    released_tags,
    update,
)
from support.project import REPOSITORY, Project, commit_all, render, working_tree
from support.render import Renderer
from support.space import Combination, Template, changes_of_an_answer, covering_set, read_space

OTHER_ANSWERS = {"broker": "rabbitmq", "include_periodic_tasks": False, "include_docker": False, "ci": "gitlab"}

#: What is chosen before `broker`, and independent of it.
ABOUT_THE_PROJECT = ("license", "python_version")


def assert_is_a_fresh_render_with_the_edits_of_the_user(project: Project, source: Path, folder: Path) -> None:
    assert not conflicts(project.folder)
    fresh = render(folder, read_answers(project.folder), source=source, vcs_ref=NEWEST)
    edit_like_a_user(fresh)
    assert not difference(fresh.folder, project.folder)


# --- from earlier versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, OTHER_ANSWERS], ids=["defaults", "other answers"])
@pytest.mark.parametrize("origin", [FIRST_COMMIT, *released_tags()])
def test_an_update_gives_a_fresh_render_with_the_edits_of_the_user(
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

    assert_is_a_fresh_render_with_the_edits_of_the_user(project, template, tmp_path / "fresh")
    assert answers.items() <= read_answers(project.folder).items()


def test_a_shallow_clone_is_refused_with_a_solution(tmp_path: Path) -> None:
    commit_version(tmp_path / "origin", OLDEST)
    commit_version(tmp_path / "origin", NEWEST)
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{tmp_path}/origin", "shallow")
    with pytest.raises(RuntimeError, match=r"shallow clone.*git fetch --unshallow"):
        first_commit(tmp_path / "shallow")


def test_the_first_commit_is_the_one_that_added_copier_yml() -> None:
    commit = first_commit(REPOSITORY)
    assert git(REPOSITORY, "ls-tree", "--name-only", commit, "copier.yml")
    parents = git(REPOSITORY, "log", "-1", "--format=%P", commit).split()
    assert not any(git(REPOSITORY, "ls-tree", "--name-only", parent, "copier.yml") for parent in parents)


# --- to other answers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spaces:
    """All combinations of the options, and all combinations of the questions before them."""

    template: Template
    options: Sequence[Combination]
    about: Sequence[Combination]


@pytest.fixture(scope="module")
def spaces() -> Spaces:
    template = Template(working_tree())
    return Spaces(template, read_space(template), read_space(template, ABOUT_THE_PROJECT))


def walk(spaces: Spaces) -> list[dict[str, Any]]:
    """Return answers in which all pairs of options and all answers about the project occur, and the first again.

    So each possible answer is chosen and changed back at least once.
    """
    options, about = covering_set(spaces.options, strength=2), covering_set(spaces.about, strength=1)
    count = max(len(options), len(about))
    steps = [options[step % len(options)].answers | about[step % len(about)].answers for step in range(count)]
    return [*steps, steps[0]]


def test_the_walk_switches_every_answer_on_and_off(spaces: Spaces) -> None:
    every = set[tuple[str, str]]().union(*(_parts(each.answers) for each in (*spaces.options, *spaces.about)))
    steps = [_parts(answers) for answers in walk(spaces)]
    assert set().union(*(after - before for before, after in itertools.pairwise(steps))) == every
    assert set().union(*(before - after for before, after in itertools.pairwise(steps))) == every


def _parts(answers: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the answers, and each choice of those that are lists."""
    return {
        (name, repr(part))
        for name, value in answers.items()
        for part in (value if isinstance(value, list) and value else [value])
    }


def test_a_walk_through_all_answers_equals_fresh_renders(spaces: Spaces, tmp_path: Path) -> None:
    first, *others = walk(spaces)
    project = render(tmp_path / "project", first, source=release(), vcs_ref=NEWEST)
    edit_like_a_user(project)
    for number, answers in enumerate(others):
        commit_all(project.folder)
        update(project.folder, answers)
        assert answers.items() <= read_answers(project.folder).items()
        assert_is_a_fresh_render_with_the_edits_of_the_user(project, release(), tmp_path / f"fresh-{number}")


@dataclass(frozen=True)
class Merge:
    """A file that a user edits, in a project whose answers change."""

    path: str
    before: bytes
    after: bytes


def merges(spaces: Spaces, paths: Sequence[str]) -> dict[Merge, str]:
    """Return the distinct merges for changes of one answer, each with its first change."""
    found: dict[Merge, str] = {}
    for combinations in (spaces.options, spaces.about):
        renderer = Renderer(spaces.template, combinations)
        trees = {combination: renderer.render(combination).files for combination in combinations}
        for before, after in changes_of_an_answer(spaces.template, combinations):
            for path in paths:
                old, new = trees[before].get(path), trees[after].get(path)
                if old and new and old is not new:
                    found.setdefault(Merge(path, old.data, new.data), f"{before} → {after}")
    return found


def test_every_change_of_an_answer_keeps_the_edits_of_the_user(spaces: Spaces, tmp_path: Path) -> None:
    """This applies to files in both renders. If an option removes a file, its edits are lost."""
    edits = edits_of_a_user("my_service")
    todo = merges(spaces, [*edits])
    assert len(todo) > 20
    places = {merge: f"{number}/{merge.path}" for number, merge in enumerate(todo)}
    template, project = tmp_path / "template", tmp_path / "project"
    commit_static_template(template, {places[merge]: merge.before for merge in todo}, "v1.0.0")
    render(project, source=template, vcs_ref="v1.0.0")
    for merge, place in places.items():
        (project / place).write_text(edits[merge.path](merge.before.decode()))
    commit_all(project)

    commit_static_template(template, {places[merge]: merge.after for merge in todo}, "v2.0.0")
    update(project, version="v2.0.0")

    unmerged = conflicts(project)
    for merge, place in places.items():
        assert place not in unmerged, todo[merge]
        assert f"{place}.rej" not in unmerged, todo[merge]
        assert (project / place).read_text() == edits[merge.path](merge.after.decode()), todo[merge]


def commit_static_template(folder: Path, files: Mapping[str, bytes], tag: str) -> None:
    """Commit a template that renders these files unchanged."""
    config = {"_subdirectory": "template", "package_slug": {"type": "str", "default": "my_service"}}
    sources = {"copier.yml": yaml.safe_dump(config).encode()}
    sources["template/{{ _copier_conf.answers_file }}.jinja"] = b"{{ _copier_answers | to_nice_yaml }}"
    sources |= {f"template/{path}": data for path, data in files.items()}
    for path, data in sources.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    commit_all(folder, tag)


# --- conflicts ----------------------------------------------------------------------------------------------------


def change_template(template: Path, name: str, change: Callable[[str], str], tag: str) -> None:
    """Release a version of the template in which one file has changed."""
    path = template / name
    before = path.read_text(encoding="utf-8")
    path.write_text(change(before), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    commit_all(template, tag)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The working tree as v1.0.0, for tests that change it."""
    commit_version(tmp_path / "template", "v1.0.0")
    return tmp_path / "template"


def test_a_line_that_both_sides_changed_is_the_only_conflict(
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


def test_a_versioned_migration_asks_for_trust_only_if_an_update_passes_it(
    template: Path, old_project: Project, tmp_path: Path
) -> None:
    add_migration(template, VERSIONED)

    copied = call_copier("copy", "--defaults", "--vcs-ref=v2.0.0", template, "fresh", cwd=tmp_path)
    assert copied.returncode == 0, copied.stderr
    assert not (tmp_path / "fresh/migrated").exists()

    refused = call_copier("update", "--defaults", "--vcs-ref=v2.0.0", cwd=old_project.folder)
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


def test_a_migration_without_version_asks_for_trust_on_every_update(
    template: Path, old_project: Project
) -> None:
    assert not reasons_to_ask_for_trust(read_config(template))
    add_migration(template, UNVERSIONED)
    (reason,) = reasons_to_ask_for_trust(read_config(template))
    assert "no version" in reason
    with pytest.raises(copier.errors.UnsafeTemplateError):
        update(old_project.folder, version="v2.0.0")
