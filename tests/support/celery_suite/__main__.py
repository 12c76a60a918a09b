"""Run Celery's own integration tests of canvases and tasks against a generated project, on Redis and on RabbitMQ.

    make celery-suite
    make celery-suite ARGS='--broker redis -k test_chord'

They come from the source distribution of the Celery that the project has: its package index has it. The project's
own worker runs their tasks, and its own `celery.py` makes the app of each test: adapter.py. Tests that look into their
worker get one in their own process. What fails is compared with expected.toml, which has a reason for each difference.
The exit status is 1 when a test fails that isn't named there, or passes although it is.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from support import environment
from support.project import KEPT, InstalledProject, Worker, kept_project, run_python
from support.servers import Server, start_rabbitmq, start_redis

HERE = Path(__file__).parent
BROKERS = ("redis", "rabbitmq")
SUITE = ("t/integration/test_canvas.py", "t/integration/test_tasks.py")
#: What the tests need besides the project. They bring their own marks for repetitions, which are left out.
PACKAGES = ("pytest>=9", "pytest-timeout")
#: What has a test start its worker itself. Some tests read its log, of which it has errors only by default.
IN_PROCESS = {"SUITE_IN_PROCESS": "yes", "WORKER_LOGLEVEL": "info"}
TASK_MODULES = ("celery.contrib.testing.tasks", "t.integration.tasks")


def main() -> int:
    """Run what was asked for; status 1 when something differs from what is expected."""
    options, arguments = _options()
    project = kept_project({}, {"suite": HERE / "suite_tasks.py"}, extras=BROKERS, add=PACKAGES)
    version = run_python(project, "import celery; print(f'\"{celery.__version__}\"')")
    folder = Path(tempfile.mkdtemp(prefix="celery-suite-"))
    root = _unpack(_source_of(version), folder)
    differs = False
    for broker in options.broker:
        outcomes = _run(project, root, broker, folder / broker, arguments)
        differs |= _compare(broker, outcomes)
    if differs:
        print(f"The logs are in {folder}")
    else:
        shutil.rmtree(folder)
    return int(differs)


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="make celery-suite", epilog="Other arguments go to pytest.")
    parser.add_argument("--broker", nargs="+", default=BROKERS, choices=BROKERS)
    return parser.parse_known_args()


# --- the tests --------------------------------------------------------------------------------------------------------


def _source_of(version: str) -> Path:
    """Give the source distribution, which is downloaded the first time."""
    name = f"celery-{version}.tar.gz"
    kept = KEPT.parent / name
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            download = ["pip", "download", "--no-deps", "--no-binary", "celery", "--dest", folder, f"celery=={version}"]
            uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
            subprocess.run([uv, "tool", "run", *download], env=environment.of_a_package_client(), check=True)
            shutil.move(Path(folder) / name, kept)
    return kept


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tests, without the Celery beside them, and have them use our app and worker."""
    with tarfile.open(archive) as tar:
        tests = [each for each in tar if each.name.partition("/")[2].startswith("t/")]
        tar.extractall(folder, tests, filter="data")
    root = folder / archive.name.removesuffix(".tar.gz")
    integration = root / "t" / "integration"
    shutil.copy(HERE / "adapter.py", integration / "ours.py")
    with (integration / "conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write("\n\nfrom .ours import *  # noqa\n")
    (root / "pytest.ini").write_text("[pytest]\npython_classes = test_*\nmarkers = flaky\n", encoding="utf-8")
    return root


# --- the run ----------------------------------------------------------------------------------------------------------


def _run(project: InstalledProject, root: Path, broker: str, folder: Path, arguments: Sequence[str]) -> dict[str, str]:
    """Run the tests on a broker of their own; give how each of them has ended."""
    folder.mkdir()
    with ExitStack() as stack:
        redis = stack.enter_context(start_redis(folder / "redis"))
        server = redis if broker == "redis" else stack.enter_context(start_rabbitmq(folder / "rabbitmq"))
        variables = _variables(project, root, server, redis, folder)
        inside = [f"t/integration/{name}" for name in _table()["in_process"]]
        others = [argument for name in inside for argument in ("--deselect", name)]
        # Our workers refuse to start with this task, whose soft limit is above its time limit. Clients still see both.
        wrong = "t.integration.tasks.soft_time_limit_must_exceed_time_limit"
        of_workers = variables | {"CELERY_TASK_ANNOTATIONS": json.dumps({wrong: {"soft_time_limit": None}})}
        with Worker(project, env=of_workers, log=folder / "worker.log", arguments=["--concurrency=1", "-E"]) as worker:
            worker.wait_ready()
            outcomes = _pytest(project, root, variables, *SUITE, *others, *arguments)
        return outcomes | _pytest(project, root, of_workers | IN_PROCESS, *inside, *arguments)


def _pytest(project: InstalledProject, root: Path, variables: Mapping[str, str], *arguments: str) -> dict[str, str]:
    """Run some tests, and those that have failed once more, as Celery does: some are a matter of time."""
    outcomes: dict[str, str] = {}
    shutil.rmtree(root / ".pytest_cache", ignore_errors=True)
    for repetition in ([], ["--last-failed", "--last-failed-no-failures=none"]):
        command = [project.program("pytest"), *repetition, *arguments]
        Path(variables["SUITE_OUTCOMES"]).unlink(missing_ok=True)
        ended = subprocess.run(command, cwd=root, env=environment.of_a_user(variables), check=False)
        if not Path(variables["SUITE_OUTCOMES"]).exists():
            raise RuntimeError(f"pytest ended with status {ended.returncode} before its last test")
        outcomes |= json.loads(Path(variables["SUITE_OUTCOMES"]).read_text(encoding="utf-8"))
    return outcomes


def _variables(project: InstalledProject, root: Path, server: Server, redis: Server, folder: Path) -> dict[str, str]:
    host, port = redis.url.removeprefix("redis://").partition("/")[0].split(":")
    return {
        "CELERY_BROKER_URL": server.url,
        "CELERY_RESULT_BACKEND": redis.url,
        "CELERY_INCLUDE": ",".join(TASK_MODULES),
        "CELERY_RESULT_EXTENDED": "true",
        # Tests of retries take the first state that isn't PENDING for RETRY. Celery's default is without STARTED.
        "CELERY_TASK_TRACK_STARTED": "false",
        "PYTHONPATH": os.pathsep.join([str(root), str(project.folder)]),
        # What the tests themselves read.
        "TEST_BROKER": server.url,
        "TEST_BACKEND": redis.url,
        "REDIS_HOST": host,
        "REDIS_PORT": port,
        "SUITE_APP": f"{project.slug}.celery",
        "SUITE_OUTCOMES": str(folder / "outcomes.json"),
    }


# --- the comparison ---------------------------------------------------------------------------------------------------


def _compare(broker: str, outcomes: Mapping[str, str]) -> bool:
    """Say how the outcomes differ from what is expected; give whether they do."""
    expected = _expected(broker)
    failed = {name for name, outcome in outcomes.items() if outcome == "failed"}
    known = {name: reason for name in failed for pattern, reason in expected if fnmatchcase(name, pattern)}
    unexpected = [f"fails: {name}" for name in sorted(failed - known.keys())]
    unexpected += [
        f"passes, although expected.toml says that it fails: {name}"
        for name, outcome in sorted(outcomes.items())
        if outcome == "passed" and any(fnmatchcase(name, pattern) for pattern, _ in expected)
    ]
    counts = {end: list(outcomes.values()).count(end) for end in ("passed", "failed", "skipped", "xfailed")}
    print(f"\n{broker}: {', '.join(f'{count} {end}' for end, count in counts.items())}")
    for name, reason in sorted(known.items()):
        print(f"  differs: {name}: {reason}")
    for line in unexpected:
        print(f"  {line}")
    return bool(unexpected)


def _expected(broker: str) -> list[tuple[str, str]]:
    """Give the patterns of the tests that fail on this broker, each with the reason."""
    return [
        (pattern, difference["reason"])
        for difference in _table()["difference"]
        if broker in difference.get("brokers", BROKERS)
        for pattern in difference["tests"]
    ]


def _table() -> dict[str, Any]:
    return tomllib.loads((HERE / "expected.toml").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
