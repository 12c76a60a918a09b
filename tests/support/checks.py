"""What must hold in every rendered file and tree. Each check yields one sentence for each problem.

A new option extends the tables at the top: its extra, its words, its owned files. The library in `runtime/` is the same
in every project: what must hold in it is checked once, by tests/template/test_library.py.
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
from typing import Any

import yaml
from packaging.utils import canonicalize_name

from .render import File, Tree
from .sources import (
    LIBRARY,
    LIBRARY_DISTRIBUTION,
    LIBRARY_PACKAGE,
    Dependencies,
    bound_names,
    dependencies,
    imports,
    interpolated_in,
    is_library,
    library_files,
    links,
    module_of,
    python_files,
    settings_of,
    third_party,
    variables_of,
    words,
)

Check = Callable[[Any], Iterable[str]]

# --- what the checks know of the template -----------------------------------------------------------------------------

OWNED = "Owned by the template"
OWNED_FILES = (
    "runtime/README.md",
    "runtime/pyproject.toml",
    "deploy/*",
    "migrations/env.py",
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
    r"|\{\{ *(index )?[$.].*?\}\}"  # Go templates: Prometheus, Docker
    r'|(?<="legendFormat": ").*(?=")'  # Grafana's names of labels
)

#: Types that nothing here can parse. Whatever is neither listed nor parsed fails, so that new types are thought of.
UNPARSED = {".gitignore", ".dockerignore", ".env.example", ".typed", ".service", ".timer", "LICENSE", "Dockerfile"}
UNPARSED |= {".mako", ".lua", ".env", ".target", ".conf", ".logrotate", ".environment"}
#: A browser reads these: tests/behaviour/test_pages.py.
UNPARSED |= {".css", ".html", ".js", ".svg"}

#: Extra of the library → the option that asks for it.
EXTRAS = {
    "redis": "use_redis",
    "rabbitmq": "use_rabbitmq",
    "sqlalchemy": "use_db",
    "aiocache": "use_cache",
    "fastapi": "use_api",
    "flower": "use_flower",
    "opentelemetry": "use_opentelemetry",
    "prometheus": "use_prometheus",
    "sentry": "use_sentry",
}
#: How the variables of the library's settings start, where they belong to an option.
PREFIXES = {
    "DATABASE_": "use_db",
    "DOCTOR_": "use_rabbitmq",
    "CACHE_": "use_cache",
    "API_": "use_api",
    "FLOWER_": "use_flower",
    "METRICS_": "use_prometheus",
    "OTEL_": "use_opentelemetry",
    "SENTRY_": "use_sentry",
}

#: What a file says of an option must be gone when the option isn't chosen.
WORDS = {
    "use_db": r"sqlalchemy|alembic|sqlite|psycopg|postgres|migration|(?<!celery_)database_\w|services[./]db\b"
    r"|\bthe database\b",
    "use_rabbitmq": r"rabbit_?mq|amqp",
    "use_cache": r"aiocache|caching|(?<!\w)cache_(url|namespace|ttl|timeout)|services[./]cache"
    r"|cache\.sync|\bthe cache\b|inventory",
    "use_beat": r"(?<![a-z])beat(?![a-z])|celerybeat|periodic",
    "use_api": r"fastapi|uvicorn|\bapi/|\bhttp api\b|\bapi_(key|host|port)|make api\b",
    "use_flower": r"flower",
    "use_opentelemetry": r"opentelemetry|otel_|otlp|\btracing\b|\btraces\b",
    "use_prometheus": r"prometheus|grafana|metrics_(port|host)|promtool|\bthe metrics\b|alertmanager",
    "use_sentry": r"sentry",
    "use_docker": r"docker|\bcompose\b|compose[._-]|container|hadolint|mailpit|make (up|down|logs|scale|shell|image)\b",
    "use_kubernetes": r"kubernetes|kubectl|kustomize|\bk8s\b|\bkeda\b|\bpods?\b",
    "use_systemd": r"systemd|systemctl|supervisord?\b|journalctl",
    "use_github": r"\.github/|github actions",
    "use_gitlab": r"gitlab",
}
#: Exceptions: file, what may stand there, and why.
MAY_MENTION = (
    ("*", r"\bamqp\.(router|queues)", "Celery calls it so whatever the broker is"),
    ("*", r"CELERY_BEAT_\w+", "one of Celery's variables; whether beat runs or not, it must not be mistaken"),
    (
        "tests/integration/conftest.py",
        r"as tests do in a container",
        "so they do, whether the service is in one or not",
    ),
    ("docs/dev/logs.md", r"FastAPI or|`api_key`", "of web processes that aren't made by us"),
    ("compose.yaml", r"/api/health", "where Grafana answers probes"),
    ("docs/dev/celery.md", r"With systemd,", "for whoever writes a unit of their own"),
    ("docs/dev/redis.md", r"the number of the database", "Redis numbers its own"),
)

#: Where modules come from that aren't called like their distribution, or that are part of another.
PROVIDED_BY = {
    "billiard": ("celery",),  # Celery is written around these four, and documents importing them
    "click": ("celery",),
    "kombu": ("celery",),
    "vine": ("celery",),
    "dotenv": ("python-dotenv",),
    "pydantic_core": ("pydantic",),
    "redbeat": ("celery-redbeat",),
    "starlette": ("fastapi",),
    "tornado": ("flower",),
    "yaml": ("pyyaml",),
}
#: What no test imports, and the fixture or the class that is used instead.
FIXTURES = {
    "httpx2": "TestClient",
    "pytest-postgresql": "postgresql_proc",
    "pytest-redis": "redis_proc",
}

#: What each part of the package may import of the package. Each may import the library.
ARROWS = {
    "": set[str](),
    "settings": set[str](),
    "celery": set[str](),
    "models": {"models"},
    "services": {"services", "settings", "models"},
    "tasks": {"tasks", "celery", "services", "models", "settings"},
    "api": {"api", "tasks", "celery", "services", "models", "settings"},
}
#: Variables that no class of settings has, and why.
NOT_SETTINGS = {
    "HEALTH_DIR": "celery_service/lifecycle/health.py reads it: a probe that imports pydantic is slow",
    "HEALTH_MAX_SILENCE": "likewise",
    "FLOWER_PORT": "Flower reads it",
    "FLOWER_READ_ONLY": "likewise",
}
#: The one import of services in celery.py, inside the function that is called when a worker starts.
LATE_IMPORTS = {("celery", "services", "setup_caches")}

# --- one file ---------------------------------------------------------------------------------------------------------


def has_a_plain_path(file: File) -> Iterator[str]:
    # systemd's templates of units have an @ in their names.
    if not re.fullmatch(r"[\w.@-]+(/[\w.@-]+)*", file.path, re.ASCII):
        yield "has odd characters in its path"


def has_no_residue(file: File) -> Iterator[str]:
    for number, line in enumerate(NOT_JINJA.sub("", file.text).splitlines(), 1):
        if re.search(r"\{\{|\{%|\{#", line):
            yield f"line {number} holds Jinja: {line.strip()}"


def has_content(file: File) -> Iterator[str]:
    if not file.data.strip() and not file.volatile and file.name not in {"__init__.py", "py.typed"}:
        yield "is empty"


def has_no_scars(file: File) -> Iterator[str]:
    """Find blank lines and blanks that a Jinja condition left behind."""
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
    """Refuses duplicate keys, which YAML forbids and PyYAML accepts."""

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

# --- one tree ---------------------------------------------------------------------------------------------------------


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
    modules = {module_of(file.path): file for file in (*python_files(tree), *library_files(tree))}
    folders = {module_of(folder) for folder in tree.folders}
    tops = {module.partition(".")[0] for module in modules}
    for file in python_files(tree):
        for module, name, _ in imports(file):
            if module.partition(".")[0] not in tops:
                continue
            if module not in modules and module not in folders:
                yield f"{file.path} imports {module}, which isn't there"
            elif name and f"{module}.{name}" not in modules and not _binds(modules.get(module), name):
                yield f"{file.path} imports {name} from {module}, which doesn't have it"


def _binds(file: File | None, name: str) -> bool:
    return file is not None and (name == "*" or not bound_names(file).isdisjoint({name, "__getattr__"}))


def brought_by(module: str, available: Iterable[str]) -> set[str]:
    """Which of the available distributions bring a module, or, where none does, parts of it."""
    names = PROVIDED_BY.get(module, (canonicalize_name(module),))
    found = {name for name in available if name in names}
    return found or {name for name in available if name.startswith(f"{names[0]}-")}


def depends_on_the_library_only(tree: Tree) -> Iterator[str]:
    """The project names no other distribution for its service, so that its owner's lines and ours never meet."""
    declared = dependencies(tree.files["pyproject.toml"]).runtime
    yield from (f"{name} is declared beside the library" for name in declared.keys() - {LIBRARY_DISTRIBUTION})
    if LIBRARY_DISTRIBUTION not in declared:
        yield f"{LIBRARY_DISTRIBUTION} is not declared"
        return
    offered = dependencies(tree.files[f"{LIBRARY}pyproject.toml"]).optional.keys()
    yield from (f"no option asks for the extra {extra}: extend EXTRAS" for extra in offered - EXTRAS.keys())
    asked, chosen = declared[LIBRARY_DISTRIBUTION], {extra for extra, option in EXTRAS.items() if tree.context[option]}
    yield from (f"the extra {extra} is not asked for" for extra in chosen - asked)
    yield from (f"the extra {extra} is asked for, but wasn't chosen" for extra in asked - chosen)


