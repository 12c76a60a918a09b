"""Answers are data: whatever somebody types ends up in the project as text, and nothing breaks or runs."""

import ast
import functools
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier._main import Worker

from support.history import conflicts, difference, read_answers, release, update
from support.project import Project, commit_all, install, render, run_python, working_tree

#: What the expressions below would give if anything evaluated them.
EVALUATED = str(1234567 * 3)

HOSTILE = {
    "double quotes": 'say "hi" "',
    "single quotes": "it's ''here''",
    "both quotes": """'"'"'""",
    "triple quotes": "a \"\"\" b ''' c",
    "backslashes": "C:\\new\\table\\",
    "escapes": r"\n \t \u0041 \x41 \N{DASH} \0",
    "comment sign": "a # b",
    "colon": "key: value: ",
    "yaml list": "- item",
    "yaml anchors": "&a *a !!python/object:x @at `tick` %YAML",
    "yaml folding": ">-\n  folded\n---\n...",
    "yaml null": "null",
    "yaml boolean": "yes",
    "yaml number": "1_000.50",
    "yaml date": "2026-11-21",
    "jinja expression": "{{ 1234567*3 }}",
    "jinja raw": "{% raw %}{{ 1234567*3 }}",
    "jinja end": "{% endraw %}{% endif %}{{ 1234567*3 }}",
    "jinja comment": "a {# gone? #} b",
    "python format": "{0} {name!r} %s %(x)d {",
    "f-string": "{1234567*3}",
    "newlines": "first\nsecond\r\nthird\n\n[tool.evil]\n",
    "unicode newlines": "a\x0bb\x0cc\x85d\u2028e\u2029f",
    "tabs and spaces": "\t a\t\tb  c ",
    "control characters": "bell\x07 escape\x1b[31m delete\x7f",
    "emoji": "🚀 👩‍👩‍👧‍👦 🏴‍☠️",
    "right to left": "שלום \u202eevil\u202c مرحبا",
    "accents": "Zoë Ångström, Straße, e\u0301",
    "byte order mark": "\ufeffstart",
    "markup": "</script><b>&amp;&lt;!-- x --> [a](b) ![c](d) **e** _f_ | ~~g~~",
    "heading": "# Title",
    "closing heading": "Team #",
    "numbered list": "1. First",
    "other numbered list": "2) Second",
    "shell": "$HOME ${HOME} $((1234567*3)) $(expr 1234567 '*' 3) `id` ; false & | > /dev/null !!",
    "make": "$(shell expr 1234567 '*' 3) $@ %: \\",
    "github expression": "${{ secrets.TOKEN }}",
    "very long": "Longest service name ever " * 400,
    "very long word": "x" * 5000,
}

#: Everything that the validator lets through.
EMAIL = '"a\'b\\c#{{1234567*3}}{%raw%}$HOME`id`:é🚀<>&"@example.com'


def answers_of(text: str) -> dict[str, str]:
    """The text wherever a text is asked for. How the package's name follows from it: tests/test_questions.py."""
    texts = {"project_name": text, "description": text, "author_name": text}
    return {**texts, "author_email": EMAIL, "package_slug": "service"}


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- every text in every place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*HOSTILE.values()], ids=[*HOSTILE])
def test_a_hostile_answer_stays_what_it_is(text: str, tmp_path: Path) -> None:
    """One test for all that one render shows, since rendering is what takes the time."""
    project = render(tmp_path / "project", answers_of(text), source=release())
    assert_stored_exactly(project, text)
    assert_everything_parses(project)
    assert_in_pyproject(project, text)
    assert one_line(text) in (project.folder / "LICENSE").read_text(encoding="utf-8")
    assert_nothing_was_evaluated(project)
    assert_ruff_is_content(project)
    assert_update_keeps_everything(project, text)


def assert_stored_exactly(project: Project, text: str) -> None:
    answers = read_answers(project.folder)
    expected = answers_of(text)
    assert {name: answers[name] for name in expected} == expected


def assert_everything_parses(project: Project) -> None:
    for path in files(project):
        source = path.read_text(encoding="utf-8")
        match path.suffix:
            case ".py":
                ast.parse(source, filename=str(path))
            case ".toml":
                tomllib.loads(source)
            case ".yml" | ".yaml":
                yaml.safe_load(source)


