"""Checks of the library in `template/runtime/`. It is the same in every project, so it is checked once, in place.

tests/runtime/ and tests/behaviour/ test its behaviour, and test_render.py checks it as a part of projects.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import pytest

from support.checks import PROVIDED_BY, brought_by, says_its_owner
from support.render import File, Tree, copy_template, read_tree
from support.sources import (
    LIBRARY,
    LIBRARY_PACKAGE,
    Dependencies,
    Import,
    bound_names,
    dependencies,
    imports,
    module_of,
)

#: The longest that a file of the library may be.
MOST_LINES = 300
#: The modules that need an extra: all others can be imported without any.
WITH_EXTRAS = {
    **{
        f"celery_service.api.{module}": {"fastapi"}
        for module in (
            *("app", "guard", "health", "openapi", "ops", "pages", "problems", "routes", "service", "streams"),
            *("tasks", "threads"),
        )
    },
    "celery_service.brokers.rabbitmq.transport": {"rabbitmq"},
    "celery_service.data.backends": {"aiocache"},
    "celery_service.data.cache": {"aiocache"},
    "celery_service.data.database": {"sqlalchemy"},
    "celery_service.data.schema": {"sqlalchemy"},
    "celery_service.data.types": {"sqlalchemy"},
    "celery_service.data.wait": {"sqlalchemy"},
    "celery_service.monitoring.opentelemetry": {"opentelemetry"},
    "celery_service.monitoring.opentelemetry.export": {"opentelemetry"},
    "celery_service.monitoring.opentelemetry.libraries": {"opentelemetry"},
    "celery_service.monitoring.opentelemetry.provider": {"opentelemetry"},
    "celery_service.monitoring.opentelemetry.sampling": {"opentelemetry"},
    "celery_service.monitoring.opentelemetry.settings": {"opentelemetry"},
    "celery_service.monitoring.opentelemetry.spans": {"opentelemetry"},
    "celery_service.monitoring.sentry.sdk": {"sentry"},
    **{
        f"celery_service.monitoring.prometheus.{name}": {"prometheus"}
        for name in ("beat", "broker", "requests", "server", "worker")
    },
}
#: Declared although nothing imports it, and why.
NOT_IMPORTED = {
    "aiosqlite": "SQLAlchemy's driver for SQLite, by the name in a URL",
    "psycopg": "SQLAlchemy's driver for PostgreSQL, by the name in a URL",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The library, with the paths that it has in a project."""
    template = copy_template(tmp_path_factory.mktemp("library")) / "template"
    return Tree({path: file for path, file in read_tree(template).files.items() if path.startswith(LIBRARY)})


def modules_of(library: Tree) -> dict[str, File]:
    return {module_of(file.path): file for file in library if file.suffix == ".py"}


# --- files ------------------------------------------------------------------------------------------------------------


def unfit_as_static(file: File) -> Iterator[str]:
    if re.search(r"[{}]|\.jinja$", file.path):
        yield f"{file.path} has the name of a template"
    for number, line in enumerate(file.text.splitlines(), 1):
        if re.search(r"\{\{|\{%|\{#", line):
            yield f"{file.path}:{number} would be Jinja in a template: {line.strip()}"


def test_nothing_in_the_library_is_jinja(library: Tree) -> None:
    """So the library can be edited without regard to Jinja, and imported in place."""
    assert len(library.files) > 20
    assert [problem for file in library for problem in unfit_as_static(file)] == []


def test_the_files_of_the_library_are_short(library: Tree, summary: list[str]) -> None:
    lines = {file.path: len(file.text.splitlines()) for file in library}
    longest = max(lines, key=lines.__getitem__)
    summary.append(
        f"{LIBRARY}: {sum(lines.values())} lines, at most {lines[longest]} in a file, {longest} (limit {MOST_LINES})"
    )
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_the_library_names_its_owner(library: Tree) -> None:
    assert [path for path in ("README.md", "pyproject.toml") if not says_its_owner(library.files[LIBRARY + path])] == []


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("runtime/a.py.jinja", "", "the name of a template"),
        ("runtime/{{ x }}.py", "", "the name of a template"),
        ("runtime/a.py", "a = 1\n{% if x %}\n", "runtime/a.py:2 would be Jinja"),
        ("runtime/a.py", 'f"{{x}}"\n', "runtime/a.py:1 would be Jinja"),
        ("runtime/a.md", "{# x #}\n", "runtime/a.md:1 would be Jinja"),
    ],
)
def test_jinja_is_found(path: str, text: str, problem: str) -> None:
    assert [found for found in unfit_as_static(File(path, text.encode())) if problem in found]


