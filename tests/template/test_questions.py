"""Questions, answers that are derived from others, and messages about wrong answers."""

import functools
import itertools
import keyword
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier._main import Worker
from copier.errors import UserMessageError

from support.environment import of_a_package_client, of_a_user
from support.history import (
    ANSWERS_FILE,
    asked_questions,
    call_copier,
    difference,
    git,
    read_answers,
    read_config,
    read_questions,
    reasons_to_ask_for_trust,
    release,
    run_copier,
    variables_of_copier,
)
from support.project import REPOSITORY, render, working_tree
from support.terminal import Terminal

#: The answers of a user who only ever presses Enter, as docs/options.md promises them.
DEFAULTS = {
    "project_name": "My Service",
    "package_slug": "my_service",
    "description": "Background tasks on Celery.",
    "author_name": "",
    "author_email": "",
    "license": "MIT",
    "python_version": "3.11",
    "broker": "redis",
    "include_sqlalchemy": False,
    "include_aiocache": False,
    "include_periodic_tasks": True,
    "include_fastapi": False,
    "monitoring": [],
    "include_docker": True,
    "include_kubernetes": False,
    "include_systemd": False,
    "ci": "github",
}


def resolve(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answers as Copier resolves them, with defaults and derived answers, without rendering.

    Raises UserMessageError if one is refused.
    """
    with Worker(src_path=str(working_tree()), data=dict(answers), defaults=True, quiet=True) as worker:
        worker._ask()
        return dict(worker.answers.combined)


@functools.cache
def reserved_names() -> frozenset[str]:
    with Worker(src_path=str(working_tree())) as worker:
        names = worker.jinja_env.get_template("includes/reserved.jinja").module.reserved  # type: ignore[attr-defined]
    return frozenset(names)


# --- defaults -----------------------------------------------------------------------------------------------------


def test_default_answers_are_the_documented_ones(tmp_path: Path) -> None:
    done = run_copier("copy", "--defaults", release(), "project", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = yaml.safe_load((tmp_path / "project" / ANSWERS_FILE).read_text(encoding="utf-8"))
    assert {"_commit": stored.pop("_commit"), "_src_path": stored.pop("_src_path")} == {
        "_commit": git(release(), "describe", "--tags"),
        "_src_path": str(release()),
    }
    assert stored == DEFAULTS
    # Nothing of what support/fast_copier.py leaves out is missed.
    in_process = render(tmp_path / "in process", source=release())
    assert not difference(tmp_path / "project", in_process.folder)


def test_every_question_that_is_asked_has_a_documented_default() -> None:
    hidden = {name for name, about in read_questions().items() if about.get("when") is False}
    assert not hidden & DEFAULTS.keys()
    assert read_questions().keys() - hidden >= DEFAULTS.keys()


def test_every_question_has_a_default_and_every_asked_one_an_explanation() -> None:
    assert [name for name, about in read_questions().items() if "default" not in about] == []
    assert [name for name, about in asked_questions().items() if not about.get("help")] == []


# --- the name of the package --------------------------------------------------------------------------------------

SLUGS = {
    "My Service": "my_service",
    "  Payments  ": "payments",
    "ORDERS": "orders",
    "e-mail & SMS (v2)": "e_mail_sms_v2",
    "2nd Try": "nd_try",
    "123": "my_service",
    "日本語": "my_service",
    "Привет": "my_service",
    "🚀": "my_service",
    "🚀 Rocket 🚀": "rocket",
    "Crème Brûlée": "cr_me_br_l_e",
    "İstanbul": "i_stanbul",
    "...": "my_service",
    "__init__": "init",
    "-_-x-_-": "x",
    "class": "class_service",
    "Match": "match_service",
    "None": "none_service",
    "email": "email_service",
    "Celery": "celery_app",
    "Celery Service": "celery_service_app",
    "Runtime": "runtime_service",
    "Tests": "tests_service",
    "a": "a",
    "line\nbreak\tand tab": "line_break_and_tab",
    "{{ 7*7 }}": "my_service",
    "a" * 200: "a" * 32,
    "a" * 31 + " b": "a" * 31,
    "x" * 10_000 + " email": "x" * 32,
}


@pytest.mark.parametrize(("name", "slug"), [*SLUGS.items()], ids=lambda text: repr(text)[:30])
def test_the_package_is_named_after_the_project(name: str, slug: str) -> None:
    assert resolve({"project_name": name})["package_slug"] == slug


def assert_usable(slug: str) -> None:
    """Check a name by Python's rules, independently of the validator."""
    assert slug.isidentifier()
    assert slug.isascii()
    assert slug == slug.lower()
    assert not keyword.iskeyword(slug)
    assert not keyword.issoftkeyword(slug)
    assert slug not in sys.stdlib_module_names
    assert len(slug) <= 40
    assert not slug.endswith("_")


def test_the_package_name_is_usable_for_any_project_name() -> None:
    """`resolve` also raises if the validator refuses the default."""
    alphabet = "aZ09_- .'\"\\/{}%#:éß漢😀\u202e\n\t"
    chance = random.Random(20261121)
    words = [*sorted(reserved_names()), *keyword.kwlist, "_", "9", *alphabet]
    for _ in range(150):
        name = "".join(chance.choice(words) for _ in range(chance.randint(1, 12)))
        if name.strip():
            assert_usable(resolve({"project_name": name})["package_slug"])


@pytest.mark.parametrize("slug", ["a", "x9", "a" * 40, "my_service", "a__b"])
def test_a_usable_name_is_accepted(slug: str) -> None:
    assert resolve({"package_slug": slug})["package_slug"] == slug


# --- reserved names -----------------------------------------------------------------------------------------------


def test_the_modules_and_keywords_of_this_python_are_reserved() -> None:
    modules = {name for name in sys.stdlib_module_names if re.fullmatch(r"[a-z][a-z0-9_]*", name)}
    words = {word.lower() for word in [*keyword.kwlist, *keyword.softkwlist] if word != "_"}
    assert modules | words <= reserved_names()


def test_the_dependencies_of_a_project_are_reserved(tmp_path: Path) -> None:
    folder = render(tmp_path / "project").folder
    project, library = (
        tomllib.loads((folder / path).read_text(encoding="utf-8"))
        for path in ("pyproject.toml", "runtime/pyproject.toml")
    )
    needed = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    needed += library["project"]["dependencies"]
    needed += itertools.chain.from_iterable(library["project"]["optional-dependencies"].values())
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in needed}
    assert len(names) > 10
    assert {name for name in names if not import_names(name) <= reserved_names()} == set()


