"""What must hold in every rendered file and tree. Each check yields one sentence for each problem.

A new option extends the tables at the top: its words, its owned files, what it imports.
"""

import ast
import json
import posixpath
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .render import File, Tree

Check = Callable[[Any], Iterable[str]]

# --- what the checks know of the template -----------------------------------------------------------------------------

OWNED = "Owned by the template"
OWNED_FILES = (
    "{package_slug}/runtime/*",
    "deploy/*",
    "migrations/env.py",
    "migrations/check.py",
    "tests/integration/servers/*",
    ".github/*",
    ".gitlab*",
    ".dockerignore",
    ".env.example",
    ".gitignore",
    ".pre-commit-config.yaml",
    "Dockerfile",
    "Makefile",
    "compose*.yaml",
    "pyproject.toml",
)
WITHOUT_COMMENTS = (".json", ".typed")

#: What is Jinja's elsewhere and something else's here.
NOT_JINJA = re.compile(
    r"\$\{\{.*?\}\}"  # GitHub's expressions
    r"|\$\{#\w+\}"  # the shell's length of a variable
    r"|\{\{ *[$.].*?\}\}"  # Go templates: Prometheus, Docker
)

#: Types that nothing here can parse. Whatever is neither listed nor parsed fails, so that new types are thought of.
UNPARSED = {".gitignore", ".dockerignore", ".env.example", ".typed", ".service", ".timer", "LICENSE", "Dockerfile"}
UNPARSED |= {".mako"}

#: What a file says of an option must be gone when the option isn't chosen.
WORDS = {
    "use_db": r"sqlalchemy|alembic|sqlite|psycopg|postgres|migration|(?<!celery_)database_\w|services[./]db\b"
    r"|\bthe database\b",
    "use_rabbitmq": r"rabbit_?mq|amqp",
    "use_cache": r"aiocache|msgpack|caching|(?<!\w)cache_(url|namespace|ttl|timeout|serializer)|services[./]cache"
    r"|cache\.sync|\bthe cache\b|inventory",
    "use_beat": r"(?<![a-z])beat(?![a-z])|celerybeat|periodic",
    "use_docker": r"docker|\bcompose\b|compose[._-]|container|hadolint|mailpit|make (up|down|logs|scale|shell|image)\b",
    "use_github": r"\.github/|github actions",
    "use_gitlab": r"gitlab",
}
#: Exceptions: file, what may stand there, and why.
MAY_MENTION = (
    ("*", r"\bamqp\.(router|queues)", "Celery calls it so whatever the broker is"),
    ("*", r"CELERY_BEAT_\w+", "one of Celery's variables; whether beat runs or not, it must not be mistaken"),
    ("*/runtime/environment.py", r".*", "types every setting that Celery has"),
    ("docs/dev/redis.md", r"the number of the database", "Redis numbers its own"),
    ("docs/dev/celery.md", r"^\|.*", "its table lists every variable that Celery has"),
)

#: Where modules come from that aren't called like their distribution, or that are part of another.
PROVIDED_BY = {
    "billiard": ("celery",),  # Celery is written around these four, and documents importing them
    "click": ("celery",),
    "kombu": ("celery",),
    "vine": ("celery",),
    "dotenv": ("python-dotenv",),
    "redbeat": ("celery-redbeat",),
    "starlette": ("fastapi",),
    "yaml": ("pyyaml",),
}
#: Declared for the running service although nothing imports it, and why.
NOT_IMPORTED = {
    "aiosqlite": "SQLAlchemy's driver for SQLite, by the name in a URL",
    "redis": "Celery's client for results; declared for the fast parser of its extra",
}

#: What each part of the package may import of the package.
ARROWS = {
    "": set[str](),
    # How settings are read, and the types of some.
    "settings": {"runtime"},
    "celery": {"runtime"},
    "runtime": {"runtime", "settings"},
    "models": {"models"},
    "services": {"services", "settings", "models", "runtime"},
    "tasks": {"tasks", "celery", "services", "models", "settings", "runtime"},
    "api": {"api", "tasks", "celery", "services", "models", "settings", "runtime"},
}
#: Variables that are not settings of the app, and why.
NOT_SETTINGS = {
    "HEALTH_DIR": "runtime/health.py reads it: a probe that imports settings.py is slow",
    "HEALTH_MAX_SILENCE": "likewise",
}
#: Celery is configured by CELERY_* and nothing else.
WITHOUT_SETTINGS = ("runtime.config", "runtime.environment", "runtime.queues", "runtime.task")
#: The one import of services in celery.py, inside the function that is called when a worker starts.
LATE_IMPORTS = {("celery", "services", "setup_caches")}

# --- one file ---------------------------------------------------------------------------------------------------------


def has_a_plain_path(file: File) -> Iterator[str]:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", file.path, re.ASCII):
        yield "has odd characters in its path"


