"""The renderer with many combinations: a synthetic template with 14 questions and 60 files."""

import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations as choose
from itertools import permutations, product
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from support.render import Renderer, Tree, read_tree
from support.space import Combination, Template, changes_of_an_answer, covering_set, read_space

TOOLS = ("flower", "prometheus", "opentelemetry", "sentry")
#: Questions without conditions, beside those that are written out below.
PLAIN = ("tables", "cache", "web", "units", "mail")
#: Which options the 60 bodies test: every two of twelve, then some threes.
OPTIONS = tuple(f"use_{name}" for name in (*PLAIN, "beat", "docker", "cluster", *TOOLS))
GROUPS = [*choose(OPTIONS[:10], 2)][:45] + [*choose(OPTIONS, 3)][:15]


def _derived(condition: str) -> dict[str, Any]:
    return {"type": "bool", "when": False, "default": f"{{{{ {condition} }}}}"}


QUESTIONS: dict[str, Any] = {
    "name": {"type": "str", "default": "Scale"},
    "broker": {"type": "str", "choices": {"Redis": "redis", "RabbitMQ": "rabbitmq"}, "default": "redis"},
    **{name: {"type": "bool", "default": False} for name in PLAIN},
    "periodic": {"type": "bool", "default": True},
    "scheduler": {
        "type": "str",
        "choices": {
            "File": "file",
            "Redis": "redbeat",
            # A choice that only some combinations have.
            "Tables": {"value": "database", "validator": "{% if not tables %}needs tables{% endif %}"},
        },
        "default": "file",
        "when": "{{ periodic }}",
    },
    "monitoring": {"type": "str", "multiselect": True, "choices": list(TOOLS), "default": "[]"},
    "docker": {"type": "bool", "default": True},
    "cluster": {"type": "bool", "default": False, "when": "{{ docker }}"},
    "replicas": {"type": "int", "choices": [1, 3], "default": 1, "when": "{{ cluster }}"},
    # A pair of answers that excludes each other.
    "edge": {
        "type": "bool",
        "default": False,
        "validator": "{% if edge and docker %}edge must be off with docker{% endif %}",
    },
    **{f"use_{name}": _derived(name) for name in PLAIN},
    "use_beat": _derived("periodic"),
    "use_docker": _derived("docker"),
    "use_cluster": _derived("docker and cluster"),
    **{f"use_{tool}": _derived(f"'{tool}' in monitoring") for tool in TOOLS},
}


def expected_answers() -> Iterator[dict[str, Any]]:
    """Compute the combinations again, without Copier or Jinja."""
    subsets = [list(some) for size in range(len(TOOLS) + 1) for some in choose(TOOLS, size)]
    for broker, plain, monitoring in product(("redis", "rabbitmq"), product((False, True), repeat=len(PLAIN)), subsets):
        first: dict[str, Any] = {"broker": broker, **dict(zip(PLAIN, plain, strict=True))}
        schedulers = ("file", "redbeat", "database") if first["tables"] else ("file", "redbeat")
        schedules = [{"periodic": False}, *({"periodic": True, "scheduler": each} for each in schedulers)]
        platforms: list[dict[str, Any]] = [
            {"docker": False, "edge": False},
            {"docker": False, "edge": True},
            {"docker": True, "cluster": False, "edge": False},
            {"docker": True, "cluster": True, "replicas": 1, "edge": False},
            {"docker": True, "cluster": True, "replicas": 3, "edge": False},
        ]
        for schedule, platform in product(schedules, platforms):
            yield {**first, **schedule, "monitoring": monitoring, **platform}


def write_template(root: Path) -> Path:
    settings = {
        "_subdirectory": "template",
        "_exclude": ["{% if use_cache %}*.tmp{% endif %}", "*.bak"],
        "_envops": {"undefined": "jinja2.StrictUndefined", "trim_blocks": True, "lstrip_blocks": True},
    }
    texts = {
        "copier.yml": yaml.safe_dump(settings | QUESTIONS, sort_keys=False),
        "includes/line.jinja": "{% macro line(text) %}= {{ text }}\n{% endmacro %}",
        "includes/footer.jinja": "{% if use_tables %}tables{% endif %}\n",
        "template/{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml }}",
        "template/verbatim.txt": "{{ not a template }}\n",
        "template/a.tmp": "excluded with cache\n",
        "template/a.bak": "excluded\n",
        "template/run.jinja": "#!/bin/sh\n",
        "template/{% if use_web %}web{% endif %}/{% if use_mail %}mail{% endif %}/{{ broker }}.txt": "both\n",
    }
    for number, group in enumerate(GROUPS):
        texts[f"template/{_file_name(number, group)}.jinja"] = _body(number, group)
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "template" / "run.jinja").chmod(0o755)
    return root


def _file_name(number: int, group: tuple[str, ...]) -> str:
    """Return the name of a file. Every third file exists only with its first option."""
    return f"{{% if {group[0]} %}}file{number}.txt{{% endif %}}" if number % 3 == 0 else f"file{number}.txt"


def _body(number: int, group: tuple[str, ...]) -> str:
    lines = "".join(f"{{% if {option} %}}\n{{{{ line('{option}') }}}}{{% endif %}}\n" for option in group)
    footer = "{% include 'includes/footer.jinja' %}" if number % 10 == 0 else ""
    return f"{{% from 'includes/line.jinja' import line %}}\nfile {number}\n{lines}{footer}"


