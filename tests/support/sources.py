"""What rendered files say: imports, links, settings, dependencies. Each content is read once."""

import ast
import json
import posixpath
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .render import File, Tree

#: The folder of the library in a project, and what it is imported and installed by.
LIBRARY = "runtime/"
LIBRARY_PACKAGE = "celery_service"
LIBRARY_DISTRIBUTION = "celery-service"


def is_library(file: File) -> bool:
    return file.path.startswith(LIBRARY)


def python_files(tree: Tree) -> list[File]:
    """Those of the project itself, without the library."""
    return [file for path, file in tree.files.items() if path.endswith(".py") and not is_library(file)]


def library_files(tree: Tree) -> list[File]:
    """The Python files of the library."""
    return [file for path, file in tree.files.items() if path.endswith(".py") and is_library(file)]


# --- Python -----------------------------------------------------------------------------------------------------------


class Import(NamedTuple):
    """`from module import name`, or `import module`."""

    module: str
    name: str = ""
    #: The function that it stands in, TYPES_ONLY, or nothing: then it is done when the module is imported.
    function: str = ""


TYPES_ONLY = "if TYPE_CHECKING"


@cache
def module_of(path: str) -> str:
    """The dotted name of a Python file."""
    return path.removeprefix(LIBRARY).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def syntax_tree(file: File) -> ast.Module:
    try:
        return ast.parse(file.data)
    except SyntaxError:  # which the check `parses` reports
        return ast.Module([], [])


@cache
def imports(file: File) -> frozenset[Import]:
    return frozenset(_imports(syntax_tree(file), file.path.removeprefix(LIBRARY), ""))


def _imports(parent: ast.AST, path: str, function: str) -> Iterator[Import]:
    for node in ast.iter_child_nodes(parent):
        inside = function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = node.name
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inside = TYPES_ONLY
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.split("/")[: -node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (Import(module, alias.name, function) for alias in node.names)
        else:
            yield from _imports(node, path, inside)


@cache
def bound_names(file: File) -> frozenset[str]:
    """What a module defines at its top level, under conditions included."""
    found = set[str]()
    pending: list[ast.AST] = [syntax_tree(file)]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            else:
                pending.append(node)
    return frozenset(found)


@cache
def third_party(file: File, internal: frozenset[str]) -> frozenset[str]:
    """The top names of all modules that are imported, less Python's own and these."""
    tops = {each.module.partition(".")[0] for each in imports(file)}
    return frozenset(tops - internal - sys.stdlib_module_names)


@cache
def settings_of(file: File) -> frozenset[str]:
    """The environment variables that a module of pydantic-settings reads."""
    found = set[str]()
    for node in ast.walk(syntax_tree(file)):
        if isinstance(node, ast.ClassDef) and any("BaseSettings" in ast.unparse(base) for base in node.bases):
            fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
            names = {field.id for field in fields if isinstance(field, ast.Name)} - {"model_config"}
            found |= {f"{_env_prefix(node)}{name}".upper() for name in names}
    return frozenset(found)


def _env_prefix(node: ast.ClassDef) -> str:
    keywords = [each for each in ast.walk(node) if isinstance(each, ast.keyword) and each.arg == "env_prefix"]
    return str(ast.literal_eval(keywords[0].value)) if keywords else ""


# --- other files ------------------------------------------------------------------------------------------------------


@cache
def words(file: File) -> frozenset[str]:
    return frozenset(re.findall(r"[\w-]+", file.text))


@cache
def links(file: File) -> frozenset[str]:
    """The files that a Markdown file links to."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", file.text, flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(<?([^)\s>]+)", prose) + re.findall(r"^\[[^]]+\]: *(\S+)", prose, re.MULTILINE)
    relative = {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)}
    return frozenset(posixpath.normpath(posixpath.join(posixpath.dirname(file.path), target)) for target in relative)


@cache
def interpolated_in(file: File) -> frozenset[str]:
    """The variables that a Compose file takes from .env, less those that Compose or Celery know themselves."""
    found = re.findall(r"(?<!\$)\$\{(\w+)", file.text)
    return frozenset(name for name in found if not name.startswith(("CELERY_", "COMPOSE_")))


@cache
def variables_of(file: File) -> frozenset[str]:
    """The variables that an environment file sets, or shows commented out."""
    found = re.findall(r"^(?:# ?)?([A-Z][A-Z0-9_]*)=", file.text, re.MULTILINE)
    return frozenset(name for name in found if not name.startswith("CELERY_"))


class Dependencies(NamedTuple):
    """What a pyproject.toml declares, the tools that it configures, and how it configures ruff."""

    #: Name of a distribution → the extras that are asked for.
    runtime: Mapping[str, frozenset[str]]
    #: Name of an extra → the distributions that it brings.
    optional: Mapping[str, frozenset[str]]
    dev: frozenset[str]
    tools: frozenset[str]
    ruff: str


@cache
def dependencies(file: File) -> Dependencies:
    try:
        settings = tomllib.loads(file.text)
    except tomllib.TOMLDecodeError:  # which the check `parses` reports
        settings = {}
    project, tools = settings.get("project", {}), settings.get("tool", {})
    requirements = [Requirement(each) for each in project.get("dependencies", [])]
    return Dependencies(
        {canonicalize_name(each.name): frozenset(each.extras) for each in requirements},
        {extra: _names(them) for extra, them in project.get("optional-dependencies", {}).items()},
        _names(settings.get("dependency-groups", {}).get("dev", [])),
        frozenset(tools) | frozenset(re.findall(r"[\w-]+", json.dumps(tools.get("pytest", {})))),
        json.dumps([project.get("requires-python"), tools.get("ruff", {})], sort_keys=True),
    )


def _names(requirements: list[str]) -> frozenset[str]:
    return frozenset(canonicalize_name(Requirement(each).name) for each in requirements)