def has_no_residue(file: File) -> Iterator[str]:
    for number, line in enumerate(NOT_JINJA.sub("", file.text).splitlines(), 1):
        if re.search(r"\{\{|\{%|\{#", line):
            yield f"line {number} holds Jinja: {line.strip()}"


def has_content(file: File) -> Iterator[str]:
    if not file.data.strip() and not file.volatile and file.name not in {"__init__.py", "py.typed"}:
        yield "is empty"


def has_no_scars(file: File) -> Iterator[str]:
    """Blank lines and blanks that a condition left behind."""
    text = file.text
    # The licenses are quoted as they are.
    blank_lines = 2 if file.suffix in {".py", ".mako"} or file.name == "LICENSE" else 1
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield "doesn't end with exactly one newline"
    if text.startswith("\n"):
        yield "starts with a blank line"
    # An example in Markdown has the blank lines of its own language.
    prose = re.sub(r"^```.*?^```", "```", text, flags=re.DOTALL | re.MULTILINE) if file.suffix == ".md" else text
    if "\n" * (blank_lines + 2) in prose:
        yield f"has more than {blank_lines} blank lines in a row"
    if re.search(r"[ \t]+$", text, re.MULTILINE):
        yield "has blanks at the end of a line"
    if file.suffix in {".toml", ".json"} and re.search(r"[\[{]\n\n|\n\n[ \t]*[\]}]", text):
        yield "has a blank line inside a bracket"


class _StrictLoader(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML takes: the same key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if doubled := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"the same key twice: {', '.join(sorted(doubled))}")
        return super().construct_mapping(node, deep)


def _parse_make(text: str) -> None:
    subprocess.run(["make", "--file=-", "-n", "help"], input=text, text=True, capture_output=True, check=True)


def _parse_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=True)


PARSERS: dict[str, Callable[[str], object]] = {
    ".json": json.loads,
    ".md": str,
    ".py": ast.parse,
    ".sh": _parse_shell,
    ".toml": tomllib.loads,
    ".yaml": lambda text: list(yaml.load_all(text, _StrictLoader)),
    ".yml": lambda text: list(yaml.load_all(text, _StrictLoader)),
    "Makefile": _parse_make,
}


def parses(file: File) -> Iterator[str]:
    parse = PARSERS.get(file.suffix) or PARSERS.get(file.name)
    if parse is None:
        if not {file.suffix, file.name} & UNPARSED:
            yield "is of a type that the tests can't parse: extend PARSERS or UNPARSED"
        return
    try:
        parse(file.text)
    except subprocess.CalledProcessError as error:
        yield f"doesn't parse: {error.stderr.strip()}"
    except (SyntaxError, ValueError, yaml.YAMLError) as error:
        yield f"doesn't parse: {error}"


FILE_CHECKS: list[Check] = [has_a_plain_path, has_no_residue, has_content, has_no_scars, parses]

# --- what files say, read once for each content -----------------------------------------------------------------------


class Import(NamedTuple):
    """`from module import name` inside `function`, or `import module`."""

    module: str
    name: str = ""
    function: str = ""


