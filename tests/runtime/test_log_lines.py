"""Lines of the log: their formats, where they go, and that nothing keeps one from being written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from support.forks import Forks

MEMORY = {"CELERY_BROKER_URL": "memory://"}
BEGIN = """
import logging, sys, structlog
from my_service.celery import celery
from celery_service.observability import logging as log
{before}
log.set_up()
logger = structlog.get_logger("a.b")
"""


def run(forks: Forks, service: Path, code: str, before: str = "", **variables: str) -> list[str]:
    done = forks.run(BEGIN.format(before=before) + code, service, MEMORY | variables)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def read(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_both_libraries_write_the_same_lines(forks: Forks, service: Path) -> None:
    code = (
        "logger.bind(order=1).info('saved %d', 7, customer='Zoë')\n"
        "logging.getLogger('a.b').info('saved %d', 7, extra={'order': 1, 'customer': 'Zoë', 'color_message': 'saved'})"
    )
    one, other = read(run(forks, service, code))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", one.pop("timestamp"))
    other.pop("timestamp")
    assert one == other
    assert one == {"level": "info", "event": "saved 7", "logger": "a.b", "order": 1, "customer": "Zoë"}


ODD = """
import datetime, decimal, enum, pathlib, uuid
class Bad:
    def __repr__(self): raise RuntimeError("no")
loop = []
loop.append(loop)
deep = []
for _ in range(5000): deep = [deep]
values = [
    float("nan"), float("inf"), {(1, 2): 3, 4: 5, None: 6}, "\\ud800", b"\\xff", loop, deep, Bad(), {Bad(): 1},
    object(),
    datetime.date(2026, 1, 2), decimal.Decimal("1.5"), pathlib.Path("a"), uuid.uuid4(), {1}, "two\\nlines", 10**400, "",
    enum.Enum("Colour", "red").red,
]
for number, value in enumerate(values):
    logger.info("odd", number=number, value=value)
    logger.info("odd", number=number, value=value, token=value)
logging.info("%d %s", "x")
logging.info(Bad())
logging.info({"a": float("nan")})
logger.info("taken", level="high", timestamp=1, logger="mine")
logging.info("taken", extra={"level": "high", "fields": 1, "json": 2, "entry": 3})
logging.log(7, "below")
logging.log(35, "between")
"""


@pytest.mark.parametrize("format_", ["json", "key_value", "console"])
def test_any_value_can_be_logged(forks: Forks, service: Path, format_: str) -> None:
    lines = run(forks, service, ODD, LOG_FORMAT=format_)
    assert not [line for line in lines if "Logging error" in line or "Traceback" in line]
    if format_ == "console":
        return
    assert len(lines) == 19 * 2 + 6
    assert all(line.isprintable() for line in lines)
    if format_ == "json":

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        for line in lines:
            assert json.loads(line, parse_constant=refuse).keys() >= {"timestamp", "level", "event", "logger"}
        taken = json.loads(lines[-3])
        assert (taken["level"], taken["level_"], taken["logger_"]) == ("info", "high", "mine")
        between = json.loads(lines[-1])
        assert (between["level"], between["event"]) == ("level 35", "between")


def test_the_formats(forks: Forks, service: Path) -> None:
    code = "logger.warning('not saved', customer='Zoë Z', reason='a=\"b\"\\n', count=2, done=False)"
    [flat] = run(forks, service, code, LOG_FORMAT="key_value")
    assert flat.partition(" ")[2] == (
        r'level=warning event="not saved" logger=a.b customer="Zoë Z" reason="a=\"b\"\n" count=2 done=false'
    )
    [people] = run(forks, service, code, LOG_FORMAT="console")
    assert re.match(r"\d\d:\d\d:\d\d \[warning +\] not saved +\[a\.b\] +customer='Zoë Z'", people)
    assert "\x1b" not in people


def test_files(forks: Forks, service: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "log"
    code = (
        "import os, pathlib\n"
        "logger.info('one')\n"
        "folder = pathlib.Path(os.environ['LOG_DIR'])\n"
        "(folder / 'json.log').rename(folder / 'json.log.1')\n"
        "logger.info('two')"
    )
    assert [line["event"] for line in read(run(forks, service, code, LOG_DIR=str(folder)))] == ["one", "two"]
    # As logrotate does it.
    for name, event in {"json.log.1": "one", "json.log": "two"}.items():
        assert [line["event"] for line in read((folder / name).read_text().splitlines())] == [event]
    assert (folder / "flat_line.log").read_text().count("event=") == 2


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT is 'xml'; it must be 'console', 'key_value' or 'json'."),
        (
            {"LOG_LEVEL": "loud"},
            "LOG_LEVEL is 'LOUD'; it must be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'.",
        ),
        ({"LOG_DIR": "/proc/no"}, "LOG_DIR is '/proc/no'; /proc/no/json.log can't be written: "),
    ],
)
def test_an_invalid_variable_stops_the_process_with_one_line(
    forks: Forks, service: Path, variables: dict[str, str], says: str
) -> None:
    done = forks.run(BEGIN.format(before=""), service, MEMORY | variables)
    assert done.returncode == 1
    assert done.stderr.startswith(says)
    assert len(done.stderr.splitlines()) == 1


def test_uncaught_exceptions_and_warnings(forks: Forks, service: Path) -> None:
    code = (
        "import threading, warnings\n"
        "def fail(): raise LookupError('in a thread')\n"
        "thread = threading.Thread(target=fail, name='mine')\n"
        "thread.start()\n"
        "thread.join()\n"
        "warnings.warn('old')\n"
        "raise ValueError('at the end')"
    )
    done = forks.run(BEGIN.format(before="") + code, service, MEMORY)
    assert done.returncode == 1
    thread, warning, end = read(done.stderr.splitlines())
    assert (thread["event"], thread["level"], thread["thread"]) == ("uncaught_exception", "critical", "mine")
    assert thread["exception"].endswith("LookupError: in a thread")
    assert warning["logger"] == "py.warnings"
    assert "UserWarning: old" in warning["event"]
    assert (end["event"], end["exception"].count("ValueError")) == ("uncaught_exception", 1)


def test_a_long_traceback_is_cut(forks: Forks, service: Path) -> None:
    code = (
        "def fail(depth): return fail_too(depth - 1) if depth else 1 / 0\n"
        "def fail_too(depth): return fail(depth - 1) if depth else 1 / 0\n"
        "try:\n    fail(900)\nexcept ZeroDivisionError:\n    logger.exception('failed')"
    )
    [line] = read(run(forks, service, code))
    assert len(line["exception"]) < 21_000
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


def test_processors(forks: Forks, service: Path) -> None:
    before = (
        "def process(_, level, line):\n"
        "    if line['event'] == 'noise': raise structlog.DropEvent\n"
        "    if line['event'] == 'bad': raise KeyError('trace')\n"
        "    return line | {'trace_id': '1f'}\n"
        "log.add_processor(process)"
    )
    code = "logger.info('noise')\nlogging.warning('seen')\nlogger.info('bad')"
    seen, bad = read(run(forks, service, code, before=before))
    assert (seen["event"], seen["trace_id"]) == ("seen", "1f")
    assert bad["event"] == "bad can't be logged: KeyError('trace')"


WORKER = """
import logging, sys
from celery.signals import worker_ready
{before}
def ready(**kwargs):
    print(logging.getLevelName(logging.getLogger().level), flush=True)
    raise SystemExit
