"""Answers are data: any text of the user appears in the project as text. It breaks nothing and isn't executed.

Copier renders a project for each hostile answer. The tests parse the files that contain the answer, and compare all
other files with those of a harmless answer. `copier update` reads the stored answers in the same way as these tests, so
it renders the same files. Two projects verify this.
"""

import functools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from copier._main import Worker

from support.checks import ruff_problems
from support.history import ANSWERS_FILE, conflicts, contents, difference, read_answers, release, update
from support.project import Project, commit_all, render, working_tree
from support.render import Renderer
from support.space import Template, read_space

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
    """Return answers with this text for each text question. test_questions.py tests derived package names."""
    texts = {"project_name": text, "description": text, "author_name": text}
    return {**texts, "author_email": EMAIL, "package_slug": "service"}


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- every text in every place ------------------------------------------------------------------------------------

#: The files in which texts stand. Add a file only together with a check that reads it as its readers do.
WITH_TEXTS = {ANSWERS_FILE, "AGENTS.md", "LICENSE", "README.md", "pyproject.toml"}


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return render(tmp_path_factory.mktemp("harmless") / "project", answers_of("Harmless"), source=release())


@pytest.mark.parametrize("text", [*HOSTILE.values()], ids=[*HOSTILE])
def test_a_hostile_answer_stays_text(text: str, harmless: Project, tmp_path: Path) -> None:
    """One test checks everything about a render, because rendering takes most of the time."""
    project = render(tmp_path / "project", answers_of(text), source=release())
    assert_stored_exactly(project, text)
    assert_in_pyproject(project, text)
    assert_in_markdown(project, text)
    assert one_line(text) in (project.folder / "LICENSE").read_text(encoding="utf-8")
    assert_nothing_was_evaluated(project)
    assert_the_rest_is_the_same(harmless, project)


def assert_stored_exactly(project: Project, text: str) -> None:
    answers = read_answers(project.folder)
    expected = answers_of(text)
    assert {name: answers[name] for name in expected} == expected


def assert_in_pyproject(project: Project, text: str) -> None:
    about = read_pyproject(project)["project"]
    assert about["description"] == one_line(text)
    assert about["authors"] == [{"name": one_line(text), "email": EMAIL}]
    assert about["name"] == project.slug.replace("_", "-")


def read_pyproject(project: Project) -> dict[str, Any]:
    return tomllib.loads((project.folder / "pyproject.toml").read_text(encoding="utf-8"))


def assert_in_markdown(project: Project, text: str) -> None:
    """Check that the titles of README.md and AGENTS.md show the text without markup."""
    for name in ("README.md", "AGENTS.md"):
        lines = (project.folder / name).read_text(encoding="utf-8").splitlines()
        title = next(line for line in lines if line.startswith("# "))
        assert one_line(text) in shown(title.removeprefix("# "))


def assert_nothing_was_evaluated(project: Project) -> None:
    for name in WITH_TEXTS:
        assert EVALUATED not in (project.folder / name).read_text(encoding="utf-8"), name


def assert_the_rest_is_the_same(harmless: Project, project: Project) -> None:
    expected, found = contents(harmless.folder), contents(project.folder)
    assert {path for path in expected | found if expected.get(path) != found.get(path)} <= WITH_TEXTS
    texts = ("description", "authors")
    settings, other_settings = read_pyproject(harmless), read_pyproject(project)
    for each in (settings, other_settings):
        each["project"] = {name: value for name, value in each["project"].items() if name not in texts}
    assert settings == other_settings


@pytest.mark.parametrize(
    "text",
    [" ".join(text for name, text in HOSTILE.items() if not name.startswith("very long")), HOSTILE["very long"]],
    ids=["all at once", "very long"],
)
def test_an_update_keeps_a_hostile_answer(text: str, tmp_path: Path) -> None:
    original = render(tmp_path / "original", answers_of(text), source=release())
    project = render(tmp_path / "project", answers_of(text), source=release())
    commit_all(project.folder)
    update(project.folder)
    assert_stored_exactly(project, text)
    assert not conflicts(project.folder)
    assert not difference(original.folder, project.folder)


# --- Markdown -----------------------------------------------------------------------------------------------------


@functools.cache
def includes() -> Any:
    """The macros of includes/quote.jinja."""
    with Worker(src_path=str(working_tree())) as worker:
        return worker.jinja_env.get_template("includes/quote.jinja").module


@pytest.mark.parametrize("text", [*HOSTILE.values()], ids=[*HOSTILE])
def test_markdown_shows_a_hostile_answer_as_text(text: str) -> None:
    assert shown(str(includes().markdown(text))) == one_line(text)


def shown(markdown: str) -> str:
    """Return the text of a heading or paragraph in Markdown. Fail if it contains markup."""
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


# --- blanks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_blank_answers_leave_nothing_behind(empty: str, harmless: Project, tmp_path: Path) -> None:
    answers = {"description": empty, "author_name": empty, "author_email": "", "package_slug": "service"}
    project = render(tmp_path / "project", answers, source=release())
    about = read_pyproject(project)["project"]
    assert "authors" not in about
    assert about["description"] == ""
    assert "the authors of My Service" in (project.folder / "LICENSE").read_text(encoding="utf-8")
    assert_the_rest_is_the_same(harmless, project)


# --- the length of the package's name -----------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["a", "z", "a" * 40, "z" * 40], ids=["a", "z", "a x 40", "z x 40"])
def test_code_is_clean_for_the_shortest_and_the_longest_name(slug: str, tmp_path: Path) -> None:
    """In every combination, because the length of lines and the order of imports depend on the name."""
    template = Template(working_tree())
    combinations = read_space(template, given={"package_slug": slug})
    renderer = Renderer(template, combinations)
    trees = [(renderer.render(combination), str(combination)) for combination in combinations]
    assert all(f"{slug}/celery.py" in tree.files for tree, _ in trees)
    problems = "\n".join(ruff_problems(trees, tmp_path))
    assert not problems, problems
