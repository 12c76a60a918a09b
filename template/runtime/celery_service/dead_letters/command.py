"""The command `dead-letters`: look at dead letters, send them again, drop them."""

import fnmatch
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from celery_service.dead_letters import chords
from celery_service.dead_letters.replay import NotSent, sender
from celery_service.dead_letters.replay import replay as replay_one
from celery_service.dead_letters.store import DAY, DeadLetters
from celery_service.dead_letters.story import Record

UNITS = {"s": 1, "m": 60, "h": 60 * 60, "d": DAY}


class Age(click.ParamType[float]):
    """A span of time such as 90s, 15m, 6h or 7d, as seconds."""

    name = "age"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the seconds."""
        match = re.fullmatch(r"(\d+)([smhd])", str(value))
        if match is None:
            self.fail(f"{value!r} is no span of time; write 90s, 15m, 6h or 7d", param, ctx)
        return int(match[1]) * UNITS[match[2]]


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    options = [
        click.argument("ids", nargs=-1),
        click.option("--task", metavar="PATTERN", help="Tasks of this name; * is any text."),
        click.option("--error", metavar="TEXT", help="Errors that contain this."),
        click.option("--reason", help="failure, time_limit, poison, chord, unknown_task, …"),
        click.option("--older", type=Age(), help="Older than 90s, 15m, 6h or 7d."),
        click.option("--newer", type=Age(), help="Younger than that."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (RedisError, OperationalError) as error:
            raise click.ClickException(f"the Redis of dead letters fails: {error}") from None


@click.group(name="dead-letters", cls=_Commands)
def command() -> None:
    """What became of tasks that can't succeed: list, show, replay, purge."""


@command.command(name="list")
@_filters
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, complete.")
@click.pass_context
def list_(ctx: click.Context, /, as_json: bool, **filters: Any) -> None:
    """List dead letters, oldest first."""
    for record in _select(_store(ctx), **filters):
        if as_json:
            click.echo(json.dumps(record, default=str))
        else:
            click.echo(_line(record))


@command.command()
@click.argument("id_", metavar="ID")
@click.pass_context
def show(ctx: click.Context, id_: str) -> None:
    """Show all that is known of one."""
    (record,) = _select(_store(ctx), ids=(id_,))
    click.echo(json.dumps(record, default=str, indent=2))


@command.command()
@_filters
@click.option("--yes", is_flag=True, help="Do it; without this, only say what would be done.")
@click.pass_context
def replay(ctx: click.Context, /, yes: bool, **filters: Any) -> None:
    """Send tasks again, each once, under their old ids. A record goes when its task is sent."""
    app: Celery = ctx.obj.app
    store = _store(ctx)
    records = _select(store, **filters)
    if yes:
        kept = _replay(app, store, records)
    else:
        kept = _not_to_be_sent(app, records)
        _say_what_would_happen("replayed", [each for each in records if each["id"] not in kept])
    for id_, problem in kept.items():
        click.echo(f"{id_} {'is' if yes else 'would be'} kept: {problem}", err=True)
    if any(chords.callback_of(each) for each in records if each["id"] not in kept):
        click.echo(
            "Some are tasks of a chord. When they have succeeded, replay its callback: "
            f"dead-letters replay --reason {chords.CHORD}",
            err=True,
        )
    ctx.exit(1 if yes and kept else 0)


@command.command()
@_filters
@click.option("--yes", is_flag=True, help="Do it; without this, only say what would be done.")
@click.pass_context
def purge(ctx: click.Context, /, yes: bool, **filters: Any) -> None:
    """Drop dead letters."""
    store = _store(ctx)
    records = _select(store, **filters)
    if not yes:
        _say_what_would_happen("dropped", records)
        return
    for record in records:
        store.remove(record)
    click.echo(f"{len(records)} dropped")


def _store(ctx: click.Context) -> DeadLetters:
    app: Celery = ctx.obj.app
    store = DeadLetters(app)
    if not store.are_kept:
        raise click.ClickException("results are not in Redis here; dead letters are only logged")
    return store


def _select(
    store: DeadLetters,
    ids: tuple[str, ...] = (),
    task: str | None = None,
    error: str | None = None,
    reason: str | None = None,
    older: float | None = None,
    newer: float | None = None,
) -> list[Record]:
    records = list(store)
    unknown = set(ids) - {record["id"] for record in records}
    if unknown:
        raise click.ClickException(f"no dead letter has the id {', '.join(sorted(unknown))}")
    now = time.time()
    return [
        record
        for record in records
        if (not ids or record["id"] in ids)
        and (task is None or fnmatch.fnmatchcase(str(record["task"]), task))
        and (error is None or error in record["error"])
        and (reason is None or reason == record["reason"])
        and (older is None or now - record["time"] > older)
        and (newer is None or now - record["time"] < newer)
    ]


def _line(record: Record) -> str:
    error = record["error"].partition("\n")[0][:100]
    line = f"{record['id']}  {record['failed_at']}  {record['task']}  {record['reason']}  {error}"
    return line.encode(errors="backslashreplace").decode()  # a lone surrogate can't be printed


def _say_what_would_happen(verb: str, records: list[Record]) -> None:
    for record in records:
        click.echo(_line(record))
    click.echo(f"{len(records)} would be {verb}; --yes does it")


def _not_to_be_sent(app: Celery, records: list[Record]) -> dict[str, str]:
    """Return what is wrong with the records that can't be sent now, by id."""
    problems = {}
    for record in records:
        try:
            sender(app, record)
        except NotSent as problem:
            problems[record["id"]] = str(problem)
    return problems


def _replay(app: Celery, store: DeadLetters, records: list[Record]) -> dict[str, str]:
    """Send records again; return what is wrong with those that stay, by id."""
    kept: dict[str, str] = {}
    skipped = 0
    with click.progressbar(records, label="Replaying", file=sys.stderr) as bar:
        for record in bar:
            try:
                skipped += not replay_one(app, store, record)
            except NotSent as problem:
                kept[record["id"]] = str(problem)
    if skipped:
        click.echo(f"{skipped} skipped, since another replay sends them", err=True)
    click.echo(f"{len(records) - len(kept) - skipped} replayed, {len(kept)} kept")
    return kept
