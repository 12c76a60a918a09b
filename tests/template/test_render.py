"""Checks of all combinations of options: the files that Copier would write are complete, clean and consistent.

A check takes one file or one tree, and yields a sentence for each problem. Each distinct content is checked once. The
checks themselves are tested at the end of this module, with wrong trees.
"""

import posixpath
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import copier
import pytest
import yaml

from support.checks import (
    FILE_CHECKS,
    OWNED,
    TREE_CHECKS,
    WORDS,
    Check,
    arrows_point_one_way,
    depends_on_the_library_only,
    has_a_plain_path,
    has_content,
    has_no_empty_folders,
    has_no_residue,
    has_no_scars,
    imports_are_declared,
    imports_resolve,
    links_resolve,
    options_not_chosen_are_not_mentioned,
    owners_are_named,
    parses,
    ruff_problems,
    settings_are_documented,
)
from support.render import File, Renderer, Tree, copy_template, read_tree
from support.space import Combination, Template, covering_set, read_space

# --- the space --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendering:
    """All combinations, rendered."""

    template: Template
    combinations: Sequence[Combination]
    trees: Sequence[Tree]
    #: Every distinct file, with the number of the first combination that has it.
    files: Mapping[File, int]


@pytest.fixture(scope="module")
def rendering(tmp_path_factory: pytest.TempPathFactory, summary: list[str]) -> Iterator[Rendering]:
    started = time.perf_counter()
    template = Template(copy_template(tmp_path_factory.mktemp("template")))
    combinations = read_space(template)
    renderer = Renderer(template, combinations)
    trees = [renderer.render(combination) for combination in combinations]
    files: dict[File, int] = {}
    for number, tree in enumerate(trees):
        for file in tree:
            files.setdefault(file, number)
    yield Rendering(template, combinations, trees, files)
    seconds = time.perf_counter() - started
    summary.append(f"render: {len(trees)} combinations, {len(files)} distinct files, {seconds:.1f} seconds")


def report(problems: Iterable[tuple[str, object]], limit: int = 30) -> None:
    """Fail with each distinct problem, the number of combinations that have it, and one of them."""
    found: dict[str, list[object]] = {}
    for problem, where in problems:
        found.setdefault(problem, []).append(where)
    lines = [f"{problem} [{len(where)} times, first: {where[0]}]" for problem, where in found.items()]
    if lines:
        pytest.fail("\n".join([f"{len(lines)} problems", *lines[:limit]]), pytrace=False)


@pytest.mark.parametrize("check", FILE_CHECKS, ids=lambda check: check.__name__)
def test_every_file(check: Check, rendering: Rendering) -> None:
    report(
        (f"{file.path} {problem} ({file.source})", rendering.combinations[number])
        for file, number in rendering.files.items()
        for problem in check(file)
    )


@pytest.mark.parametrize("check", TREE_CHECKS, ids=lambda check: check.__name__)
def test_every_tree(check: Check, rendering: Rendering) -> None:
    report(
        (problem, combination)
        for tree, combination in zip(rendering.trees, rendering.combinations, strict=True)
        for problem in check(tree)
    )


def test_ruff(rendering: Rendering, tmp_path: Path) -> None:
    labelled = ((tree, str(rendering.combinations[number])) for number, tree in enumerate(rendering.trees))
    report((problem, "above") for problem in ruff_problems(labelled, tmp_path))


def test_only_the_answers_file_depends_on_the_copy(rendering: Rendering) -> None:
    """Other files must not: they would change on every update and escape the checks of contents."""
    assert {file.path for file in rendering.files if file.volatile} == {rendering.template.answers_file}


# --- equal to Copier --------------------------------------------------------------------------------------------------


def differences(expected: Tree, actual: Tree) -> Iterator[str]:
    yield from (f"{path}/ is in one only" for path in expected.folders ^ actual.folders)
    yield from (f"{path} is in one only" for path in expected.files.keys() ^ actual.files.keys())
    for path in expected.files.keys() & actual.files.keys():
        one, other = expected.files[path], actual.files[path]
        if one.executable != other.executable:
            yield f"{path} is executable in one only"
        if one.data != other.data and not one.volatile:
            yield f"{path} differs"


def copy_with_copier(template: Template, combination: Combination, target: Path) -> Tree:
    # Not unsafe: the template asks for no trust.
    copier.run_copy(str(template.root), target, data=combination.answers, defaults=True, quiet=True, unsafe=False)
    return read_tree(target)


