"""What rendering costs.

`copy`: seconds of `copier copy` as a command, everything on, against a template that holds the resulting files as they
are and asks nothing. Both templates are folders without git.

`space`: combinations per second. Ours reads the space, renders all of it, and makes every check of the render layer,
ruff included; the baseline only renders, with stock Copier, three combinations in each round, chosen at random.
"""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import copier

from support.checks import FILE_CHECKS, TREE_CHECKS, ruff_problems
from support.render import Renderer, copy_template, read_tree
from support.space import Template, read_space

from .report import Row
from .run import FULL, Run

SAMPLE = 3


def copy(run: Run) -> list[Row]:
    """Run both commands in turns."""
    folder = run.folder / "copy"
    ours = copy_template(folder / "ours")
    _command(ours, folder / "result", "--data-file", str(FULL))()
    static = folder / "static"
    read_tree(folder / "result").write(static / "template")
    (static / "copier.yml").write_text("_subdirectory: template\n")
    files = len(read_tree(folder / "result").files)

    numbers = count()
    seconds, baseline = run.in_turns(
        [
            lambda: _command(ours, folder / f"ours-{next(numbers)}", "--data-file", str(FULL))(),
            lambda: _command(static, folder / f"static-{next(numbers)}")(),
        ]
    )
    return [
        Row(
            what="`copier copy`, everything on",
            baseline_is=f"{files} static files",
            unit="s",
            baseline=baseline,
            ours=seconds,
            at_most=1.3,
        )
    ]


def _command(template: Path, target: Path, *options: str) -> Callable[[], float]:
    def seconds() -> float:
        command = [sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", *options, str(template)]
        started = time.perf_counter()
        subprocess.run([*command, str(target)], check=True, stdin=subprocess.DEVNULL)
        return time.perf_counter() - started

    return seconds


def space(run: Run) -> list[Row]:
    """Check the whole space, and render a sample of it with Copier, in turns."""
    folder = run.folder / "space"
    root = copy_template(folder / "template")
    combinations = read_space(Template(root))
    choose = random.Random(2026)
    numbers = count()

    def check() -> float:
        started = time.perf_counter()
        found = _problems(root, folder / f"ruff-{next(numbers)}")
        if found:
            raise RuntimeError(f"the template has {found} problems: run the tests")
        return len(combinations) / (time.perf_counter() - started)

    def stock() -> float:
        sample = choose.sample(combinations, min(SAMPLE, len(combinations)))
        started = time.perf_counter()
        for each in sample:
            target = folder / f"stock-{next(numbers)}"
            copier.run_copy(str(root), target, data=each.answers, defaults=True, quiet=True)
        return len(sample) / (time.perf_counter() - started)

    ours, baseline = run.in_turns([check, stock])
    return [
        Row(
            what=f"render and check all {len(combinations)} combinations",
            baseline_is="stock Copier, rendering only",
            unit="combinations/s",
            baseline=baseline,
            ours=ours,
            at_least=20,
        )
    ]


def _problems(root: Path, folder: Path) -> int:
    """Do what tests/template/test_render.py does, from the start; give the number of problems."""
    combinations = read_space(template := Template(root))
    renderer = Renderer(template, combinations)
    trees = [renderer.render(each) for each in combinations]
    folder.mkdir()
    return (
        sum(1 for file in renderer.files for check in FILE_CHECKS for _ in check(file))
        + sum(1 for tree in trees for check in TREE_CHECKS for _ in check(tree))
        + sum(1 for _ in ruff_problems(((tree, str(number)) for number, tree in enumerate(trees)), folder))
    )
