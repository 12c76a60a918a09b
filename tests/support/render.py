"""Render every combination of answers, as Copier would, without running Copier for each.

Every path segment and every body is compiled once, and rendered once for each distinct set of the variables that it
uses. tests/template/test_render.py checks that the result equals Copier's.
"""

import os
import shutil
import stat
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Self
from unicodedata import normalize

from jinja2 import TemplateError
from pathspec import PathSpec

from support.space import Combination, Template

REPOSITORY = Path(__file__).parents[2]
#: What makes up a template, and what a developer's tools may have left in it.
PARTS = ("copier.yml", "template", "includes", "hooks")
LEFTOVERS = shutil.ignore_patterns("__pycache__", ".*_cache", ".venv", ".dev")


def copy_template(target: Path, source: Path = REPOSITORY) -> Path:
    """Copy the template out of git, so that Copier reads the files as they are."""
    for name in PARTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=LEFTOVERS, dirs_exist_ok=True)
        elif (source / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)
    return target


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """A file with one of its contents. There is one object for each, so identity is equality."""

    path: str
    data: bytes
    executable: bool = False
    #: Where it comes from, for messages.
    source: str = ""
    #: The content depends on the copy itself, as in the answers file, and isn't known here.
    volatile: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    @property
    def text(self) -> str:
        return self.data.decode()


@dataclass(frozen=True, slots=True)
class Tree:
    """The rendered files of one combination."""

    files: Mapping[str, File]
    folders: frozenset[str] = frozenset()
    context: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[File]:
        return iter(self.files.values())

    @classmethod
    def of(cls, texts: Mapping[str, str], **context: Any) -> Self:
        """A tree made by hand."""
        files = {path: File(path, text.encode(), source=path) for path, text in texts.items()}
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
        return cls(files, frozenset(folders), context)

    def write(self, root: Path) -> Path:
        for file in self:
            target = root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.data)
            target.chmod(0o755 if file.executable else 0o644)
        return root


class _Text:
    """A Jinja source, compiled when it is first needed, rendered once for each set of what it mentions."""

    def __init__(self, renderer: "Renderer", source: str) -> None:
        self.mentions = renderer.template.mentions(source)
        self.key = renderer.key(self.mentions)
        self.compiled = cache(lambda: renderer.template.env.from_string(source))
        # What Copier itself adds to the context, as far as it is the same in every copy.
        self.extra = {
            "_copier_conf": {"answers_file": renderer.template.answers_file},
            "_copier_operation": "copy",
        }
        self.known: dict[Hashable, str] = {}

    def render(self, combination: Combination) -> str:
        key = self.key(combination.codes)
        if key not in self.known:
            self.known[key] = self.compiled().render({**combination.context, **self.extra})
        return self.known[key]


class _Source:
    """One file or folder of the template."""

    def __init__(self, renderer: "Renderer", path: Path) -> None:
        template = renderer.template
        self.renderer = renderer
        self.relative = path.relative_to(template.folder)
        self.is_folder = path.is_dir()
        self.executable = bool(path.stat().st_mode & stat.S_IXUSR) and not self.is_folder
        self.raw = b"" if self.is_folder else path.read_bytes()
        is_template = not self.is_folder and path.name.endswith(template.suffix)
        target = self.relative.with_suffix("") if is_template else self.relative
        self.segments = [renderer.text(part) for part in target.parts]
        self.body = renderer.text(self.raw.decode()) if is_template else None
        self.volatile = self.body is not None and any(
            name.startswith(("_copier", "_folder")) for name in self.body.mentions
        )
        self.by_path = renderer.key({name for segment in self.segments for name in segment.mentions})
        self.by_body = renderer.key(self.body.mentions if self.body else set())
        self.paths: dict[Hashable, str | None] = {}
        self.files: dict[Hashable, File] = {}

    def path(self, combination: Combination) -> str | None:
        """Where it goes in this combination, if anywhere."""
        key = self.by_path(combination.codes)
        if key not in self.paths:
            self.paths[key] = self._render_path(combination)
        return self.paths[key]

    def _render_path(self, combination: Combination) -> str | None:
        parts = []
        for segment in self.segments:
            part = segment.render(combination)
            if not part:
                return None
            parts.append(part)
        return str(PurePosixPath(*parts))

    def file(self, path: str, combination: Combination) -> File:
        """What it becomes at `path`."""
        key = (path, self.by_body(combination.codes))
        if key not in self.files:
            self.files[key] = self.renderer.intern(path, self._render_body(combination), self)
        return self.files[key]

    def _render_body(self, combination: Combination) -> bytes:
        if self.volatile:
            return b""
        return self.body.render(combination).encode() if self.body else self.raw


