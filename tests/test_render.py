"""Every combination of the feature space: what Copier would write is complete, clean and consistent.

A check takes one file, or one tree, and yields a sentence for each thing that is wrong. Files are checked once for each
distinct content. The checks themselves are tested at the end, on trees that are wrong on purpose.
"""

import ast
import json
import posixpath
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import copier
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.render import File, Renderer, Tree, copy_template, read_tree
from support.space import Combination, Template, covering_set, read_space

Check = Callable[[Any], Iterable[str]]

# --- what the checks know of the template -----------------------------------------------------------------------------

OWNED = "Owned by the template"
OWNED_FILES = (
    "{package_slug}/runtime/*",
    "deploy/*",
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

#: What a file says of an option must be gone when the option isn't chosen.
WORDS = {
    "use_rabbitmq": r"rabbit_?mq|amqp",
    "use_beat": r"(?<![a-z])beat(?![a-z])|celerybeat|periodic",
    "use_github": r"\.github/|github actions",
    "use_gitlab": r"gitlab",
}
#: Exceptions: file, what may stand there, and why.
MAY_MENTION = (
    ("*", r"\bamqp\.(router|queues)", "Celery calls it so whatever the broker is"),
    ("*", r"CELERY_BEAT_\w+", "one of Celery's variables; whether beat runs or not, it must not be mistaken"),
    ("*/runtime/environment.py", r".*", "types every setting that Celery has"),
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
    "redis": "Celery's client for results; declared for the fast parser of its extra",
}

#: What each part of the package may import of the package.
ARROWS = {
    "": set[str](),
    "settings": set[str](),
    "celery": {"runtime"},
    "runtime": {"runtime", "settings"},
    "models": {"models"},
    "services": {"services", "settings", "models", "runtime"},
    "tasks": {"tasks", "celery", "services", "models", "settings", "runtime"},
    "api": {"api", "tasks", "celery", "services", "models", "settings", "runtime"},
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
    blank_lines = 2 if file.suffix == ".py" or file.name == "LICENSE" else 1
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield "doesn't end with exactly one newline"
    if text.startswith("\n"):
        yield "starts with a blank line"
    if "\n" * (blank_lines + 2) in text:
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
    shown = variables_of(tree.files[".env.example"])
    yield from (f"{name} is read by settings.py but not in .env.example" for name in read - shown)
    yield from (f"{name} is in .env.example but settings.py doesn't read it" for name in shown - read)


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


# --- the space --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendering:
    """The whole space, rendered."""

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
    """Fail with each distinct problem, how many combinations have it, and one of them."""
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
    """Anything else that did would change on every update, and escape all checks of content."""
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


def test_it_is_what_copier_writes(rendering: Rendering, tmp_path: Path) -> None:
    """On a set of combinations in which any three options meet in every way that they can."""
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
dependencies = ["celery[redis]>=5.7"]
[dependency-groups]
dev = ["pytest"]
[tool.pytest]
[tool.ruff.lint]
select = ["F", "I"]
"""
#: A project that is right; each mutation spoils one thing.
SOUND = {
    "pyproject.toml": PYPROJECT,
    "README.md": "[the tasks](shop/tasks/mail.py)\n",
    ".env.example": f"# {OWNED}\nSMTP_HOST=localhost\n# CELERY_BROKER_URL=\n",
    "shop/__init__.py": "",
    "shop/celery.py": "from celery import Celery\n\ncelery = Celery()\n",
    "shop/settings.py": "class Settings(BaseSettings):\n    smtp_host: str\n",
    "shop/runtime/__init__.py": f'"""{OWNED}."""\n',
    "shop/runtime/config.py": f'"""{OWNED}."""\n',
    "shop/tasks/__init__.py": "",
    "shop/tasks/mail.py": "from shop.celery import celery\n",
    "shop/services/__init__.py": "",
    "tests/test_mail.py": "import pytest\n\nfrom shop.tasks import mail\n",
}
OFF = dict.fromkeys(WORDS, False)


def mutated(changes: Mapping[str, str | None]) -> Tree:
    """The sound project with files replaced, added, or, with None, removed."""
    texts = {path: text for path, text in {**SOUND, **changes}.items() if text is not None}
    tree = Tree.of(texts, package_slug=SLUG, **OFF)
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
        (imports_resolve, {"shop/tasks/mail.py": "from shop.runtime.gone import x\n"}, "isn't there"),
        (imports_resolve, {"shop/tasks/mail.py": "from ..runtime import gone\n"}, "doesn't have it"),
        (imports_resolve, {"tests/test_mail.py": "from shop.celery import gone\n"}, "doesn't have it"),
        (dependencies_are_exact, {"shop/celery.py": "import httpx\nimport celery\n"}, "httpx is imported"),
        (dependencies_are_exact, {"shop/celery.py": "import celery\nimport pytest\n"}, "not declared for the service"),
        (dependencies_are_exact, {"shop/celery.py": "\n"}, "celery is declared but not imported"),
        (
            dependencies_are_exact,
            {"pyproject.toml": PYPROJECT.replace('"pytest"', '"pytest", "tox"')},
            "tox is declared for development",
        ),
        (arrows_point_one_way, {"shop/runtime/config.py": "from shop.tasks import mail\n"}, "runtime must not"),
        (arrows_point_one_way, {"shop/runtime/config.py": "from shop.settings import settings\n"}, "must not"),
        (arrows_point_one_way, {"shop/services/a.py": "from ..celery import celery\n"}, "services must not"),
        (arrows_point_one_way, {"shop/celery.py": "from shop import services\n"}, "celery must not"),
        (arrows_point_one_way, {"shop/settings.py": "import tests\n"}, "settings must not"),
        (arrows_point_one_way, {"shop/extra.py": ""}, "no part of the package"),
        (options_not_chosen_are_not_mentioned, {"README.md": "or RabbitMQ\n"}, "use_rabbitmq"),
        (options_not_chosen_are_not_mentioned, {"README.md": "starts beat\n"}, "use_beat"),
        (options_not_chosen_are_not_mentioned, {".github/x.yml": "a: 1\n"}, "use_github"),
        (options_not_chosen_are_not_mentioned, {".gitlab-ci.yml": "a: 1\n"}, "use_gitlab"),
        (settings_are_documented, {".env.example": "\n"}, "SMTP_HOST is read"),
        (settings_are_documented, {".env.example": "SMTP_HOST=\n# OLD=1\n"}, "OLD is in .env.example"),
        (owners_are_named, {"shop/runtime/config.py": "a = 1\n"}, "doesn't say"),
    ],
)
def test_tree_checks_fail(check: Check, changes: dict[str, str | None], problem: str) -> None:
    assert [found for found in check(mutated(changes)) if problem in found]


def test_a_late_import_of_services_is_allowed_in_setup_caches_only() -> None:
    code = "def {}():\n    from shop.services.cache import configure_caches\n"
    assert not list(arrows_point_one_way(mutated({"shop/celery.py": code.format("setup_caches")})))
    assert list(arrows_point_one_way(mutated({"shop/celery.py": code.format("other")})))


def test_ruff_problems_are_found_in_every_variant(tmp_path: Path) -> None:
    """Two contents of one path: both are checked, by the rules of the project, and told apart."""
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
