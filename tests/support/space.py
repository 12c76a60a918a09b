"""The feature space: every answerable combination of the questions from `broker` down.

The questions are evaluated by Copier's own code, once for each distinct set of the variables that they mention, so that
16,000 combinations cost little more than a dozen. Text questions, and those before `broker`, keep their defaults.
"""

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from copier._main import Worker
from copier._types import MISSING as NO_DEFAULT
from copier._user_data import AnswersMap, Question
from jinja2 import meta

FIRST_QUESTION = "broker"
#: What Copier evaluates before it has an answer. `help` and the like are only shown.
EVALUATED = ("type", "choices", "multiselect", "default", "validator", "when", "ask")
#: The code of a variable that has no value: a hidden question without a default.
MISSING = -1


class Template:
    """A template in a folder, read with Copier's own environment. The folder must not be a git repository."""

    def __init__(self, root: Path) -> None:
        if (root / ".git").exists():
            # Copier would read its latest tag instead of the files.
            raise ValueError(f"{root} is a git repository: copy the template first")
        self.root = root
        # The worker only reads; nothing is ever written to its destination.
        self.worker = Worker(src_path=str(root), dst_path=Path("unused"), defaults=True)
        self.env = self.worker.jinja_env
        self.questions: Mapping[str, Mapping[str, Any]] = self.worker.template.questions_data
        self.folder = root / self.worker.template.subdirectory
        self.suffix = self.worker.template.templates_suffix
        self.answers_file = str(self.worker.template.answers_relpath)
        self.mentions = cache(self._mentions)
        self.decides_on = cache(self._decides_on)

    def _mentions(self, source: str) -> frozenset[str]:
        """The variables that `source`, and whatever it imports or includes, takes from the context."""
        ast = self.env.parse(source)
        found = meta.find_undeclared_variables(ast) - self.env.globals.keys()
        for name in meta.find_referenced_templates(ast):
            # A name that is computed may be any of them. To take too many variables costs time only.
            for path in [self.root / name] if name else sorted(self.root.glob("includes/**/*")):
                if path.is_file():
                    found |= self.mentions(path.read_text())
        return frozenset(found)

    def _decides_on(self, name: str) -> frozenset[str]:
        """The questions that depend on another answer: whether they are asked, and their choices."""
        found = {name}
        for question, details in self.questions.items():
            sources = _strings([details.get(key) for key in EVALUATED])
            if any(self.mentions(source) & found for source in sources):
                found.add(question)
        return frozenset(found - {name})


class Vocabulary:
    """The distinct values of each variable, numbered, so that contexts are tuples of small integers."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.index = {name: index for index, name in enumerate(names)}
        self.values: list[list[Any]] = [[] for _ in names]
        self._codes: list[dict[str, int]] = [{} for _ in names]

    def code(self, index: int, value: Any) -> int:
        # By `repr`, because lists can't be keys, and because True == 1.
        known = self._codes[index]
        code = known.setdefault(repr(value), len(known))
        if code == len(self.values[index]):
            self.values[index].append(value)
        return code

    def projection(self, names: Iterable[str]) -> Callable[[Sequence[int]], Hashable]:
        """A function from codes to a key that is equal where the values of `names` are. Other names are ignored."""
        indices = sorted(self.index[name] for name in set(names) & self.index.keys())
        return itemgetter(*indices) if indices else lambda _: ()

    def context(self, codes: Sequence[int]) -> dict[str, Any]:
        return {
            name: values[code] for name, values, code in zip(self.names, self.values, codes, strict=False) if code >= 0
        }


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """One way to answer all questions."""

    vocabulary: Vocabulary
    codes: tuple[int, ...]
    #: The questions of the feature space that are asked, and of all questions those whose answers Copier stores.
    varied: tuple[int, ...]
    asked: tuple[int, ...]

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.answers.items())

    def _select(self, indices: Iterable[int]) -> dict[str, Any]:
        names, values = self.vocabulary.names, self.vocabulary.values
        return {names[i]: values[i][self.codes[i]] for i in indices}

    @property
    def answers(self) -> dict[str, Any]:
        """What to pass to Copier as data. Never holds a question that isn't asked: Copier would believe the answer."""
        return self._select(self.varied)

    @property
    def stored(self) -> dict[str, Any]:
        """What Copier writes to the answers file."""
        return self._select(self.asked)

    @property
    def context(self) -> dict[str, Any]:
        """What templates see: answers, defaults and derived values."""
        return self.vocabulary.context(self.codes)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The result of a question in one context."""

    asked: bool
    varied: bool
    codes: tuple[int, ...]


class _Asker:
    """One question, evaluated once for each distinct set of the variables that it mentions."""

    def __init__(self, template: Template, vocabulary: Vocabulary, name: str, may_vary: bool) -> None:
        self.template = template
        self.vocabulary = vocabulary
        self.name = name
        self.index = vocabulary.index[name]
        self.may_vary = may_vary
        self.details = template.questions[name]
        sources = _strings([self.details.get(key) for key in EVALUATED])
        mentioned = frozenset[str]().union(*map(template.mentions, sources))
        # Its own name is what the validator is given, and later questions have no answer yet.
        self.key = vocabulary.projection(
            vocabulary.names[i] for i in range(self.index) if vocabulary.names[i] in mentioned
        )
        self.known: dict[Hashable, _Outcome] = {}

    def outcome(self, codes: Sequence[int]) -> _Outcome:
        key = self.key(codes)
        if key not in self.known:
            self.known[key] = self._evaluate(self.vocabulary.context(codes))
        return self.known[key]

    def _evaluate(self, context: dict[str, Any]) -> _Outcome:
        question = Question(
            var_name=self.name,
            answers=AnswersMap(),
            context=context,
            jinja_env=self.template.env,
            **self.details,
        )
        asked = question.get_when()
        values = _valid_answers(question) if self.may_vary and asked and question.get_ask() else None
        if values is None:
            default = question.get_default()
            known = default is not NO_DEFAULT
            return _Outcome(asked, False, (self.vocabulary.code(self.index, default) if known else MISSING,))
        if not values:
            raise ValueError(f"{self.name} is asked but nothing answers it, given {context}")
        return _Outcome(True, True, tuple(self.vocabulary.code(self.index, value) for value in values))


def _strings(value: Any) -> Iterator[str]:
    """Every string in a piece of YAML: each may be a template."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _valid_answers(question: Question) -> list[Any] | None:
    """Every answer that Copier takes, or None where they can't be listed."""
    choices = [choice.value for choice in question._formatted_choices if not choice.disabled]
    if question.multiselect:
        sizes = range(len(choices) + 1)
        candidates: list[Any] = [list(some) for size in sizes for some in itertools.combinations(choices, size)]
    elif question._formatted_choices:
        candidates = choices
    elif question.get_type_name() == "bool":
        candidates = [False, True]
    else:
        return None
    answers = [question.parse_answer(candidate) for candidate in candidates]
    return [answer for answer in answers if _is_valid(question, answer)]


