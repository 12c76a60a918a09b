"""Remembers that the server of a cache is unreachable, so that not every call waits for it."""

import threading
import time

import structlog

#: Seconds after a failure until the server is tried again.
PAUSE = 5.0

logger = structlog.get_logger(__name__)


class Outage:
    """Whether the server is unreachable, for this process. Logs once when that changes."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._lock = threading.Lock()
        self._ask_again: float | None = None

    def is_on(self) -> bool:
        """Return whether to skip the server. During an outage, one caller per PAUSE tries it."""
        with self._lock:
            if self._ask_again is None:
                return False
            now = time.monotonic()
            if now < self._ask_again:
                return True
            self._ask_again = now + PAUSE
            return False

    def begin(self, error: Exception) -> None:
        """Remember that the server has failed."""
        with self._lock:
            is_news = self._ask_again is None
            self._ask_again = time.monotonic() + PAUSE
        if is_news:
            reason = str(error) or type(error).__name__
            logger.warning("cache_away", cache=self._alias, error=reason)

    def end(self) -> None:
        """Remember that the server has answered."""
        with self._lock:
            is_news = self._ask_again is not None
            self._ask_again = None
        if is_news:
            logger.info("cache_back", cache=self._alias)