worker_ready.connect(ready)
from celery.bin.celery import main
sys.argv = ["celery", "-A", "my_service.celery", "worker", "--pool", "solo", *{arguments!r}]
main()
"""


@pytest.mark.parametrize(
    ("arguments", "variables", "level"),
    [
        ([], {}, "INFO"),
        ([], {"LOG_LEVEL": "error"}, "ERROR"),
        (["--loglevel", "WARNING"], {"LOG_LEVEL": "DEBUG"}, "WARNING"),
        (["--loglevel", "DEBUG"], {}, "DEBUG"),
        ([], {"CELERY_WORKER_LOGLEVEL": "CRITICAL", "LOG_LEVEL": "DEBUG"}, "CRITICAL"),
    ],
)
def test_the_level_of_the_command_line_wins(
    forks: Forks, service: Path, arguments: list[str], variables: dict[str, str], level: str
) -> None:
    code = WORKER.format(arguments=[*arguments, "--without-mingle", "--without-gossip"], before="")
    done = forks.run(code, service, MEMORY | {"HEALTH_DIR": str(service / "health")} | variables)
    assert level in done.stdout.splitlines(), done


def test_a_file_of_the_command_line(forks: Forks, service: Path) -> None:
    code = WORKER.format(arguments=["-f", str(service / "%n.log"), "-n", "mine@x"], before="")
    done = forks.run(code, service, MEMORY | {"HEALTH_DIR": str(service / "health")})
    events = [line["event"] for line in read((service / "mine.log").read_text().splitlines())]
    assert any(event.startswith("Connected to memory://") for event in events)
    assert "Connected" not in done.stderr


def test_a_project_without_this_part_has_the_log_of_celery(forks: Forks, service: Path) -> None:
    app = service / "my_service" / "celery.py"
    app.write_text(app.read_text().replace("routes=", "without={'observability.logging'}, routes="))
    code = WORKER.format(arguments=["-l", "INFO"], before="")
    done = forks.run(code, service, MEMORY | {"HEALTH_DIR": str(service / "health")})
    assert re.search(r"\[.*: INFO/MainProcess\] Connected to memory:", done.stderr), done