def expected_contents() -> int:
    """Compute the number of distinct files of the synthetic template from the answers."""
    settings = {frozenset(_options_on(answers)) for answers in expected_answers()}
    total = 0
    for number, group in enumerate(GROUPS):
        mentioned = {*group, "use_tables"} if number % 10 == 0 else set(group)
        total += len({on & mentioned for on in settings if number % 3 or group[0] in on})
    # The answers file, verbatim.txt, a.tmp, run, and two brokers below web/mail/.
    return total + 6


def _options_on(answers: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"use_{name}" for name in (*PLAIN, "docker", "cluster") if answers.get(name))
    yield from (f"use_{tool}" for tool in answers["monitoring"])
    if answers["periodic"]:
        yield "use_beat"


@dataclass(frozen=True)
class Scale:
    template: Template
    combinations: list[Combination]
    renderer: Renderer
    trees: list[Tree]


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory, summary: list[str]) -> Scale:
    template = Template(write_template(tmp_path_factory.mktemp("synthetic")))
    started = time.perf_counter()
    combinations = read_space(template)
    enumerated = time.perf_counter()
    renderer = Renderer(template, combinations)
    trees = [renderer.render(combination) for combination in combinations]
    rendered = time.perf_counter()
    summary.append(
        f"render, synthetic: {len(trees)} combinations enumerated in {enumerated - started:.1f} seconds, "
        f"{len(renderer.files)} distinct files rendered in {rendered - enumerated:.1f} seconds"
    )
    return Scale(template, combinations, renderer, trees)


def _frozen(answers: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((name, repr(value)) for name, value in answers.items())


def test_every_combination_occurs_once(scale: Scale) -> None:
    found = [_frozen(combination.answers) for combination in scale.combinations]
    assert len(found) >= 16_000
    assert len(found) == len(set(found))
    assert set(found) == {_frozen(answers) for answers in expected_answers()}


def test_distinct_contents_are_few(scale: Scale) -> None:
    assert len(scale.renderer.files) == expected_contents()


def test_a_sample_is_what_copier_writes(scale: Scale, tmp_path: Path) -> None:
    sample = random.Random(2026).sample(range(len(scale.combinations)), 10)
    for number in sample:
        combination, target = scale.combinations[number], tmp_path / str(number)
        copier.run_copy(str(scale.template.root), target, data=combination.answers, defaults=True, quiet=True)
        written, rendered = read_tree(target), scale.trees[number]
        assert written.folders == rendered.folders, combination
        assert _contents(written) == _contents(rendered), combination
        answers = yaml.safe_load(written.files[".copier-answers.yml"].data)
        assert {name: answers[name] for name in answers if not name.startswith("_")} == combination.stored


def _contents(tree: Tree) -> dict[str, tuple[bytes, bool]]:
    answers_file = ".copier-answers.yml"
    assert answers_file in tree.files
    return {path: (file.data, file.executable) for path, file in tree.files.items() if path != answers_file}


@pytest.mark.parametrize("strength", [2, 3])
def test_a_covering_set_covers(scale: Scale, strength: int, summary: list[str]) -> None:
    # Every fifth combination: a space without structure, which a set made from its description would get wrong.
    combinations = scale.combinations[::5]
    chosen = covering_set(combinations, strength)
    summary.append(f"render, synthetic: {len(chosen)} of {len(combinations)} combinations cover strength {strength}")
    assert _interactions(chosen, strength) == _interactions(combinations, strength)
    assert len(chosen) < 100
    assert covering_set(combinations, strength) == chosen


def _interactions(combinations: list[Combination], strength: int) -> set[tuple[tuple[str, str], ...]]:
    """Return all occurring answers to `strength` options together, computed without the covering set's bits."""
    names = [name for name in QUESTIONS if any(name in combination.answers for combination in combinations)]
    found = set[tuple[tuple[str, str], ...]]()
    for combination in combinations:
        answers = combination.answers
        row = [(name, str(answers.get(name))) for name in names if name != "monitoring"]
        row += [(tool, str(tool in answers["monitoring"])) for tool in TOOLS]
        found.update(choose(row, strength))
    return found


def test_every_change_of_one_answer_is_found(tmp_path: Path) -> None:
    """This includes questions that depend on the changed one."""
    template = Template(write_template(tmp_path))
    changes = changes_of_an_answer(template, read_space(template, {"broker", "periodic", "scheduler"}))
    schedules = ("periodic=False", "periodic=True scheduler=file", "periodic=True scheduler=redbeat")
    brokers = ("broker=redis", "broker=rabbitmq")
    expected = {
        *(
            (f"{before} {schedule}", f"{after} {schedule}")
            for schedule in schedules
            for before, after in permutations(brokers, 2)
        ),
        *(
            (f"{broker} {before}", f"{broker} {after}")
            for broker in brokers
            for before, after in permutations(schedules, 2)
        ),
    }
    assert {(str(before), str(after)) for before, after in changes} == expected


def test_a_file_that_fails_to_render_is_named(tmp_path: Path) -> None:
    root = write_template(tmp_path)
    (root / "template" / "wrong.txt.jinja").write_text("{{ misspelt }}\n")
    template = Template(root)
    combinations = read_space(template, {"broker"})
    with pytest.raises(ValueError, match=r"^wrong\.txt\.jinja: 'misspelt' is undefined \(as in: broker=redis\)$"):
        Renderer(template, combinations).render(combinations[0])


def test_two_sources_of_one_file_are_refused(tmp_path: Path) -> None:
    root = write_template(tmp_path)
    (root / "template" / "{{ 'verbatim' }}.txt").write_text("again\n")
    template = Template(root)
    combinations = read_space(template, {"broker"})
    with pytest.raises(ValueError, match=r"verbatim\.txt is made by template/.*, too"):
        Renderer(template, combinations).render(combinations[0])
