"""Copier in this process, without work that it repeats for each file and each run.

A render spends 60 % of its time compiling the same Jinja sources, and 25 % on one `git config` process for each file.
An update reads copier.yml and clones the template five times, with ten processes each. The output is the same:
test_questions.py compares it with the output of Copier's command line.
"""

import contextlib
import copy
import functools
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import copier._template
import copier._vcs
import jinja2
import pytest
from copier._main import Worker


@contextlib.contextmanager
def without_repetition() -> Iterator[None]:
    """Until the end of the block, read each copier.yml, compile each Jinja source and clone each commit once."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="clones-") as clones:
        patch.setattr(copier._template, "clone", _cloned_once(copier._vcs.clone, Path(clones)))
        patch.setattr(copier._template, "load_template_config", _read_once(copier._template.load_template_config))
        patch.setattr(jinja2.Environment, "compile", _compiled_once(jinja2.Environment.compile))
        # A folder is no bundle. Copier has git make a repository to find that out.
        is_bundle = copier._vcs.is_git_bundle
        patch.setattr(copier._vcs, "is_git_bundle", lambda path: not path.is_dir() and is_bundle(path))
        # Whether git ignores the executable bit, as it does on Windows. Older versions of Copier never ask.
        patch.setattr(Worker, "_sync_git_index_executable_bit", lambda *_: None, raising=False)
        yield


def _cloned_once(clone: Callable[..., str], folder: Path) -> Callable[..., str]:
    known: dict[tuple[str, str], str] = {}

    @functools.wraps(clone)
    def clone_once(url: str, ref: str = "HEAD", location: str | None = None) -> str:
        # With HEAD come changes that are not committed.
        if ref == "HEAD" or not Path(url).is_dir():
            return clone(url, ref, location)
        resolve = ["git", "rev-parse", f"{ref}^{{commit}}"]
        commit = subprocess.run(resolve, cwd=url, check=True, capture_output=True, text=True).stdout.strip()
        if (url, commit) not in known:
            known[url, commit] = clone(url, ref, str(folder / str(len(known))))
        return known[url, commit]

    return clone_once


def _read_once(read: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    known: dict[bytes, dict[str, Any]] = {}

    @functools.wraps(read)
    def read_once(path: Path, quiet: bool = False) -> dict[str, Any]:
        source = path.read_bytes()
        if b"!include" in source:
            return read(path, quiet)
        if source not in known:
            known[source] = read(path, quiet)
        # Copier changes what it has read.
        return copy.deepcopy(known[source])

    return read_once


def _compiled_once(compile_: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[object, CodeType] = {}

    @functools.wraps(compile_)
    def compile_once(
        environment: jinja2.Environment,
        source: Any,
        name: str | None = None,
        filename: str | None = None,
        raw: bool = False,
        defer_init: bool = False,
    ) -> Any:
        # Copier's `yield` tag has an effect when it is compiled.
        if raw or defer_init or not isinstance(source, str) or "yield" in source:
            return compile_(environment, source, name, filename, raw, defer_init)
        # Not by the name of the file, which is in another clone each time and shows in tracebacks only.
        key = (source, name, *_settings(environment))
        if key not in known:
            known[key] = compile_(environment, source, name, filename)
        return known[key]

    return compile_once


def _settings(environment: jinja2.Environment) -> tuple[object, ...]:
    """Return the settings of an environment that change how it compiles a source."""
    return (
        type(environment),
        environment.undefined,
        environment.trim_blocks,
        environment.lstrip_blocks,
        environment.keep_trailing_newline,
        environment.newline_sequence,
        environment.autoescape,
        environment.block_start_string,
        environment.block_end_string,
        environment.variable_start_string,
        environment.variable_end_string,
        environment.comment_start_string,
        environment.comment_end_string,
        environment.line_statement_prefix,
        environment.line_comment_prefix,
        frozenset(environment.extensions),
    )