class Renderer:
    """Renders combinations of one template, and caches rendered files."""

    def __init__(self, template: Template, combinations: Sequence[Combination]) -> None:
        self.template = template
        self.key: Callable[[set[str] | frozenset[str]], Callable[[Sequence[int]], Hashable]]
        self.key = combinations[0].vocabulary.projection
        self._texts: dict[str, _Text] = {}
        self._interned: dict[tuple[str, bytes, bool], File] = {}
        self._exclusions = [self.text(pattern) for pattern in template.worker.all_exclusions]
        self._by_exclusions = self.key(frozenset[str]().union(*(each.mentions for each in self._exclusions)))
        self._specs: dict[Hashable, PathSpec[Any]] = {}
        self._excluded: dict[tuple[Hashable, str], bool] = {}
        self.sources = [_Source(self, path) for path in _walk(template.folder) if not self._has_templated_sibling(path)]

    @property
    def files(self) -> list[File]:
        """The distinct files of everything rendered so far."""
        return list(self._interned.values())

    def text(self, source: str) -> _Text:
        if source not in self._texts:
            self._texts[source] = _Text(self, source)
        return self._texts[source]

    def intern(self, path: str, data: bytes, source: _Source) -> File:
        key = (path, data, source.executable)
        if key not in self._interned:
            where = f"{self.template.folder.name}/{source.relative}"
            self._interned[key] = File(*key, source=where, volatile=source.volatile)
        return self._interned[key]

    def render(self, combination: Combination) -> Tree:
        files: dict[str, File] = {}
        folders = set()
        for source in self.sources:
            try:
                path = source.path(combination)
                if path is None or (self._exclusions and self._is_excluded(path, combination)):
                    continue
                if source.is_folder:
                    folders.add(path)
                elif path in files:
                    raise ValueError(f"{path} is made by {files[path].source}, too")
                else:
                    files[path] = source.file(path, combination)
            except (TemplateError, ValueError) as error:
                # Jinja doesn't say where.
                raise ValueError(f"{source.relative}: {error} (as in: {combination})") from error
        return Tree(files, frozenset(folders), combination.context)

    def _has_templated_sibling(self, path: Path) -> bool:
        return path.with_name(path.name + self.template.suffix).exists()

    def _is_excluded(self, path: str, combination: Combination) -> bool:
        key = self._by_exclusions(combination.codes)
        if key not in self._specs:
            lines = [text.render(combination) for text in self._exclusions]
            patterns = [normalize("NFD", pattern) for line in lines for pattern in line.splitlines()]
            self._specs[key] = PathSpec.from_lines("gitignore", patterns)
        if (key, path) not in self._excluded:
            self._excluded[key, path] = self._specs[key].match_file(path)
        return self._excluded[key, path]


def _walk(folder: Path) -> Iterator[Path]:
    """Everything in `folder`, parents first."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in folders)
        yield from (Path(parent, name) for name in sorted(files))


def read_tree(root: Path) -> Tree:
    """A tree as it stands on disk."""
    files, folders = {}, set()
    for path in _walk(root):
        relative = path.relative_to(root).as_posix()
        if path.is_dir():
            folders.add(relative)
        else:
            files[relative] = File(relative, path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
    return Tree(files, frozenset(folders))
