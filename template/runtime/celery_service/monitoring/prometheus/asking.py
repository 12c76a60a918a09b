"""Asks servers for a scrape, which never waits long for them."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

Answer = TypeVar("Answer")

#: A server is asked at most every so many seconds.
INTERVAL = 2.0
#: Seconds that a scrape waits for all servers. Prometheus waits for 10 by default.
WAIT = 1.5

logger = structlog.get_logger(__name__)


class Question(Generic[Answer]):
    """A question to a server, which a thread asks."""

    def __init__(self, what: str, ask: Callable[[], Answer]) -> None:
        self._what, self._ask = what, ask
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._answered.set()
        self._asked = -INTERVAL
        self._answer: Answer | None = None
        self._failed = False

    def start(self) -> None:
        """Ask, if nobody asks already and the last answer is old."""
        with self._lock:
            if not self._answered.is_set() or time.monotonic() - self._asked < INTERVAL:
                return
            self._asked = time.monotonic()
            self._answered.clear()
        threading.Thread(target=self._run, name=f"metrics: {self._what}", daemon=True).start()

    def answer(self, until: float) -> Answer | None:
        """Return the answer; None if there is none by then, or if it was an error."""
        in_time = self._answered.wait(max(0.0, until - time.monotonic()))
        return self._answer if in_time else None

    def _run(self) -> None:
        try:
            self._answer = self._ask()
            self._failed = False
        except Exception as error:  # any error: a scrape shows what it can
            self._answer = None
            # Once for each outage: other lines tell about it, too.
            if not self._failed:
                logger.info("metrics_incomplete", server=self._what, error=str(error))
            self._failed = True
        finally:
            self._answered.set()