# --- imports ----------------------------------------------------------------------------------------------------------


def unresolved(modules: Mapping[str, File]) -> Iterator[str]:
    for module, file in modules.items():
        for target, name, _ in imports(file):
            if target.partition(".")[0] != LIBRARY_PACKAGE:
                continue
            if target not in modules:
                yield f"{module} imports {target}, which isn't there"
            elif name and f"{target}.{name}" not in modules and name not in bound_names(modules[target]):
                yield f"{module} imports {name} from {target}, which doesn't have it"


def test_the_imports_of_the_library_resolve(library: Tree) -> None:
    """tests/runtime/ tests imports of other packages."""
    assert list(unresolved(modules_of(library))) == []


def outside(module: Import) -> str | None:
    """Return the package of an import, or None for the library and the standard library."""
    top = module.module.partition(".")[0]
    return None if top in sys.stdlib_module_names or top == LIBRARY_PACKAGE else top


def test_the_library_imports_only_what_it_declares(library: Tree) -> None:
    """The library imports nothing of the project."""
    declared = dependencies(library.files[f"{LIBRARY}pyproject.toml"])
    available = declared.runtime.keys() | set().union(*declared.optional.values())
    imported = {outside(each) for file in modules_of(library).values() for each in imports(file)} - {None}
    brought = {package: brought_by(package, available) for package in imported if package}
    assert {package for package, names in brought.items() if not names} == set()
    # Kombu comes with Celery, but is declared, too, for its bound.
    used = set().union(*brought.values()) | {name for name in PROVIDED_BY if name in imported}
    assert available - used == NOT_IMPORTED.keys()


def extras_needed(modules: Mapping[str, File], declared: Dependencies) -> dict[str, set[str]]:
    """Return the extras that each module needs to be imported."""

    def extras_of(package: str) -> set[str]:
        if brought_by(package, declared.runtime):
            return set()
        return {extra for extra, names in declared.optional.items() if brought_by(package, names)}

    def at_import(module: str) -> Sequence[Import]:
        return [each for each in imports(modules[module]) if not each.function]

    @cache
    def reached_from(module: str) -> frozenset[str]:
        """Return the modules that are imported with this one, including its parent packages."""
        found, pending = set[str](), {module}
        while pending:
            name = pending.pop()
            found.add(name)
            targets = {name.rpartition(".")[0]}
            for each in at_import(name):
                targets |= {each.module, f"{each.module}.{each.name}"}
            pending |= (targets & modules.keys()) - found
        return frozenset(found)

    needed = {
        module: set().union(
            *(
                extras_of(package)
                for reached in reached_from(module)
                for each in at_import(reached)
                if (package := outside(each))
            )
        )
        for module in modules
    }
    return {module: extras for module, extras in needed.items() if extras}


def test_only_these_modules_need_an_extra(library: Tree) -> None:
    """Most tests run with all extras installed and wouldn't notice a missing one."""
    declared = dependencies(library.files[f"{LIBRARY}pyproject.toml"])
    assert extras_needed(modules_of(library), declared) == WITH_EXTRAS


PYPROJECT = """\
[project]
dependencies = ["celery"]
[project.optional-dependencies]
sqlalchemy = ["sqlalchemy[asyncio]"]
"""


def test_a_module_that_needs_an_extra_is_found() -> None:
    texts = {
        "__init__.py": "",
        "direct.py": "from sqlalchemy.orm import Session\n",
        "by/__init__.py": "from celery_service import direct\n",
        "by/package.py": "import celery\n",
        "late.py": "def f():\n    import sqlalchemy\n",
        "for_types.py": "if TYPE_CHECKING:\n    import sqlalchemy\n",
    }
    tree = Tree.of({f"{LIBRARY}{LIBRARY_PACKAGE}/{path}": text for path, text in texts.items()})
    needed = extras_needed(modules_of(tree), dependencies(File("pyproject.toml", PYPROJECT.encode())))
    assert needed == {f"celery_service.{name}": {"sqlalchemy"} for name in ("direct", "by", "by.package")}


def test_unresolved_imports_are_found() -> None:
    texts = {"a.py": "from celery_service.b import c, d\nimport celery_service.e\n", "b.py": "c = 1\n"}
    tree = Tree.of({f"{LIBRARY}{LIBRARY_PACKAGE}/{path}": text for path, text in texts.items()})
    found = sorted(unresolved(modules_of(tree)))
    assert [problem.partition(",")[0] for problem in found] == [
        "celery_service.a imports celery_service.e",
        "celery_service.a imports d from celery_service.b",
    ]