def imports_are_declared(tree: Tree) -> Iterator[str]:
    """Check that each import is declared by the library, its extras or, in tests, the development dependencies.

    Also check that each declared dependency is used.
    """
    declared = dependencies(tree.files["pyproject.toml"])
    library = dependencies(tree.files[f"{LIBRARY}pyproject.toml"])
    extras = declared.runtime.get(LIBRARY_DISTRIBUTION, frozenset())
    installed = library.runtime.keys() | set().union(*(library.optional.get(extra, ()) for extra in extras))
    internal = frozenset({path.partition("/")[0].removesuffix(".py") for path in tree.files if path.endswith(".py")})
    service, others = set[str](), set[str]()
    for file in python_files(tree):
        in_service = file.path.startswith((f"{tree.context['package_slug']}/", "migrations/"))
        (service if in_service else others).update(third_party(file, internal | {LIBRARY_PACKAGE}))
    yield from (
        f"{module} is imported but not declared for the service"
        for module in service
        if not brought_by(module, installed)
    )
    found = {module: brought_by(module, installed | declared.dev) for module in others}
    yield from (f"{module} is imported but not declared" for module, names in found.items() if not names)
    used = set[str]().union(*found.values())
    yield from (f"{name} is declared for development but not used" for name in _idle(tree, declared, used, installed))