def answers_differ(template: Template, combination: Combination, tree: Tree) -> Iterator[str]:
    answers = yaml.safe_load(tree.files[template.answers_file].data)
    if {key: value for key, value in answers.items() if not key.startswith("_")} != combination.stored:
        yield f"{template.answers_file} holds other answers than {combination.stored}"


def test_the_trees_are_what_copier_writes(rendering: Rendering, tmp_path: Path) -> None:
    """Check a set of combinations in which all triples of answers occur."""
    rendered = dict(zip(rendering.combinations, rendering.trees, strict=True))
    for number, combination in enumerate(covering_set(rendering.combinations, strength=3)):
        written = copy_with_copier(rendering.template, combination, tmp_path / str(number))
        assert not list(differences(rendered[combination], written)), combination
        assert not list(answers_differ(rendering.template, combination, written)), combination


# --- the checks find what they look for -------------------------------------------------------------------------------

SLUG = "shop"
PYPROJECT = f"""\
# {OWNED}
[project]
requires-python = ">=3.11"
dependencies = ["celery-service[redis]"]
[dependency-groups]
dev = ["pytest"]
[tool.pytest]
[tool.ruff.lint]
select = ["F", "I"]
"""
LIBRARY = f"""\
# {OWNED}
[project]
dependencies = ["celery[redis]>=5.7"]
[project.optional-dependencies]
redis = ["hiredis"]
sqlalchemy = ["sqlalchemy"]
"""
#: A project that is right; each mutation spoils one thing.
SOUND = {
    "pyproject.toml": PYPROJECT,
    "README.md": "[the tasks](shop/tasks/mail.py)\n",
    ".env.example": f"# {OWNED}\nSMTP_HOST=localhost\n# CELERY_BROKER_URL=\n# DEAD_LETTERS_MAX_COUNT=1\n",
    "runtime/pyproject.toml": LIBRARY,
    "runtime/README.md": f"# The library\n\n{OWNED}.\n",
    "runtime/celery_service/__init__.py": "def install(): ...\n",
    "runtime/celery_service/store.py": """\
class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="dead_letters_")
    max_count: int
""",
    "runtime/celery_service/database.py": """\
class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="database_")
    url: str
""",
    "shop/__init__.py": "",
    "shop/celery.py": "from celery import Celery\nfrom celery_service import install\n\ncelery = Celery()\n",
    "shop/settings.py": "class Settings(BaseSettings):\n    smtp_host: str\n",
    "shop/tasks/__init__.py": "",
    "shop/tasks/mail.py": "from shop.celery import celery\n",
    "shop/services/__init__.py": "",
    "tests/test_mail.py": "import pytest\n\nfrom shop.tasks import mail\n",
}
CONTEXT = {**dict.fromkeys(WORDS, False), "use_redis": True}


def mutated(changes: Mapping[str, str | None]) -> Tree:
    """Return the correct project with files replaced, added or, for None, removed."""
    texts = {path: text for path, text in {**SOUND, **changes}.items() if text is not None}
    tree = Tree.of(texts, package_slug=SLUG, **CONTEXT)
    removed = {posixpath.dirname(path) for path, text in changes.items() if text is None}
    return Tree(tree.files, tree.folders | removed - {""}, tree.context)


@pytest.mark.parametrize(
    ("check", "path", "text", "problem"),
    [
        (has_a_plain_path, "a b.md", "", "odd characters"),
        (has_a_plain_path, "docs/{x}.md", "", "odd characters"),
        (has_no_residue, "a.md", "Run {{ package_slug }}\n", "holds Jinja"),
        (has_no_residue, "a.md", "{% if x %}\n", "holds Jinja"),
        (has_content, "a.md", "\n", "is empty"),
        (has_no_scars, "a.md", "no newline", "one newline"),
        (has_no_scars, "a.md", "two\n\n", "one newline"),
        (has_no_scars, "a.md", "\nblank\n", "starts with"),
        (has_no_scars, "a.md", "a\n\n\nb\n", "in a row"),
        (has_no_scars, "a.py", "a\n\n\n\nb\n", "in a row"),
        (has_no_scars, "a.md", "blanks  \n", "blanks at the end"),
        (has_no_scars, "a.toml", "a = [\n\n  1,\n]\n", "inside a bracket"),
        (has_no_scars, "a.toml", "a = [\n  1,\n\n]\n", "inside a bracket"),
        (parses, "a.py", "def\n", "doesn't parse"),
        (parses, "a.toml", "a = \n", "doesn't parse"),
        (parses, "a.yaml", "a: [1\n", "doesn't parse"),
        (parses, "a.yaml", "a: *b\n", "doesn't parse"),
        (parses, "a.yml", "a: 1\na: 2\n", "same key twice"),
        (parses, "a.json", "{,}", "doesn't parse"),
        (parses, "Makefile", "help:\nnot a rule\n", "doesn't parse"),
        (parses, "a.sh", "if\n", "doesn't parse"),
        (parses, "a.xyz", "?", "can't parse"),
    ],
)
def test_file_checks_fail(check: Check, path: str, text: str, problem: str) -> None:
    assert [found for found in check(File(path, text.encode())) if problem in found]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("ci.yml", "x: ${{ github.ref }}\n"),
        ("a.py", "a = 1\n\n\nb = 2\n"),
        ("a.yaml", "a: &a {x: 1}\nb: {<<: *a}\n---\nc: 1\n"),
        ("Makefile", "help: ## Help\n\t@echo help\n"),
        ("shop/__init__.py", ""),
    ],
)
def test_file_checks_pass(path: str, text: str) -> None:
    assert not [problem for check in FILE_CHECKS for problem in check(File(path, text.encode()))]