def _is_valid(question: Question, answer: Any) -> bool:
    try:
        question.validate_answer(answer)
    except ValueError:
        return False
    return True


def read_space(
    template: Template, varied_names: Collection[str] | None = None, given: Mapping[str, Any] | None = None
) -> list[Combination]:
    """Every answerable combination, in the order of the questions and of their choices.

    Only the named questions vary, by default those from `broker` down; the others have the given answers, or else their
    defaults.
    """
    vocabulary = Vocabulary(tuple(template.questions))
    if varied_names is None:
        varied_names = vocabulary.names[vocabulary.index[FIRST_QUESTION] :]
    # codes, then the indices of the questions that vary here, then of those that are asked
    partial: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [((), (), ())]
    for index, name in enumerate(vocabulary.names):
        if given and name in given:
            code = vocabulary.code(index, given[name])
            partial = [((*codes, code), varied, (*asked, index)) for codes, varied, asked in partial]
            continue
        asker = _Asker(template, vocabulary, name, may_vary=name in varied_names)
        longer = []
        for codes, varied, asked in partial:
            outcome = asker.outcome(codes)
            now_varied = (*varied, index) if outcome.varied else varied
            now_asked = (*asked, index) if outcome.asked else asked
            longer += [((*codes, code), now_varied, now_asked) for code in outcome.codes]
        partial = longer
    return [Combination(vocabulary, *parts) for parts in partial]


def changes_of_an_answer(
    template: Template, combinations: Sequence[Combination]
) -> Iterator[tuple[Combination, Combination]]:
    """Every two combinations between which one answer changes, and with it those that it decides on."""
    names = combinations[0].vocabulary.names
    varied = sorted({index for combination in combinations for index in combination.varied})
    for index in varied:
        free = template.decides_on(names[index]) | {names[index]}
        key = combinations[0].vocabulary.projection(names[i] for i in varied if names[i] not in free)
        alike: dict[Hashable, list[Combination]] = {}
        for combination in combinations:
            alike.setdefault(key(combination.codes), []).append(combination)
        for group in alike.values():
            for before, after in itertools.permutations(group, 2):
                if before.codes[index] != after.codes[index]:
                    yield before, after


def covering_set(combinations: Sequence[Combination], strength: int) -> list[Combination]:
    """A few of `combinations` in which every `strength` options take every answerable set of values together.

    Greedy and deterministic: of equals the first is taken. Each choice of a multiselect counts as an option.
    """
    masks = _interactions(combinations, strength)
    uncovered = 0
    for mask in masks:
        uncovered |= mask
    chosen: list[Combination] = []
    while uncovered:
        best = max(range(len(masks)), key=lambda index: (masks[index] & uncovered).bit_count())
        chosen.append(combinations[best])
        uncovered &= ~masks[best]
    return chosen


def _interactions(combinations: Sequence[Combination], strength: int) -> list[int]:
    """For each combination the set, as bits, of the value tuples that it covers."""
    varied = sorted({index for combination in combinations for index in combination.varied})
    columns = [column for index in varied for column in _columns(combinations, index)]
    masks = [0] * len(combinations)
    bits: dict[tuple[int, ...], int] = {}
    numbers: dict[Hashable, int] = {}
    coded = [[numbers.setdefault((i, value), len(numbers)) for value in column] for i, column in enumerate(columns)]
    for some in itertools.combinations(coded, min(strength, len(coded))):
        for row, values in enumerate(zip(*some, strict=True)):
            bit = bits.get(values)
            if bit is None:
                bit = bits[values] = 1 << len(bits)
            masks[row] |= bit
    return masks


def _columns(combinations: Sequence[Combination], index: int) -> Iterator[list[Hashable]]:
    """The values of one question in every combination, None where it isn't asked; one column per choice of many."""
    values = combinations[0].vocabulary.values[index]
    answers = [values[each.codes[index]] if index in each.varied else None for each in combinations]
    if any(isinstance(answer, list) for answer in answers):
        for choice in dict.fromkeys(itertools.chain.from_iterable(answer or () for answer in answers)):
            yield [None if answer is None else choice in answer for answer in answers]
    else:
        yield answers