def _idle(tree: Tree, declared: Dependencies, used: set[str], installed: Iterable[str]) -> Iterator[str]:
    """Development dependencies that no test imports, nothing runs, and no table in pyproject.toml configures."""
    commands = [file for path, file in tree.files.items() if path == "Makefile" or path.endswith((".yml", ".yaml"))]
    for name in declared.dev - used - declared.tools:
        typed = re.sub(r"^types-|-(types|stubs)$", "", name)
        if typed != name and typed in {*installed, *declared.dev}:
            continue
        if any(FIXTURES.get(name, "") in words(file) for file in python_files(tree)):
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
    allowed = ARROWS[layer]
    found = []
    for module, name, function in imports(file):
        top, _, inner = module.partition(".")
        target = inner.partition(".")[0] or name
        late = (layer, target, function) in LATE_IMPORTS
        if top == "tests" or (top == package and target not in allowed and not late):
            found.append(f"{file.path} imports {module}: {layer or 'the package'} must not")
    return tuple(found)


def options_not_chosen_are_not_mentioned(tree: Tree) -> Iterator[str]:
    """Check that files don't mention options that aren't chosen. The library is not checked: it is always complete."""
    off = {option for option in WORDS if not tree.context[option]}
    for file in tree:
        if not is_library(file):
            for option in mentioned_options(file) & off:
                yield f"{file.path} mentions what belongs to {option}, which is off"


@cache
def mentioned_options(file: File) -> frozenset[str]:
    text = f"{file.path}\n{file.text}"
    for pattern, phrase, _ in MAY_MENTION:
        if fnmatchcase(file.path, pattern):
            text = re.sub(phrase, "", text, flags=re.MULTILINE)
    return frozenset().union(*map(_options_in, text.split("\n")))


@cache
def _options_in(line: str) -> frozenset[str]:
    # Files have most of their lines in common.
    return frozenset(option for option, word in WORDS.items() if re.search(word, line, re.IGNORECASE))


def settings_are_documented(tree: Tree) -> Iterator[str]:
    """Those of the service, those of the library that belong to what was chosen, and those of Compose."""
    read = set(settings_of(tree.files[f"{tree.context['package_slug']}/settings.py"]))
    for file in library_files(tree):
        read |= {name for name in settings_of(file) if _is_chosen(name, tree)}
    read |= {name for path, file in tree.files.items() if path.startswith("compose") for name in interpolated_in(file)}
    shown = variables_of(tree.files[".env.example"])
    yield from (f"{name} is read but not in .env.example" for name in read - shown)
    idle = shown - read - NOT_SETTINGS.keys()
    yield from (f"{name} is in .env.example but nothing reads it" for name in idle)


def _is_chosen(variable: str, tree: Tree) -> bool:
    return all(tree.context[option] for prefix, option in PREFIXES.items() if variable.startswith(prefix))


def owners_are_named(tree: Tree) -> Iterator[str]:
    patterns = tuple(pattern.format(**tree.context) for pattern in OWNED_FILES)
    for path, file in tree.files.items():
        if not _matches(path, patterns):
            continue
        if file.data and file.suffix not in WITHOUT_COMMENTS and not says_its_owner(file):
            yield f"{path} doesn't say at its top: {OWNED}"


@cache
def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


@cache
def says_its_owner(file: File) -> bool:
    # After a line for the shell or the opening of a docstring, and before anything else.
    return any(OWNED in line for line in file.text.splitlines()[:3])


TREE_CHECKS: list[Check] = [
    has_no_empty_folders,
    links_resolve,
    imports_resolve,
    depends_on_the_library_only,
    imports_are_declared,
    arrows_point_one_way,
    options_not_chosen_are_not_mentioned,
    settings_are_documented,
    owners_are_named,
]

# --- ruff, once for each distinct content -----------------------------------------------------------------------------


def ruff_problems(trees: Iterable[tuple[Tree, str]], root: Path) -> Iterator[str]:
    """What ruff finds, under the configuration of the project itself, in two processes for all contents.

    The n-th content of each path goes to the n-th folder, with a pyproject.toml that it was rendered together with. The
    library is left out, as it is in a project.
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
