"""Tasks that the behaviour tests add to a rendered project: what is reported of errors, and what isn't."""

from pathlib import Path

from celery import current_app

from .probe import note


@current_app.task(name="reported.fail")
def fail(argument: str) -> None:
    """Fail with an address in the error, and a private value in a variable."""
    local = argument.upper()
    raise RuntimeError("no answer from redis://user:of-the-error@localhost:1/0", len(local))


@current_app.task(name="reported.unfit")
def unfit() -> object:
    """Return what isn't JSON."""
    return object()


@current_app.task(name="reported.expected", throws=(LookupError,))
def expected() -> None:
    """Fail as its author expects it to."""
    raise KeyError("nothing there")


@current_app.task(name="reported.flaky", autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)
def flaky(path: str, times: int) -> None:
    """Fail so many times, each with a retry."""
    note(path, "flaky")
    if Path(path).read_text().splitlines().count("flaky") <= times:
        raise ConnectionError("away")