@pytest.mark.parametrize("check", TREE_CHECKS, ids=lambda check: check.__name__)
def test_tree_checks_pass(check: Check) -> None:
    assert not list(check(mutated({})))


@pytest.mark.parametrize(
    ("check", "changes", "problem"),
    [
        (has_no_empty_folders, {"shop/services/__init__.py": None}, "shop/services/ is empty"),
        (links_resolve, {"README.md": "[gone](docs/gone.md)\n"}, "links to docs/gone.md"),
        (imports_resolve, {"shop/tasks/mail.py": "from shop.services.gone import x\n"}, "isn't there"),
        (imports_resolve, {"shop/tasks/mail.py": "from ..services import gone\n"}, "doesn't have it"),
        (imports_resolve, {"shop/tasks/mail.py": "from celery_service.gone import x\n"}, "isn't there"),
        (imports_resolve, {"shop/tasks/mail.py": "from celery_service import gone\n"}, "doesn't have it"),
        (imports_resolve, {"tests/test_mail.py": "from shop.celery import gone\n"}, "doesn't have it"),
        (
            depends_on_the_library_only,
            {"pyproject.toml": PYPROJECT.replace('"celery-service[redis]"', '"celery-service[redis]", "celery"')},
            "celery is declared beside the library",
        ),
        (
            depends_on_the_library_only,
            {"pyproject.toml": PYPROJECT.replace('"celery-service[redis]"', "")},
            "celery-service is not declared",
        ),
        (
            depends_on_the_library_only,
            {"pyproject.toml": PYPROJECT.replace("[redis]", "")},
            "the extra redis is not asked for",
        ),
        (
            depends_on_the_library_only,
            {"pyproject.toml": PYPROJECT.replace("[redis]", "[redis,sqlalchemy]")},
            "the extra sqlalchemy is asked for, but wasn't chosen",
        ),
        (
            depends_on_the_library_only,
            {"runtime/pyproject.toml": LIBRARY + 'kafka = ["confluent-kafka"]\n'},
            "no option asks for the extra kafka",
        ),
        (imports_are_declared, {"shop/celery.py": "import httpx\n"}, "httpx is imported but not declared for the"),
        (imports_are_declared, {"shop/celery.py": "import sqlalchemy\n"}, "sqlalchemy is imported but not declared"),
        (imports_are_declared, {"shop/celery.py": "import pytest\n"}, "pytest is imported but not declared for the"),
        (imports_are_declared, {"tests/test_mail.py": "import httpx\n"}, "httpx is imported but not declared"),
        (
            imports_are_declared,
            {"pyproject.toml": PYPROJECT.replace('"pytest"', '"pytest", "tox"')},
            "tox is declared for development",
        ),
        (
            imports_are_declared,
            {"pyproject.toml": PYPROJECT.replace('"pytest"', '"pytest", "pytest-redis"')},
            "pytest-redis is declared for development",
        ),
        (arrows_point_one_way, {"shop/services/a.py": "from ..celery import celery\n"}, "services must not"),
        (arrows_point_one_way, {"shop/services/a.py": "from shop.tasks import mail\n"}, "services must not"),
        (arrows_point_one_way, {"shop/models/a.py": "from shop.services import a\n"}, "models must not"),
        (arrows_point_one_way, {"shop/celery.py": "from shop import services\n"}, "celery must not"),
        (arrows_point_one_way, {"shop/celery.py": "from shop.settings import settings\n"}, "celery must not"),
        (arrows_point_one_way, {"shop/settings.py": "import tests\n"}, "settings must not"),
        (arrows_point_one_way, {"shop/extra.py": ""}, "no part of the package"),
        (options_not_chosen_are_not_mentioned, {"README.md": "or RabbitMQ\n"}, "use_rabbitmq"),
        (options_not_chosen_are_not_mentioned, {"README.md": "starts beat\n"}, "use_beat"),
        (options_not_chosen_are_not_mentioned, {"README.md": "or `make up`\n"}, "use_docker"),
        (options_not_chosen_are_not_mentioned, {"README.md": "it is in the database\n"}, "use_db"),
        (options_not_chosen_are_not_mentioned, {".env.example": "DATABASE_URL=\n"}, "use_db"),
        (options_not_chosen_are_not_mentioned, {"README.md": "it is in the cache\n"}, "use_cache"),
        (options_not_chosen_are_not_mentioned, {".env.example": "CACHE_URL=\n"}, "use_cache"),
        (options_not_chosen_are_not_mentioned, {".github/x.yml": "a: 1\n"}, "use_github"),
        (options_not_chosen_are_not_mentioned, {".gitlab-ci.yml": "a: 1\n"}, "use_gitlab"),
        (settings_are_documented, {".env.example": "\n"}, "SMTP_HOST is read"),
        (settings_are_documented, {".env.example": "SMTP_HOST=\n# OLD=1\n"}, "OLD is in .env.example"),
        (settings_are_documented, {"compose.yaml": "a: ${REDIS_PORT:-1}\n"}, "REDIS_PORT is read"),
        (settings_are_documented, {".env.example": "SMTP_HOST=\n"}, "DEAD_LETTERS_MAX_COUNT is read"),
        (
            settings_are_documented,
            {".env.example": "SMTP_HOST=\nDEAD_LETTERS_MAX_COUNT=\nDATABASE_URL=\n"},
            "DATABASE_URL is in .env.example",
        ),
        (owners_are_named, {"runtime/pyproject.toml": "a = 1\n"}, "doesn't say"),
    ],
)
def test_tree_checks_fail(check: Check, changes: dict[str, str | None], problem: str) -> None:
    assert [found for found in check(mutated(changes)) if problem in found]


