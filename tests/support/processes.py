"""Read the state of processes from `/proc`. Linux only."""

from pathlib import Path


def child_pids(pid: int) -> list[int]:
    """Give the processes that `pid` started and that still run, oldest first."""
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        state, parent = _state_and_parent(int(folder.name))
        if parent == pid and state != "Z":
            children.append(int(folder.name))
    return sorted(children)


def is_running(pid: int) -> bool:
    """Return whether this process exists and isn't a zombie."""
    return _state_and_parent(pid)[0] not in {"Z", "X", ""}


def _state_and_parent(pid: int) -> tuple[str, int]:
    """Read what `man proc_pid_stat` tells; without such a process, give "" and 0."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    state, parent, *_ = after_name.split()
    return state, int(parent)
