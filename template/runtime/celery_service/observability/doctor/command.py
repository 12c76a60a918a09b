"""The command `doctor`. It imports the checks when it runs: every `celery` command imports this."""

import json
import logging
import sys
from typing import TYPE_CHECKING

import click
from celery import Celery

if TYPE_CHECKING:
    from celery_service.observability.doctor.finding import Finding

FIELDS = ("level", "check", "text", "fix")
MARKS = {"ok": "ok", "unseen": "?", "warning": "WARNING", "broken": "BROKEN"}
COLOURS = {"ok": "green", "unseen": "cyan", "warning": "yellow", "broken": "red"}


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all settings.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Look for what would hurt at three in the morning, and say what to do.

    The exit status is 0 if all is well, 1 with warnings, and 2 if something is broken.
    """
    from celery_service.observability.doctor.examine import examine
    from celery_service.observability.doctor.finding import STATUS
    from celery_service.observability.doctor.settings import settings

    app: Celery = ctx.obj.app
    # What libraries log about a server that is away is in the table, too.
    logging.disable(logging.CRITICAL)
    found = examine(app)
    status = max((STATUS[each.level] for each in found), default=0)
    if as_json:
        result = {
            "status": status,
            "findings": [dict(zip(FIELDS, each, strict=True)) for each in found],
            "settings": {
                name: {"value": each.value, "source": each.source}
                for name, each in settings(app).items()
            },
        }
        click.echo(json.dumps(result, default=repr, indent=2))
    else:
        _print(found)
    ctx.exit(status)


def _print(found: "list[Finding]") -> None:
    from celery_service.observability import terminal

    marks = max(map(len, MARKS.values()))
    checks = max((len(each.check) for each in found), default=0)
    indent = marks + checks + 2 * len(terminal.GAP)
    for each in found:
        lines = terminal.wrapped(terminal.printable(each.text), terminal.width() - indent)
        if each.fix:
            lines += terminal.wrapped(f"→ {each.fix}", terminal.width() - indent, hang="  ")
        # Without a terminal, click removes the colours.
        mark = click.style(MARKS[each.level].ljust(marks), fg=COLOURS[each.level])
        first, *others = lines
        click.echo(f"{mark}{terminal.GAP}{each.check.ljust(checks)}{terminal.GAP}{first}")
        for line in others:
            click.echo(" " * indent + line)
    counts = {level: sum(each.level == level for each in found) for level in MARKS}
    words = {"broken": "broken", "warning": "warnings", "unseen": "can't be seen", "ok": "ok"}
    if counts["warning"] == 1:
        words["warning"] = "warning"
    click.echo(", ".join(f"{counts[level]} {word}" for level, word in words.items()))
    sys.stdout.flush()