#: What the dependencies that have no module of their own name provide. An empty set can't be in the way.
IMPORT_NAMES = {"celery-types": set[str](), "pre-commit": {"pre_commit"}, "python-dotenv": {"dotenv"}}


def import_names(distribution: str) -> set[str]:
    if distribution.startswith("opentelemetry-"):
        return {"opentelemetry"}
    return IMPORT_NAMES.get(distribution, {distribution.lower().replace("-", "_")})


def test_the_folders_of_a_project_are_reserved() -> None:
    names = {"tests", "test", "docs", "src", "deploy", "migrations", "runtime", "conftest", "celeryconfig"}
    assert names <= reserved_names()


def test_the_rendered_folders_next_to_the_package_are_reserved(tmp_path: Path) -> None:
    project = render(tmp_path / "project")
    folders = {path.name for path in project.folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert folders - {project.slug}
    assert folders - {project.slug} <= reserved_names()


# --- wrong answers ------------------------------------------------------------------------------------------------

#: What follows the name of the question.
EMPTY_NAME = "must not be empty"
LONG_SLUG = "must have at most 40 characters"
BAD_SLUG = "must be a-z, 0-9 and _, a letter first, such as my_service"
BAD_END = "must not end with an underscore"
BAD_EMAIL = "must be empty, or have one @ and no spaces: ada@example.com"
BAD_TEXT = "must be text that UTF-8 can hold"
YES_OR_NO = "must be yes or no"

LICENSES = ["MIT", "Apache-2.0", "BSD-3-Clause", "GPL-3.0-or-later", "Proprietary"]


def taken(slug: str, free: str = "") -> str:
    return f"is taken by other code; try {free or f'{slug}_service'}"


def not_among(*choices: str) -> str:
    return f"must be one of {', '.join(choices)}"


RULES = [
    *[("project_name", name, EMPTY_NAME) for name in ("", "   ", "\t\n")],
    *[("package_slug", name, taken(name)) for name in ("class", "match", "none", "true")],
    *[("package_slug", name, taken(name)) for name in ("email", "redis", "runtime", "tests")],
    ("package_slug", "celery", taken("celery", "celery_app")),
    ("package_slug", "celery_service", taken("celery_service", "celery_service_app")),
    *[
        ("package_slug", name, BAD_SLUG)
        for name in ("", "MyService", "my-service", "1st", "_x", "mein_büro", "a.b", "x y", "x\n", "a\ud800")
    ],
    ("package_slug", "my_service_", BAD_END),
    ("package_slug", "a" * 41, LONG_SLUG),
    *[
        ("author_email", address, BAD_EMAIL)
        for address in ("ada", "ada@", "@example.com", "ada lovelace@example.com", "a@b@c", " ", "ada@example.com\n")
    ],
    # Half of a character that takes two in UTF-16, and how Python reads a byte that isn't UTF-8.
    *[
        (question, f"a@{half}", BAD_TEXT)
        for question in ("project_name", "description", "author_name", "author_email")
        for half in ("\ud83d", "\udc80")
    ],
    ("license", "WTFPL", not_among(*LICENSES)),
    ("python_version", "3.10", not_among("3.11", "3.12", "3.13", "3.14")),
    ("broker", "kafka", not_among("redis", "rabbitmq")),
    ("ci", "jenkins", not_among("github", "gitlab", "none")),
    ("include_sqlalchemy", "maybe", YES_OR_NO),
    ("include_aiocache", "maybe", YES_OR_NO),
    ("include_periodic_tasks", "maybe", YES_OR_NO),
    ("include_docker", "maybe", YES_OR_NO),
    ("include_fastapi", "maybe", YES_OR_NO),
    ("include_kubernetes", "maybe", YES_OR_NO),
    ("include_systemd", "maybe", YES_OR_NO),
    *[
        ("monitoring", answer, "must be a list such as [flower], or [] for none")
        for answer in ("flower", "yes", "{a: 1}", "a: [b", "[flower")
    ],
    ("monitoring", "[nagios]", "must be a list of some of flower, prometheus, opentelemetry, sentry"),
]
#: With what Copier makes of our sentence: see `bad_answer` in copier.yml.
WRONG = [(question, answer, f"'None' has no attribute {f'{question} {rule}'!r}") for question, answer, rule in RULES]


def ids_of(cases: list[tuple[str, str, str]]) -> list[str]:
    return [f"{question}={answer[:20]!r}" for question, answer, _ in cases]


@pytest.mark.parametrize(("question", "answer", "message"), WRONG, ids=ids_of(WRONG))
def test_a_wrong_answer_is_refused_in_one_line(question: str, answer: str, message: str) -> None:
    with pytest.raises(UserMessageError, match=re.escape(message)) as refusal:
        resolve({question: answer})
    assert str(refusal.value) == message


#: One for each way in which Copier comes to refuse an answer: the others differ in the message only.
ON_THE_COMMAND_LINE = [
    next(case for case in WRONG if case[:2] == chosen)
    for chosen in [
        ("project_name", ""),
        ("package_slug", "class"),
        ("package_slug", "MyService"),
        ("author_email", "ada"),
        ("license", "WTFPL"),
        ("python_version", "3.10"),
        ("broker", "kafka"),
        ("include_periodic_tasks", "maybe"),
    ]
]


@pytest.mark.parametrize(("question", "answer", "message"), ON_THE_COMMAND_LINE, ids=ids_of(ON_THE_COMMAND_LINE))
def test_a_wrong_answer_on_the_command_line_ends_with_the_message_and_writes_nothing(
    question: str, answer: str, message: str, tmp_path: Path
) -> None:
    done = call_copier("copy", "--defaults", f"--data={question}={answer}", release(), "project", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"{message}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_answer_ends_a_process_with_the_message_only(tmp_path: Path) -> None:
    done = run_copier("copy", "--defaults", "--data=broker=kafka", release(), "project", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "'None' has no attribute 'broker must be one of redis, rabbitmq'\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (r'description: "Half a smile: \ud83d"', f"description {BAD_TEXT}"),
        ("package_slug: 5", f"package_slug {BAD_SLUG}"),
        ("author_email: 5", f"author_email {BAD_EMAIL}"),
    ],
)
def test_a_wrong_answer_in_a_data_file_ends_with_the_message_and_writes_nothing(
    line: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "answers.yml").write_text(f"{line}\n", encoding="utf-8")
    done = call_copier("copy", "--defaults", "--data-file=answers.yml", release(), "project", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"'None' has no attribute {says!r}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["answers.yml"]


def test_every_answer_that_can_be_wrong_is_checked_before_copier_checks_it() -> None:
    """The list in `bad_answer` repeats the questions. It must be complete."""
    config = yaml.safe_load((REPOSITORY / "copier.yml").read_text(encoding="utf-8"))
    questions = {name: body for name, body in config.items() if not name.startswith("_")}
    checked = {
        name
        for name, body in questions.items()
        if body.get("when") is not False and ("validator" in body or "choices" in body or body["type"] == "bool")
    }
    assert checked == {question for question, _, _ in WRONG}


CLEAR_LINE = "\x15"


@pytest.fixture
def questionnaire(tmp_path: Path) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "copier", "copy", str(release()), "project"]
    with Terminal(*command, cwd=tmp_path, env=of_a_user(variables_of_copier())) as terminal:
        yield terminal


#: Copier cuts lines off at the border of the terminal.
COLUMNS = 60


def test_a_narrow_terminal_shows_every_question_in_full(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "copier", "copy", str(release()), "project"]
    with Terminal(*command, cwd=tmp_path, env=of_a_user(variables_of_copier()), columns=COLUMNS) as terminal:
        for name, about in asked_questions().items():
            if name != "project_name":
                terminal.type("\r")
            terminal.expect(about["help"])
            for label in about.get("choices", ()):
                terminal.expect(str(label))
        terminal.type("\x03")
        terminal.end()


def test_messages_of_validators_fit_into_a_narrow_terminal() -> None:
    """Copier puts 46 columns of its own before it."""
    at_the_prompt = {rule for question, _, rule in RULES if "validator" in asked_questions()[question]}
    assert len(at_the_prompt) > 5
    for name in reserved_names():
        with pytest.raises(UserMessageError) as refusal:
            resolve({"package_slug": name})
        at_the_prompt.add(str(refusal.value).partition("package_slug ")[2].rstrip("'"))
    assert [rule for rule in at_the_prompt if len(rule) > COLUMNS] == []


# The terminal gets only what changes on the screen, so each message is looked for where nothing like it stood before.


def test_the_prompt_shows_why_a_name_is_refused_and_writes_nothing(questionnaire: Terminal, tmp_path: Path) -> None:
    questionnaire.expect("Name of the service")
    questionnaire.type(f"{CLEAR_LINE}\r")
    questionnaire.expect(EMPTY_NAME)
    questionnaire.type("\x03")
    assert "Traceback" not in questionnaire.expect("Execution stopped by user")
    assert questionnaire.end() == 1
    assert list(tmp_path.iterdir()) == []


def test_the_prompt_offers_a_usable_name_and_asks_again_for_a_taken_one(questionnaire: Terminal) -> None:
    questionnaire.expect("Name of the service")
    questionnaire.type(f"{CLEAR_LINE}Email\r")
    questionnaire.expect("Name of the Python package")
    questionnaire.expect("email_service")
    questionnaire.type(f"{CLEAR_LINE}email\r")
    questionnaire.expect(taken("email"))
    questionnaire.type(f"{CLEAR_LINE}e_mail\r")
    assert "Traceback" not in questionnaire.expect("What the service does")


# --- trust --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "file://{}", "git+file://{}"], ids=["path", "file", "git+file"])
def test_copying_needs_no_trust(form: str, tmp_path: Path) -> None:
    # Copier takes a file: URL for a repository by its .git suffix only.
    source = tmp_path / "template.git"
    git(tmp_path, "clone", "-q", release(), source)
    done = call_copier("copy", "--defaults", form.format(source), "project", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "project" / "pyproject.toml").exists()


def test_the_template_does_not_make_copier_ask_for_trust() -> None:
    assert reasons_to_ask_for_trust(read_config()) == []


@pytest.mark.parametrize(
    "config",
    [
        {"_tasks": []},
        {"_jinja_extensions": ["jinja2.ext.do"]},
        {"_migrations": ["touch x"]},
        {"_migrations": [{"version": "v1.0.0", "command": "true"}, {"command": "true", "when": False}]},
    ],
)
def test_the_policy_finds_what_makes_copier_ask_for_trust(config: dict[str, Any]) -> None:
    assert len(reasons_to_ask_for_trust(config)) == 1


def test_the_policy_allows_versioned_migrations() -> None:
    assert reasons_to_ask_for_trust({"_migrations": [{"version": "v1.0.0", "command": "true"}]}) == []


# --- after the copy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beat", [True, False])
def test_the_message_after_the_copy_names_the_next_commands(beat: bool, tmp_path: Path) -> None:
    answers = ["--data=project_name= Order  desk ", f"--data=include_periodic_tasks={beat}"]
    done = call_copier("copy", "--defaults", *answers, release(), "order desk/service", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stderr.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("cd "))
    # What stands there works in a shell, in which the folder has a space.
    entered = subprocess.run(
        ["sh", "-c", f"{lines[start]} && pwd"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert entered.stdout.strip() == str(tmp_path / "order desk/service")
    dev, test = lines[start + 1 : start + 3]
    assert re.fullmatch(r"make dev +# worker( and beat)?, .*", dev)
    assert (" and beat" in dev) == beat
    assert test == "make test"
    makefile = (tmp_path / "order desk/service/Makefile").read_text(encoding="utf-8")
    assert {"dev", "test"} <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


# --- Copier's version ---------------------------------------------------------------------------------------------


def test_the_lowest_version_of_copier_renders_the_same(tmp_path: Path) -> None:
    """The lowest version in copier.yml, which uv installs."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv, "uv is needed to run another version of Copier"
    version = read_config()["_min_copier_version"]
    command = [uv, "tool", "run", "-q", "--python", sys.executable, f"copier@{version}"]
    lowest = subprocess.run(
        [*command, "copy", "--defaults", "--data=project_name=Über 9", str(release()), "lowest"],
        cwd=tmp_path,
        env=of_a_package_client(variables_of_copier()),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert lowest.returncode == 0, lowest.stderr[-1000:]
    newest = render(tmp_path / "newest", {"project_name": "Über 9"}, source=release())
    assert not difference(newest.folder, tmp_path / "lowest")


# --- examples -----------------------------------------------------------------------------------------------------

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yml"))


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"minimal", "rabbitmq", "full"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_renders_and_answers_only_what_is_asked(example: Path, tmp_path: Path) -> None:
    answers = yaml.safe_load(example.read_text(encoding="utf-8"))
    assert answers.keys() <= asked_questions().keys()
    done = call_copier("copy", "--data-file", example, "--defaults", release(), "project", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # An answer to a question that isn't asked would be missing here.
    assert answers.items() <= read_answers(tmp_path / "project").items()


def test_the_full_example_has_every_option_on() -> None:
    full = yaml.safe_load((REPOSITORY / "examples/full.yml").read_text(encoding="utf-8"))
    options = {name: about for name, about in asked_questions().items() if about["type"] == "bool"}
    assert options
    assert {name for name in options if full.get(name) is not True} == set()
    several = {name for name, about in asked_questions().items() if about.get("multiselect")}
    assert {name for name in several if not full.get(name)} == set()


def test_the_minimal_example_has_every_option_off() -> None:
    minimal = {**DEFAULTS, **yaml.safe_load((REPOSITORY / "examples/minimal.yml").read_text(encoding="utf-8"))}
    assert {name for name, about in asked_questions().items() if about["type"] == "bool" and minimal.get(name)} == set()
