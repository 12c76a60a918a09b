"""Tells systemd how a process is, if systemd has started it with `Type=notify`.

The protocol is one datagram to the socket that NOTIFY_SOCKET names:
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import contextlib
import os
import socket

from celery_service.lifecycle.health import STARTING, STOPPING

#: systemd kills a process so many seconds after the end of its grace period.
MARGIN = 15.0


class Notifier:
    """Sends the state of this process to systemd. Without systemd, it does nothing.

    Args:
        grace_seconds: How long the process may need to stop. systemd waits so long, and `MARGIN`.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        name = os.environ.get("NOTIFY_SOCKET", "")
        # The name of a socket without a file begins with a null byte, which systemd writes as @.
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._stopping = False

    def show(self, state: str) -> None:
        """Send a state, as a sign of life for the watchdog. Signal handlers may call this."""
        if not self._address or state == STARTING:
            return
        lines = [f"STATUS={state}"]
        if state != STOPPING:
            # A process that waits for its broker has started: restarting it wouldn't help.
            lines += ["READY=1", "WATCHDOG=1"]
        elif not self._stopping:
            self._stopping = True
            microseconds = int((self._grace_seconds + MARGIN) * 1_000_000)
            lines += ["STOPPING=1", f"EXTEND_TIMEOUT_USEC={microseconds}"]
        # systemd restarts a process that it doesn't hear from.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)