@cache
def module_of(path: str) -> str:
    """The dotted name of a Python file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def syntax_tree(file: File) -> ast.Module:
    try:
        return ast.parse(file.data)
    except SyntaxError:  # which `parses` reports
        return ast.Module([], [])


@cache
def imports(file: File) -> frozenset[Import]:
    return frozenset(_imports(syntax_tree(file), file.path, ""))


def _imports(parent: ast.AST, path: str, function: str) -> Iterator[Import]:
    for node in ast.iter_child_nodes(parent):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
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
    tops = {each.module.partition(".")[0] for each in imports(file)}
    return frozenset(tops - internal - sys.stdlib_module_names)


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
def mentioned_options(file: File) -> frozenset[str]:
    text = f"{file.path}\n{file.text}"
    for pattern, phrase, _ in MAY_MENTION:
        if fnmatchcase(file.path, pattern):
            text = re.sub(phrase, "", text, flags=re.MULTILINE)
    return frozenset(option for option, word in WORDS.items() if re.search(word, text, re.IGNORECASE))


@cache
def says_its_owner(file: File) -> bool:
    # After a line for the shell or the opening of a docstring, and before anything else.
    return any(OWNED in line for line in file.text.splitlines()[:3])


@cache
def settings_of(file: File) -> frozenset[str]:
    """The environment variables that a module of pydantic-settings reads."""
    classes = [node for node in ast.walk(syntax_tree(file)) if isinstance(node, ast.ClassDef)]
    settings = [each for each in classes if any("BaseSettings" in ast.unparse(base) for base in each.bases)]
    fields = [node.target for each in settings for node in each.body if isinstance(node, ast.AnnAssign)]
    return frozenset(field.id.upper() for field in fields if isinstance(field, ast.Name) and field.id != "model_config")


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
    runtime: frozenset[str]
    dev: frozenset[str]
    tools: frozenset[str]
    ruff: str


@cache
def dependencies(file: File) -> Dependencies:
    """What a pyproject.toml declares, the tools that it configures, and how it configures ruff."""
    try:
        project = tomllib.loads(file.text)
    except tomllib.TOMLDecodeError:  # which `parses` reports
        project = {}
    tools = project.get("tool", {})
    runtime = project.get("project", {}).get("dependencies", [])
    dev = project.get("dependency-groups", {}).get("dev", [])
    return Dependencies(
        frozenset(canonicalize_name(Requirement(each).name) for each in runtime),
        frozenset(canonicalize_name(Requirement(each).name) for each in dev),
        frozenset(tools) | frozenset(re.findall(r"[\w-]+", json.dumps(tools.get("pytest", {})))),
        json.dumps([project.get("project", {}).get("requires-python"), tools.get("ruff", {})], sort_keys=True),
    )


# --- one tree ---------------------------------------------------------------------------------------------------------


def python_files(tree: Tree) -> list[File]:
    return [file for path, file in tree.files.items() if path.endswith(".py")]


def has_no_empty_folders(tree: Tree) -> Iterator[str]:
    used = set[str]()
    for path in tree.files:
        # Up to the first folder that is known: its own parents are, too.
        while (path := path.rpartition("/")[0]) and path not in used:
            used.add(path)
    yield from (f"{folder}/ is empty" for folder in tree.folders - used)


def links_resolve(tree: Tree) -> Iterator[str]:
    there = tree.files.keys() | tree.folders
    for path, file in tree.files.items():
        if path.endswith(".md"):
            yield from (f"{path} links to {target}, which isn't there" for target in links(file) - there)


def imports_resolve(tree: Tree) -> Iterator[str]:
    modules = {module_of(file.path): file for file in python_files(tree)}
    tops = internal_names(tree)
    for file in python_files(tree):
        for module, name, _ in imports(file):
            if module.partition(".")[0] not in tops:
                continue
            if module not in modules and not _is_folder(tree, module):
                yield f"{file.path} imports {module}, which isn't there"
            elif name and f"{module}.{name}" not in modules and not _binds(modules.get(module), name):
                yield f"{file.path} imports {name} from {module}, which doesn't have it"


def internal_names(tree: Tree) -> frozenset[str]:
    """The names that files of this project can be imported by: its folders and modules at the top."""
    return frozenset({path.partition("/")[0].removesuffix(".py") for path in tree.files if path.endswith(".py")})


def _is_folder(tree: Tree, module: str) -> bool:
    return module.replace(".", "/") in tree.folders


def _binds(file: File | None, name: str) -> bool:
    return file is not None and (name == "*" or not bound_names(file).isdisjoint({name, "__getattr__"}))


def distributions(modules: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """For each module the distributions that may bring it."""
    for module in modules:
        yield module, PROVIDED_BY.get(module, (canonicalize_name(module),))


def dependencies_are_exact(tree: Tree) -> Iterator[str]:
    declared = dependencies(tree.files["pyproject.toml"])
    package, internal = tree.context["package_slug"], internal_names(tree)
    runtime, others = set[str](), set[str]()
    for file in python_files(tree):
        in_service = file.path.startswith((f"{package}/", "migrations/"))
        (runtime if in_service else others).update(third_party(file, internal))
    used = set[str]()
    for modules, available in ((runtime, declared.runtime), (others, declared.runtime | declared.dev)):
        for module, names in distributions(modules):
            found = {name for name in available if name in names or name.startswith(f"{names[0]}-")}
            used |= found
            if not found:
                yield f"{module} is imported but not declared{' for the service' if modules is runtime else ''}"
    yield from (f"{name} is declared but not imported" for name in declared.runtime - used - NOT_IMPORTED.keys())
    yield from (f"{name} is declared for development but not used" for name in _idle(tree, declared, used))


def _idle(tree: Tree, declared: Dependencies, used: set[str]) -> Iterator[str]:
    """Development dependencies that no test imports, nothing runs, and no table in pyproject.toml configures."""
    commands = [file for path, file in tree.files.items() if path == "Makefile" or path.endswith((".yml", ".yaml"))]
    for name in declared.dev - used - declared.tools:
        typed = re.sub(r"^types-|-(types|stubs)$", "", name)
        if typed in declared.runtime | declared.dev and typed != name:
            continue
        if not any(name in words(file) for file in commands):
            yield name


def arrows_point_one_way(tree: Tree) -> Iterator[str]:
    package = tree.context["package_slug"]
    for file in python_files(tree):
        if file.path.startswith(f"{package}/"):
            yield from wrong_arrows(file, package)


@cache
def wrong_arrows(file: File, package: str) -> tuple[str, ...]:
    here = module_of(file.path).removeprefix(package).removeprefix(".")
    layer = here.partition(".")[0]
    if layer not in ARROWS:
        return (f"{file.path} belongs to no part of the package: extend ARROWS",)
    allowed = ARROWS[layer] - ({"settings"} if here in WITHOUT_SETTINGS else set())
    found = []
    for module, name, function in imports(file):
        top, _, inner = module.partition(".")
        target = inner.partition(".")[0] or name
        late = (layer, target, function) in LATE_IMPORTS
        if top == "tests" or (top == package and target not in allowed and not late):
            found.append(f"{file.path} imports {module}: {layer or 'the package'} must not")
    return tuple(found)


def options_not_chosen_are_not_mentioned(tree: Tree) -> Iterator[str]:
    off = {option for option in WORDS if not tree.context[option]}
    for file in tree:
        for option in mentioned_options(file) & off:
            yield f"{file.path} mentions what belongs to {option}, which is off"


def settings_are_documented(tree: Tree) -> Iterator[str]:
    read = settings_of(tree.files[f"{tree.context['package_slug']}/settings.py"])
    read |= {name for path, file in tree.files.items() if path.startswith("compose") for name in interpolated_in(file)}
    shown = variables_of(tree.files[".env.example"]) - NOT_SETTINGS.keys()
    yield from (f"{name} is read but not in .env.example" for name in read - shown)
    yield from (f"{name} is in .env.example but nothing reads it" for name in shown - read)


def owners_are_named(tree: Tree) -> Iterator[str]:
    patterns = [pattern.format(**tree.context) for pattern in OWNED_FILES]
    for path, file in tree.files.items():
        if not any(fnmatchcase(path, pattern) for pattern in patterns):
            continue
        if file.data and file.suffix not in WITHOUT_COMMENTS and not says_its_owner(file):
            yield f"{path} doesn't say at its top: {OWNED}"


TREE_CHECKS: list[Check] = [
    has_no_empty_folders,
    links_resolve,
    imports_resolve,
    dependencies_are_exact,
    arrows_point_one_way,
    options_not_chosen_are_not_mentioned,
    settings_are_documented,
    owners_are_named,
]

# --- ruff, once for each distinct content -----------------------------------------------------------------------------


def ruff_problems(trees: Iterable[tuple[Tree, str]], root: Path) -> Iterator[str]:
    """What ruff finds, under the configuration of the project itself, in two processes for all contents.

    The n-th content of each path goes to the n-th folder, with a pyproject.toml that it was rendered together with.
    """
    placed = _lay_out(trees, root)
    for command in (["check"], ["format", "--check"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--output-format=json", "--no-cache", "."]
        ruff = subprocess.run(arguments, cwd=root, text=True, capture_output=True, check=False)
        findings = json.loads(ruff.stdout or "[]")
        # 1 is for findings; anything else is ruff's own failure.
        if ruff.returncode != bool(findings):
            yield f"ruff failed: {ruff.stderr}"
        for finding in findings:
            file, label = placed[finding["filename"]]
            where = f"{file.path}:{finding['location']['row']}"
            yield f"{where}: {finding['code']} {finding['message']} ({file.source}; {label})"


def _lay_out(trees: Iterable[tuple[Tree, str]], root: Path) -> dict[str, tuple[File, str]]:
    """Write every distinct Python file under each configuration that it meets; return what stands where."""
    seen = set[tuple[str, File]]()
    folders: dict[tuple[str, int], Path] = {}
    count: dict[tuple[str, str], int] = {}
    placed: dict[str, tuple[File, str]] = {}
    for tree, label in trees:
        ruff = dependencies(tree.files["pyproject.toml"]).ruff
        for file in python_files(tree):
            if (ruff, file) in seen:
                continue
            seen.add((ruff, file))
            number = count[ruff, file.path] = count.get((ruff, file.path), -1) + 1
            folder = folders.setdefault((ruff, number), root / str(len(folders)))
            target = folder / file.path
            _write_around(tree, file, folder)
            target.write_bytes(file.data)
            target.chmod(0o755 if file.executable else 0o644)
            placed[str(target)] = file, label
    return placed


def _write_around(tree: Tree, file: File, folder: Path) -> None:
    """What ruff looks at besides the file: configuration, and whether folders are packages."""
    (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
    parent = posixpath.dirname(file.path)
    neighbours = ["pyproject.toml"]
    while parent:
        neighbours.append(f"{parent}/__init__.py")
        parent = posixpath.dirname(parent)
    for path in neighbours:
        if path in tree.files and not (folder / path).exists():
            # Empty: a content is linted where it is laid out itself.
            (folder / path).write_bytes(tree.files[path].data if path == "pyproject.toml" else b"")
