"""Runs the checks, each topic in a thread, so that one that hangs doesn't hold the others up."""

import threading
import time
from collections.abc import Iterator, Mapping

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.observability.doctor import (
    beat,
    leases,
    project,
    rabbitmq,
    redis,
    servers,
    settings,
    workers,
)
from celery_service.observability.doctor.finding import Check, Finding
from celery_service.observability.redaction import redact_text

#: The topics in the order of the table.
CHECKS: Mapping[str, Check] = {
    "setting": settings.check,
    "versions": project.check_versions,
    ".env": project.check_env_file,
    "broker": servers.check_broker,
    "results": servers.check_results,
    "broker memory": redis.check_broker,
    "results memory": redis.check_results,
    "queue types": rabbitmq.check_queues,
    "time limits": rabbitmq.check_timeout,
    "leases": leases.check,
    "workers": workers.check,
    "beat": beat.check_beat,
    "dead letters": beat.check_dead_letters,
    "migrations": project.check_migrations,
}
#: The topics that find out whether a server answers. Others can't see what is on it.
SERVERS = ("broker", "results")
UNSEEN = "can't be seen: "
#: Seconds after which no more is waited for.
LIMIT = 8.0


def examine(app: Celery) -> list[Finding]:
    """Run all checks, and return what they find within LIMIT seconds."""
    # Both are made at their first use, which several threads must not do at the same time.
    app.finalize()
    app.loader.import_default_modules()
    deadline = time.monotonic() + LIMIT
    topics = [_Topic(app, name, check) for name, check in CHECKS.items()]
    for topic in topics:
        topic.thread.start()
    for topic in topics:
        topic.thread.join(max(0.0, deadline - time.monotonic()))
    found = [finding for topic in topics for finding in topic.outcome()]
    return list(_without_repetitions(found))


def _without_repetitions(found: list[Finding]) -> Iterator[Finding]:
    """Yield findings, with the error of a server that is away only once."""
    told = [each.text for each in found if each.level == "broken" and each.check in SERVERS]
    for each in found:
        reason = each.text.removeprefix(UNSEEN)
        same = each.level == "unseen" and any(text.endswith(reason) for text in told)
        text = "can't be seen, for the same reason" if same else each.text
        yield Finding(each.level, each.check, text, each.fix)


class _Topic:
    def __init__(self, app: Celery, name: str, check: Check) -> None:
        self._app, self._name, self._check = app, name, check
        self._found: list[Finding] = []
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        try:
            for finding in self._check(self._app):
                self._found.append(finding)
        except (OperationalError, RedisError, OSError) as error:
            self._found.append(self._unreachable(str(error)))
        except Exception as error:  # any error: the other lines are needed all the more
            text = f"can't be checked: {type(error).__name__}: {error}"
            self._found.append(Finding("unseen", self._name, text))

    def outcome(self) -> list[Finding]:
        """Return what was found, without passwords and without the lines of errors."""
        found = list(self._found)
        if self.thread.is_alive():
            found.append(self._unreachable(f"no answer within {LIMIT:g} s"))
        return [
            Finding(level, check, redact_text(" ".join(text.split())), fix)
            for level, check, text, fix in found
        ]

    def _unreachable(self, error: str) -> Finding:
        if self._name in SERVERS:
            fix = "Start the server, or correct its address: docs/dev/celery.md."
            return Finding("broken", self._name, f"can't be reached: {error}", fix)
        return Finding("unseen", self._name, f"{UNSEEN}{error}")
