"""The `CELERY_*` contract: what a variable does, and what is said when it can't."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.app.defaults import NAMESPACES, flatten
from celery.bin.celery import celery as command_line

from support.project import InstalledProject, install, render

OPTIONS = dict(flatten(NAMESPACES))

# A text for each type of Celery's table, and what Celery must be given for it.
SAMPLES: dict[str, list[tuple[str, object]]] = {
    "string": [("text", "text"), ("with spaces, and = # \" ' \\", "with spaces, and = # \" ' \\")],
    "str": [("gzip", "gzip")],
    "bool": [("true", True), ("False", False), ("1", True), ("off", False)],
    "int": [("7", 7), ("none", None)],
    "float": [("2.5", 2.5), ("none", None)],
    "dict": [('{"a": {"b": [1, true]}}', {"a": {"b": [1, True]}})],
    "list": [('["a", "b"]', ["a", "b"]), ("a, b", ["a", "b"])],
    "tuple": [('["a", "b"]', ["a", "b"]), ("a,b", ["a", "b"])],  # a list once it went through JSON
    "bytes": [("secret", "secret")],
}
# Where the table says `any`, or says what Celery doesn't mean.
SPECIAL: dict[str, list[tuple[str, object]]] = {
    "beat_cron_starting_deadline": SAMPLES["int"],
    "broker_use_ssl": [("true", True), ('{"ca_certs": "x"}', {"ca_certs": "x"})],
    "task_annotations": [('{"*": {"rate_limit": "10/s"}}', {"*": {"rate_limit": "10/s"}})],
    "task_default_delivery_mode": [("1", 1), ("transient", "transient")],
    "task_default_priority": [("5", 5)],
    "task_routes": [('{"a.*": {"queue": "b"}}', {"a.*": {"queue": "b"}})],
    "worker_concurrency": [("3", 3), ("auto", "auto")],
}
NOT_AS_TEXT = {"beat_schedule", "database_engine_callback"}

READ = """
import json, os
from {slug}.runtime.environment import read_settings
plain = lambda value: value.decode() if isinstance(value, bytes) else str(value)
print(json.dumps([read_settings(one) for one in json.loads(os.environ["CASES"])], default=plain))
"""


@pytest.fixture(scope="module")
def project(projects: Callable[[str], InstalledProject]) -> InstalledProject:
    return projects("redis")


def cases() -> list[tuple[str, str, object]]:
    """Every setting that text can express, with every sample of its type."""
    return [
        (name, text, value)
        for name, option in OPTIONS.items()
        if name not in NOT_AS_TEXT
        for text, value in SPECIAL.get(name) or SAMPLES[option.type]
    ]


def in_python(project: InstalledProject, code: str, **variables: str) -> Any:
    """Run code in the project and give what it prints, as JSON."""
    done = project.run("python", "-c", code.replace("{slug}", project.slug), env=variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_setting_goes_through_the_environment(project: InstalledProject) -> None:
    asked = [{f"CELERY_{name.upper()}": text} for name, text, _ in cases()]
    got = in_python(project, READ, CASES=json.dumps(asked))
    wanted = [{name: value} for name, _, value in cases()]
    assert len(asked) > 200
    assert got == wanted


def test_the_app_uses_what_the_environment_says(project: InstalledProject) -> None:
    """The settings as Celery sees them, not as we have read them."""
    variables = {
        "CELERY_BROKER_URL": "redis://broker:1/2",
        "CELERY_RESULT_BACKEND": "redis://results:3/4",
        "CELERY_TASK_ACKS_LATE": "false",
        "CELERY_WORKER_CONCURRENCY": "3",
        "CELERY_TASK_ROUTES": '{"a.*": {"queue": "b"}}',
        "CELERY_BROKER_TRANSPORT_OPTIONS": '{"max_connections": 20}',
    }
    code = (
        "import json; from {slug}.celery import celery; c = celery.conf;"
        "print(json.dumps([c.broker_url, c.result_backend, c.task_acks_late, c.worker_concurrency,"
        "c.task_routes, c.broker_transport_options, celery.connection_for_write().as_uri()]))"
    )
    *plain, options, uri = in_python(project, code, **variables)
    assert plain == ["redis://broker:1/2", "redis://results:3/4", False, 3, {"a.*": {"queue": "b"}}]
    assert uri == "redis://:**@broker:1/2"
    assert options["max_connections"] == 20
    assert options["visibility_timeout"] == 1260  # 600 limit + 600 longest delay + 60


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "CELERY_BROKER_URL is not set"),
        ({"CELERY_TASK_ACK_LATE": "1"}, "did you mean CELERY_TASK_ACKS_LATE?"),
        ({"CELERY_WORKER_CONCURRENCY": "lots"}, "CELERY_WORKER_CONCURRENCY is 'lots'"),
        ({"CELERY_TASK_ACKS_LATE": "maybe"}, "CELERY_TASK_ACKS_LATE is 'maybe'"),
        ({"CELERY_BEAT_SCHEDULE": "{}"}, "CELERY_BEAT_SCHEDULE means the schedule file"),
        ({"CELERY_BROKER": "redis://localhost"}, "CELERY_BROKER is read by the `celery` command only"),
        ({"BROKER_URL": "redis://elsewhere"}, "BROKER_URL overrides CELERY_BROKER_URL"),
        ({"RESULT_BACKEND": "redis://elsewhere"}, "RESULT_BACKEND overrides"),
        ({"CELERY_BROKER_URL": "sqs://"}, "must start with redis://"),
        ({"CELERY_BROKER_URL_FILE": "/missing"}, "'/missing' can't be read: No such file"),
        ({"CELERY_DATABASE_ENGINE_CALLBACK": "x"}, "set it in celeryconfig.py"),
        ({"CELERY_TASK_ROUTES": '{"a'}, "must be a JSON object or list"),
        ({"CELERY_TASK_QUEUES": "[]"}, "must be a JSON object"),
        ({"CELERY_RESULT_EXPIRES": "nan"}, "must be a number, or none"),
        ({"CELERY_TASK_SOFT_TIME_LIMIT": "600"}, "must be below CELERY_TASK_TIME_LIMIT"),
        ({"CELERY_TASK_TIME_LIMIT": "none"}, '"visibility_timeout"'),
        ({"CELERY_BROKER_URL": "sentinel://a:1"}, 'must hold a "master_name"'),
        ({"CELERY_CONFIG_MODULE": "missing"}, "CELERY_CONFIG_MODULE is 'missing'"),
        ({"CELERY_FROBNICATE": "1"}, "docs/dev/celery.md lists them all."),
        (
            {"CELERY_BROKER_TRANSPORT_OPTIONS": '{"visibility_timeout": 60}'},
            "must be above CELERY_TASK_TIME_LIMIT",
        ),
    ],
)
def test_one_line_says_what_is_wrong(project: InstalledProject, variables: dict[str, str], says: str) -> None:
    if variables and "CELERY_BROKER_URL_FILE" not in variables:
        variables = {"CELERY_BROKER_URL": "redis://localhost:1"} | variables
    before = files(project.folder)
    for command in (
        ("celery", "-A", f"{project.slug}.celery", "worker"),
        ("celery", "-A", f"{project.slug}.celery", "beat"),
        ("celery", "-A", f"{project.slug}.celery", "inspect", "ping"),
        ("python", "-c", f"import {project.slug}.celery"),
    ):
        done = project.run(*command, env=variables)
        assert done.returncode == 1
        assert done.stdout == ""
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert files(project.folder) == before


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_a_broken_json_value_is_not_shown(project: InstalledProject) -> None:
    broken = '{"password": "hunter2"'
    variables = {"CELERY_BROKER_URL": "memory://", "CELERY_BROKER_TRANSPORT_OPTIONS": broken}
    done = project.run("python", "-c", f"import {project.slug}.celery", env=variables)
    assert done.returncode == 1
    assert "hunter2" not in done.stderr


def test_what_celery_and_its_commands_read_stays_allowed(project: InstalledProject) -> None:
    options = [f"CELERY_{option.name}" for option in command_line.params]
    for name, command in command_line.commands.items():
        options += [f"CELERY_{name}_{option.name}" for option in command.params]
    settings = {f"CELERY_{name.upper()}" for name in OPTIONS}
    refused = {"CELERY_BROKER", "CELERY_BEAT_SCHEDULE"}
    by_celery = ["CELERY_LOG_LEVEL", "CELERY_LOG_FILE", "CELERY_LOG_REDIRECT", "CELERY_LOADER"]
    allowed = {name.upper() for name in options + by_celery} - settings - refused
    assert len(allowed) > 90
    case = dict.fromkeys(allowed, "x")
    assert in_python(project, READ, CASES=json.dumps([case])) == [{}]


def test_secrets_come_from_files(project: InstalledProject, tmp_path: Path) -> None:
    secret = tmp_path / "broker"
    secret.write_text("redis://:hunter2@localhost:1/0\n")
    code = (
        "import json; from {slug}.celery import celery;"
        "print(json.dumps([celery.conf.broker_url, celery.connection_for_write().as_uri(include_password=True)]))"
    )
    urls = in_python(project, code, CELERY_BROKER_URL_FILE=str(secret))
    assert urls == ["redis://:hunter2@localhost:1/0"] * 2
    both = {"CELERY_BROKER_URL_FILE": str(secret), "CELERY_BROKER_URL": "redis://localhost"}
    done = project.run("python", "-c", f"import {project.slug}.celery", env=both)
    assert done.stderr == "CELERY_BROKER_URL_FILE and CELERY_BROKER_URL are both set.\n"


def test_an_empty_variable_counts_as_unset(project: InstalledProject) -> None:
    code = "import json; from {slug}.celery import celery; print(json.dumps(celery.conf.task_acks_late))"
    assert in_python(project, code, CELERY_BROKER_URL="memory://", CELERY_TASK_ACKS_LATE="") is True


@pytest.fixture
def own_project(tmp_path: Path) -> InstalledProject:
    """A project whose root a test may change."""
    return install(render(tmp_path / "project"))


def test_celeryconfig_stands_between_our_defaults_and_the_environment(
    own_project: InstalledProject,
) -> None:
    (own_project.folder / "celeryconfig.py").write_text(
        "import os\n"
        "from datetime import timedelta\n"
        "from kombu import Queue\n"
        "_hour = 3600\n"
        "task_time_limit = _hour\n"
        "result_expires = timedelta(hours=2)\n"
        "worker_prefetch_multiplier = 3\n"
        "broker_url = 'redis://from-file:1/0'\n"
        "task_queues = [Queue('mine')]\n"
    )
    code = (
        "import json; from {slug}.celery import celery; c = celery.conf;"
        "print(json.dumps([c.broker_url, c.task_time_limit, c.task_soft_time_limit,"
        "c.worker_prefetch_multiplier, list(celery.amqp.queues), c.task_acks_late,"
        "c.broker_transport_options['visibility_timeout'], c.result_backend]))"
    )
    got = in_python(own_project, code, CELERY_WORKER_PREFETCH_MULTIPLIER="2")
    url = "redis://from-file:1/0"
    assert got == [url, 3600, 3240, 2, ["mine"], True, 3600 + 660, url]
    got = in_python(own_project, code, CELERY_BROKER_URL="redis://environment:1/0")
    assert got[0] == "redis://environment:1/0"


@pytest.mark.parametrize("line", ["task_ack_late = True", "minutes = 60"])
def test_an_unknown_name_in_celeryconfig_is_refused(own_project: InstalledProject, line: str) -> None:
    (own_project.folder / "celeryconfig.py").write_text(f"{line}\n")
    code = f"import {own_project.slug}.celery"
    done = own_project.run("python", "-c", code, env={"CELERY_BROKER_URL": "memory://"})
    assert done.returncode == 1
    assert done.stderr.startswith(f"celeryconfig.py: {line.split()[0]} is not a setting of Celery")
    assert done.stderr.count("\n") == 1


def test_a_task_module_that_can_not_be_imported_stops_the_worker(
    own_project: InstalledProject,
) -> None:
    module = own_project.folder / own_project.slug / "tasks" / "broken.py"
    module.write_text("import a_library_that_is_missing\n")
    done = own_project.celery("worker", "--pool=solo", env={"CELERY_BROKER_URL": "memory://"})
    assert done.returncode != 0
    assert "a_library_that_is_missing" in done.stderr
