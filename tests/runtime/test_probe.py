"""The probe imports little, and prints the state of a worker in one line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery_service.lifecycle import health
from celery_service.lifecycle.health import Sign, main, problem

STAND_IN = """
import sys
from celery_service.lifecycle.health import Sign
sign = Sign("unit", "worker")
for line in sys.stdin:
    sign.show(line.strip())
    print("shown", flush=True)
"""


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTH_DIR", str(tmp_path))
    monkeypatch.delenv("HEALTH_MAX_SILENCE", raising=False)


@contextmanager
def stand_in(*states: str) -> Iterator[None]:
    """Run a process that writes signs of life like a worker."""
    with subprocess.Popen(
        [sys.executable, "-c", STAND_IN], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        for state in states:
            print(state, file=process.stdin, flush=True)
            assert process.stdout.readline() == "shown\n"
        yield


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Return the exit status and the line of a probe."""
    status = main(("unit", *arguments))
    return status, capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        (["ready"], (0, "ready")),
        (["stopping"], (1, "not ready: worker-{} is stopping")),
        (["stopping", "ready"], (1, "not ready: worker-{} is stopping")),  # what stops, stays so
        (["ready", "waiting for its broker"], (1, "not ready: worker-{} is waiting for its broker")),
    ],
)
def test_the_probe_reports_the_state_until_the_worker_exits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], states: list[str], ready: tuple[int, str]
) -> None:
    with stand_in(*states):
        [sign] = tmp_path.glob("*/worker-*")
        assert ask(capsys, "live") == (0, "alive")
        assert ask(capsys, "ready") == (ready[0], ready[1].format(sign.name.partition("-")[2]))
        assert ask(capsys, "beat")[1].startswith("not alive: no beat runs here: no file in ")
    assert ask(capsys, "live") == (1, f"not alive: no worker runs here: no file in {tmp_path}/unit-{os.getuid()}")


def test_a_worker_without_signs_of_life_is_not_alive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in("ready"):
        [sign] = tmp_path.glob("*/worker-*")
        written = sign.stat().st_mtime
        os.utime(sign, (written - 95, written - 95))
        status, line = ask(capsys, "live")
        assert status == 1
        assert line.startswith(f"not alive: {sign.name} gave no sign of life for 9")
        monkeypatch.setenv("HEALTH_MAX_SILENCE", "200")
        assert ask(capsys, "live") == (0, "alive")


def test_the_next_process_removes_the_file_of_a_killed_one(tmp_path: Path) -> None:
    with stand_in("ready"):
        [old] = tmp_path.glob("*/worker-*")
    assert old.exists()
    with stand_in("ready"):
        assert [path for path in tmp_path.glob("*/worker-*") if path == old] == []
        assert problem("unit", "worker") == ""


def test_services_have_separate_probes() -> None:
    with stand_in("ready"):
        assert problem("unit", "worker") == ""
        assert problem("other", "worker").startswith("no worker runs here")


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan"])
def test_an_invalid_limit_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HEALTH_MAX_SILENCE", value)
    says = f"not alive: HEALTH_MAX_SILENCE is {value!r}; it must be a number of seconds above 0"
    assert ask(capsys, "live") == (1, says)


def test_a_folder_that_others_can_change_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / f"unit-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        Sign("unit", "worker")
    status, line = ask(capsys, "live")
    assert (status, line) == (1, f"not alive: {folder} must be a folder of user {os.getuid()} with mode 0700")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert ask(capsys, "live")[0] == 1


@pytest.mark.parametrize("arguments", [[], ["unit"], ["unit", "alive"], ["", "live"], ["unit", "live", "more"]])
def test_a_wrong_argument_gets_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().out == "usage: python -m celery_service.lifecycle.health SERVICE live|ready|beat\n"


def test_the_probe_is_a_program() -> None:
    command = [sys.executable, "-m", health.__name__, "unit", "live"]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("not alive: no worker runs here")
    assert done.stderr == ""