def assert_in_pyproject(project: Project, text: str) -> None:
    about = tomllib.loads((project.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert about["description"] == one_line(text)
    assert about["authors"] == [{"name": one_line(text), "email": EMAIL}]
    assert about["name"] == project.slug.replace("_", "-")


def assert_nothing_was_evaluated(project: Project) -> None:
    for path in files(project):
        assert EVALUATED not in path.read_text(encoding="utf-8"), path


def assert_ruff_is_content(project: Project) -> None:
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--no-cache", "--output-format=concise"], ["format", "--no-cache", "--diff"]):
        done = subprocess.run([*ruff, *command, "."], cwd=project.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def assert_update_keeps_everything(project: Project, text: str) -> None:
    original = project.folder.with_name("original")
    project.folder.rename(original)
    subprocess.run(["cp", "-a", original, project.folder], check=True)
    commit_all(project.folder)
    update(project.folder)
    assert_stored_exactly(project, text)
    assert not conflicts(project.folder)
    assert not difference(original, project.folder)


def files(project: Project) -> list[Path]:
    return [path for path in project.folder.rglob("*") if path.is_file() and ".git" not in path.parts]


# --- Markdown -----------------------------------------------------------------------------------------------------


@functools.cache
def includes() -> Any:
    """The macros of includes/quote.jinja."""
    with Worker(src_path=str(working_tree())) as worker:
        return worker.jinja_env.get_template("includes/quote.jinja").module


@pytest.mark.parametrize("text", [*HOSTILE.values()], ids=[*HOSTILE])
def test_markdown_shows_a_hostile_answer_as_text(text: str) -> None:
    assert shown(str(includes().markdown(text))) == one_line(text)


def test_the_readme_is_titled_with_a_hostile_answer(tmp_path: Path) -> None:
    project = render(tmp_path / "project", answers_of(HOSTILE["markup"]))
    title = (project.folder / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith("# ")
    assert shown(title.removeprefix("# ")) == one_line(HOSTILE["markup"])


def shown(markdown: str) -> str:
    """The text that a line of Markdown shows as heading or paragraph. Fails when there is markup in it."""
    markup = re.search(
        r"""
            (?<!\\)(?:\\\\)*[`*_<>\[\]|~]  # not escaped: after no or an even number of backslashes
            | ^([#+=-]|\d+[.)])             # begins a heading, a list, an underline
            | (^|\s)\#+$                   # closes a heading
            | &\#?\w+;
        """,
        markdown.replace("&amp;", "."),
        re.VERBOSE,
    )
    assert not markup, f"{markup[0]!r} is not escaped in {markdown!r}"
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown).replace("&amp;", "&")


# --- what becomes of it -------------------------------------------------------------------------------------------


def test_all_of_it_at_once_in_a_project_that_passes_its_own_tests(tmp_path: Path) -> None:
    text = " ".join(text for name, text in HOSTILE.items() if not name.startswith("very long"))
    project = install(render(tmp_path / "project", answers_of(text), source=release()))
    assert_in_pyproject(project, text)
    assert run_python(project, RUN_UNIT_TESTS, timeout_seconds=180) == 0


RUN_UNIT_TESTS = """
import sys
import pytest
status = pytest.main(["-q", "-p", "no:cacheprovider", "--ignore=tests/integration", "tests"])
if status:
    sys.exit(status)
print(int(status))
"""


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_blank_answers_leave_no_traces(empty: str, tmp_path: Path) -> None:
    answers = {"description": empty, "author_name": empty, "author_email": ""}
    project = render(tmp_path / "project", answers, source=release())
    assert_everything_parses(project)
    about = tomllib.loads((project.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "authors" not in about
    assert about["description"] == ""
    assert "the authors of My Service" in (project.folder / "LICENSE").read_text(encoding="utf-8")
    assert_ruff_is_content(project)


# --- the length of the package's name -----------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["a", "z", "a" * 40, "z" * 40], ids=["a", "z", "a x 40", "z x 40"])
@pytest.mark.parametrize(("broker", "others"), [*itertools.product(["redis", "rabbitmq"], [True, False])])
def test_code_is_clean_for_the_shortest_and_the_longest_name(
    slug: str, broker: str, others: bool, tmp_path: Path
) -> None:
    options = ("include_sqlalchemy", "include_aiocache", "include_periodic_tasks", "include_docker")
    answers = {"package_slug": slug, "broker": broker} | dict.fromkeys(options, others)
    assert_ruff_is_content(render(tmp_path / "project", answers))