def test_a_fixture_of_a_plugin_counts_as_its_use() -> None:
    changes = {
        "pyproject.toml": PYPROJECT.replace('"pytest"', '"pytest", "pytest-redis"'),
        "tests/conftest.py": "import pytest\n\n\ndef url(redis_proc): ...\n",
    }
    assert not list(imports_are_declared(mutated(changes)))


def test_the_library_may_mention_options_that_are_not_chosen() -> None:
    changes = {"runtime/celery_service/__init__.py": "def install(): ...  # of RabbitMQ\n"}
    assert not list(options_not_chosen_are_not_mentioned(mutated(changes)))


def test_a_late_import_of_services_is_allowed_in_setup_caches_only() -> None:
    code = "def {}():\n    from shop.services.cache import configure_caches\n"
    assert not list(arrows_point_one_way(mutated({"shop/celery.py": code.format("setup_caches")})))
    assert list(arrows_point_one_way(mutated({"shop/celery.py": code.format("other")})))


def test_ruff_problems_are_found_in_every_variant(tmp_path: Path) -> None:
    """Both contents of one path are checked with the project's rules, and reported separately."""
    variants = [mutated({"shop/tasks/mail.py": text}) for text in ("import os\n", "a  =  1\n", "b = 1\n")]
    labelled = [(tree, f"variant {number}") for number, tree in enumerate(variants)]
    problems = [problem for problem in ruff_problems(labelled, tmp_path) if problem.startswith("shop/tasks/mail.py")]
    assert [problem for problem in problems if "F401" in problem and "variant 0" in problem]
    assert [problem for problem in problems if "unformatted" in problem and "variant 1" in problem]
    assert not [problem for problem in problems if "variant 2" in problem]


@pytest.mark.parametrize(
    ("actual", "difference"),
    [
        (Tree.of({"a": "other\n"}), "a differs"),
        (Tree.of({"a": "text\n", "b": ""}), "b is in one only"),
        (Tree.of({"a": "text\n", "c/d": ""}), "c/ is in one only"),
        (Tree({"a": File("a", b"text\n", executable=True)}), "executable"),
    ],
)
def test_differences_are_found(actual: Tree, difference: str) -> None:
    assert [found for found in differences(Tree.of({"a": "text\n"}), actual) if difference in found]
