"""The command `send`: send a task of this project by its name.

Celery's own `call` sends any name with any arguments and exits with 0. The worker then rejects the
message.
"""

import json
import reprlib

import click
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError


@click.command(name="send")
@click.argument("task")
@click.argument("args", default="[]")
@click.pass_context
def command(ctx: click.Context, task: str, args: str) -> None:
    """Send TASK with ARGS, a JSON list, and print the id of the message."""
    app: Celery = ctx.obj.app
    app.loader.import_default_modules()
    if task not in app.tasks:
        names = sorted(name for name in app.tasks if not name.startswith("celery."))
        raise click.ClickException(f"no task is named {task!r}; the tasks are {', '.join(names)}")
    try:
        click.echo(app.tasks[task].apply_async(tuple(_positional(args))).id)
    # Arguments that are invalid, that JSON can't represent or that are nested too deep; no broker.
    except (TypeError, ValueError, RuntimeError, KombuError, RedisError) as error:
        raise click.ClickException(" ".join(str(error).split())) from None


def _positional(text: str) -> list[object]:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, list):
        shown = reprlib.repr(text)
        raise click.ClickException(f'ARGS is {shown}; it must be a JSON list such as ["a", 5]')
    return values
