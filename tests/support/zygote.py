"""A Python that has imported Celery and its libraries, and forks a publisher or a command for each connection.

It runs in the virtual environment of a project, as `python -c <this file> <socket>`; publisher.py connects to it.
Otherwise each publisher would start Python and import Celery, which takes a second. Nothing of the project or of
`celery_service` is imported before the fork, because they read environment variables, which each child sets.

Each connection is served by its own child. The first line is its setup: `environment`, `folder`, and the file `output`
for its output. Then each line is a request, and the child answers with a line:

    {"code": "celery.main"}           {"value": …}, that of the last expression, or {"error": a traceback}
    {"command": ["celery", …]}        {"status": 0}: the child runs it, as the program of that name would, and ends
"""

import ast
import contextlib
import gc
import importlib.metadata
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

LIBRARIES = (
    "celery.app.amqp",
    "celery.app.control",
    "celery.backends.redis",
    # Not celery.bin.celery: it imports the commands that `celery_service` adds.
    "celery.bin.base",
    "click_repl",
    "concurrent.futures.thread",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "pydantic_settings",
    "redis.asyncio",
    "structlog",
    # With their extras only.
    "aiocache",
    "psycopg",
    "sqlalchemy.ext.asyncio",
)


def main(path: str) -> None:
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(100)
        Path(f"{path}.new").rename(path)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:  # its end: whoever has started this is gone
                return
            connection, _ = listener.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                serve(connection)
                os._exit(0)
            connection.close()


def serve(connection: socket.socket) -> None:
    file = connection.makefile("rw", encoding="utf-8")
    begin(**json.loads(file.readline()))
    answer(file, pid=os.getpid())
    for line in file:
        request = json.loads(line)
        if "command" in request:
            answer(file, status=run_command(request["command"]))
            return
        try:
            value = run(request["code"])
        except BaseException:
            answer(file, error=traceback.format_exc())
        else:
            answer(file, value=value)


def begin(environment: Mapping[str, str], folder: str, output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    sys.argv = ["-c"]
    for number, name in ((1, "stdout"), (2, "stderr")):
        _redirect(number, f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _redirect(0, os.devnull, os.O_RDONLY)


def _redirect(number: int, path: str, flags: int) -> None:
    file = os.open(path, flags)
    os.dup2(file, number)
    os.close(file)


def answer(file: TextIO, **fields: Any) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    file.write(json.dumps(fields) + "\n")
    file.flush()


def run(code: str) -> Any:
    """Run it in a namespace of its own, as a script; give the value of its last line when that is an expression."""
    body = ast.parse(code).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(ast.Module(body, []), "<publisher>", "exec"), namespace)
    if not isinstance(last, ast.Expr):
        return None
    value = eval(compile(ast.Expression(last.value), "<publisher>", "eval"), namespace)
    return json.loads(json.dumps(value))  # what JSON can't hold is an error of this code


def run_command(command: list[str]) -> int:
    """Do what the program of that name does, and give its exit status."""
    sys.argv = command
    [script] = importlib.metadata.entry_points(group="console_scripts", name=command[0])
    try:
        status = script.load()()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    return status or 0


if __name__ == "__main__":
    main(*sys.argv[1:])
