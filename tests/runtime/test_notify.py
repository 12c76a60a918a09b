"""What systemd is told, on a socket that this test reads in its place."""

import socket
from pathlib import Path

import pytest
from celery_service.lifecycle.health import READY, STARTING, STOPPING, WAITING
from celery_service.lifecycle.notify import MARGIN, Notifier


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.bind(path)
    here.setblocking(False)
    return here


def told(systemd: socket.socket) -> set[str]:
    try:
        return set(systemd.recv(1000).decode().splitlines())
    except BlockingIOError:
        return set()


def test_a_process_is_up_when_it_is_ready_or_waits_for_its_broker(systemd: socket.socket) -> None:
    notifier = Notifier(30)
    notifier.show(STARTING)
    assert told(systemd) == set()
    for state in (WAITING, READY):
        notifier.show(state)
        assert told(systemd) == {f"STATUS={state}", "READY=1", "WATCHDOG=1"}


def test_a_stop_asks_once_for_the_grace_period_and_a_margin(systemd: socket.socket) -> None:
    notifier = Notifier(30)
    for more in ({"STOPPING=1", f"EXTEND_TIMEOUT_USEC={(30 + MARGIN) * 1e6:.0f}"}, set()):
        notifier.show(STOPPING)
        assert told(systemd) == {"STATUS=stopping", *more}


def test_without_systemd_or_after_its_end_nothing_happens(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier(30)
    systemd.close()
    notifier.show(READY)
    monkeypatch.delenv("NOTIFY_SOCKET")
    Notifier(30).show(READY)
