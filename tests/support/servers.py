"""The servers that tests of behaviour start.

They are the very files that generated projects get, loaded by path: the names of some hold the
condition under which they are rendered.
"""

import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

SHIPPED = Path(__file__).parents[2] / "template" / "tests" / "integration" / "servers"
PACKAGE = "shipped_servers"


def _load(pattern: str, name: str) -> ModuleType:
    """Import the one file that matches `pattern`, under `name`."""
    if name in sys.modules:
        return sys.modules[name]
    [path] = SHIPPED.glob(pattern)
    # The loader is named, because Python doesn't recognise a file that ends in `{% endif %}`.
    loader = _LoaderWithoutCache(name, str(path))
    folders = [str(SHIPPED)] if path.stem == "__init__" else None
    spec = spec_from_file_location(name, path, loader=loader, submodule_search_locations=folders)
    assert spec
    module = module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


class _LoaderWithoutCache(SourceFileLoader):
    """Write no __pycache__ into template/: Copier would render it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0) -> None:
        """Drop the byte code."""


_common = _load("__init__.py", PACKAGE)
_redis = _load("*redis.py*", f"{PACKAGE}.redis")
_rabbitmq = _load("*rabbitmq.py*", f"{PACKAGE}.rabbitmq")
_postgres = _load("*postgres.py*", f"{PACKAGE}.postgres")

HOST: str = _common.HOST
Server = _common.Server
free_port: Callable[[], int] = _common.free_port
listens: Callable[[int], bool] = _common.listens
require: Callable[..., Any] = _common.require
wait_until: Callable[..., Any] = _common.wait_until
find_redis: Callable[[], str | None] = _redis.find_redis
start_redis: Callable[..., Any] = _redis.start_redis
find_rabbitmq: Callable[[], str | None] = _rabbitmq.find_rabbitmq
start_rabbitmq: Callable[..., Any] = _rabbitmq.start_rabbitmq
find_postgres: Callable[[], str | None] = _postgres.find_postgres
start_postgres: Callable[..., Any] = _postgres.start_postgres


def child_pids(pid: int) -> list[int]:
    """Give the processes that `pid` started and that still run, oldest first. Linux only."""
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        state, parent = _state_and_parent(int(folder.name))
        if parent == pid and state != "Z":
            children.append(int(folder.name))
    return sorted(children)


def is_running(pid: int) -> bool:
    """Whether this process exists and is more than a zombie. Linux only."""
    return _state_and_parent(pid)[0] not in {"Z", "X", ""}


def _state_and_parent(pid: int) -> tuple[str, int]:
    """Read what `man proc_pid_stat` tells; without such a process, give "" and 0."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    state, parent, *_ = after_name.split()
    return state, int(parent)
