"""Fresh processes without the second that each import of Celery takes.

    with Forks() as forks:
        done = forks.run("import my_service.celery", folder, {"CELERY_BROKER_URL": "memory://"})
        done.returncode, done.stdout, done.stderr

A Python that has imported Celery and its libraries, but nothing of `celery_service`, forks for each piece of code. The
fork runs it as `python -c` does, in an environment of its own, and ends as Python ends.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from support import environment

# It gets a line for each process, and answers with a line: where what it printed is, the fork is told.
PARENT = """
import gc, json, os, sys, time
import celery.app.amqp, celery.app.control, celery.backends.cache, celery.bin.base, click_repl
import kombu.transport.pyamqp, kombu.transport.redis, pydantic_settings, structlog

def begin(environment, folder, output):
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    for number, path in enumerate((os.devnull, output + ".out", output + ".err")):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)

gc.freeze()
code = None
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if not child:
        code = request.pop("code")
        begin(**request)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

if code:
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
"""


class Forks:
    """The process that forks. One piece of code runs at a time."""

    def __init__(self, output: Path) -> None:
        """Start it; `output` is a folder for what the forks print."""
        self._output = output / "printed"
        self._process = subprocess.Popen(
            [sys.executable, "-c", PARENT],
            env=environment.of_a_user(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, code: str, folder: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run code in `folder`, from which it imports, with a user's environment and these variables."""
        assert self._process.stdin
        assert self._process.stdout
        request = {
            "code": code,
            "environment": environment.of_a_user(variables),
            "folder": str(folder),
            "output": str(self._output),
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        status = self._process.stdout.readline()
        if not status:
            raise RuntimeError("the process that forks has ended")
        printed = (self._output.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".out", ".err"))
        return subprocess.CompletedProcess(code, int(status), *printed)

    def celery(
        self, *arguments: str, folder: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command `celery` likewise."""
        command = ["celery", *arguments]
        code = f"import sys; sys.argv = {command!r}; from celery.__main__ import main; sys.exit(main())"
        return self.run(code, folder, variables)

    def __enter__(self) -> Self:
        """Use it until the end of the block."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
