"""`celeryconfig.py`: it stands between our defaults and the environment, and its mistakes are one line."""

from datetime import UTC
from pathlib import Path

import pytest
from celery import Celery
from celery_service.config.settings import ConfigurationError

from support.configuration import REDIS, configured
from support.forks import Forks


def test_celeryconfig_overrides_our_defaults_and_the_environment_overrides_celeryconfig(tmp_path: Path) -> None:
    (tmp_path / "celeryconfig.py").write_text(
        "from __future__ import annotations\n"
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
    settings = configured(tmp_path, worker_prefetch_multiplier="2")
    app = Celery("unit", set_as_current=False)
    app.config_from_object(settings)
    assert settings["broker_url"] == settings["result_backend"] == "redis://from-file:1/0"
    assert settings["result_expires"].total_seconds() == 7200
    assert settings["task_time_limit"] == 3600
    assert settings["task_soft_time_limit"] == 3240
    assert settings["worker_prefetch_multiplier"] == 2
    assert list(app.amqp.queues) == ["mine"]
    assert settings["task_acks_late"] is True
    assert configured(tmp_path, broker_url="redis://environment:1/0")["broker_url"] == "redis://environment:1/0"


def test_celeryconfig_can_contain_python_objects(tmp_path: Path) -> None:
    (tmp_path / "celeryconfig.py").write_text(
        "from datetime import UTC as _utc\n"
        "def task_routes(name, args, kwargs, options, **more):\n"
        "    return {'queue': 'mine'}\n"
        "class worker_pool: ...\n"
        "timezone = _utc\n"
        "accept_content = {'json'}\n"
        "imports = 'a.b'\n"
        "task_time_limit = None\n"
        "worker_concurrency = 'auto'\n"
        "task_default_rate_limit = 10\n"
    )
    settings = configured(tmp_path, broker_url=REDIS)
    assert settings["task_routes"]("a", (), {}, {}) == {"queue": "mine"}
    assert settings["worker_pool"].__name__ == "worker_pool"
    assert settings["timezone"] is UTC
    assert settings["accept_content"] == ["json"]
    assert settings["imports"] == ("a.b",)
    assert (settings["task_time_limit"], settings["worker_concurrency"]) == (None, "auto")
    assert settings["task_default_rate_limit"] == 10


@pytest.mark.parametrize("name", ["task_ack_late", "minutes"])
def test_an_unknown_name_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "celeryconfig.py").write_text(f"{name} = 60\n")
    with pytest.raises(ConfigurationError) as caught:
        configured(tmp_path, broker_url=REDIS)
    assert str(caught.value).startswith(f"celeryconfig.py: {name} is not a setting of Celery (helpers start with an")
    assert ("did you mean task_acks_late?" in str(caught.value)) == (name == "task_ack_late")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("task_time_limit = 'long'", "task_time_limit in {} is 'long'; it must be a number of seconds above 0, or"),
        ("task_time_limit = True", "task_time_limit in {} is True; it must be a number of seconds above 0, or none."),
        ("task_time_limit = -5", "task_time_limit in {} is -5; it must be a number of seconds above 0, or none."),
        ("task_soft_time_limit = 700", "task_soft_time_limit in {} is 700; it must be below CELERY_TASK_TIME_LIMIT, "),
        ("task_acks_late = 'perhaps'", "task_acks_late in {} is 'perhaps'; it must be true or false"),
        ("worker_concurrency = 2.5", "worker_concurrency in {} is 2.5; it must be a whole number, 1 or more, or auto."),
        ("worker_prefetch_multiplier = None", "worker_prefetch_multiplier in {} is None; it must be a whole number, 0"),
        ("timezone = 'Mars/Olympus'", "timezone in {} is 'Mars/Olympus'; it must be a time zone such as"),
        ("from datetime import timezone", "timezone in {} is <class 'datetime.timezone'>; it must be a time zone"),
        ("from datetime import timedelta as _t\nresult_expires = _t(-1)", "result_expires in {} is datetime."),
        ("imports = 3", "imports in {} is of type int; it must be a tuple."),
        ("broker_transport_options = ['hunter2']", "broker_transport_options in {} is of type list; it must be a"),
        ("task_routes = 5", "task_routes in {} is of type int; it must be a dict or a list."),
        ("redis_password = 12345678", "redis_password in {} is of type int; it must be text."),
        ("broker_url = ['redis://:hunter2@a']", "broker_url in {} is of type list; it must be an address"),
        ("broker_url = 'redis://:hunter2@a:b/0'", "broker_url in {} can't be read; its port must be a number"),
        ("broker_url = 'sqs://hunter2'", "broker_url in {} starts with 'sqs'; it must start with redis://,"),
        ("result_backend = 'rpc://'", "result_backend in {} starts with 'rpc'; it must start with redis://,"),
    ],
)
def test_an_invalid_value_is_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "celeryconfig.py").write_text(f"broker_url = '{REDIS}'\n{line}\n")
    with pytest.raises(ConfigurationError) as caught:
        configured(tmp_path)
    assert str(caught.value).startswith(says.format("celeryconfig.py"))
    assert "hunter2" not in str(caught.value)
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task_acks_late = (\n", "celeryconfig.py, line 1: SyntaxError: '(' was never closed."),
        ("\nimport a_missing_library", "celeryconfig.py, line 2: ModuleNotFoundError: No module named 'a_missing"),
        ("from os import missing", "celeryconfig.py, line 1: ImportError: cannot import name 'missing' from 'os'"),
        ("\n\nx = 1 / 0", "celeryconfig.py, line 3: ZeroDivisionError: division by zero."),
        ("import os\nos.environ['MISSING']", "celeryconfig.py, line 2: KeyError: 'MISSING'."),
        ("raise ValueError('first\\n  second.')", "celeryconfig.py, line 1: ValueError: first second."),
        # It goes wrong somewhere else, but this line is the one to look at.
        ("import json\njson.loads('{')", "celeryconfig.py, line 2: JSONDecodeError: Expecting property name"),
        ("import helper_of_mine", "helper_of_mine.py, line 2: SyntaxError: invalid syntax"),
    ],
)
def test_an_error_in_the_file_is_one_line_with_the_line_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper_of_mine.py").write_text("\na b\n")
    (tmp_path / "celeryconfig.py").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        configured(tmp_path, broker_url=REDIS)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "celeryconfig.py").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"^celeryconfig\.py.*: SyntaxError: "):
        configured(tmp_path, broker_url=REDIS)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("missing", "CELERY_CONFIG_MODULE is 'missing', which can't be imported: No module named 'missing'."),
        ("missing.part", "CELERY_CONFIG_MODULE is 'missing.part', which can't be imported: No module named 'missing'."),
        ("settings_of_mine.broken", "broken.py, line 1: ZeroDivisionError: division by zero."),
        ("settings_of_mine.wrong", "task_time_limit in settings_of_mine.wrong is 'x'; it must be a number"),
    ],
)
def test_errors_in_a_module_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, says: str
) -> None:
    folder = tmp_path / "settings_of_mine"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "wrong.py").write_text("task_time_limit = 'x'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        configured(tmp_path, broker_url=REDIS, config_module=module)
    assert str(caught.value).startswith(says)


def test_an_error_in_the_file_stops_every_process_with_one_line(forks: Forks, service: Path) -> None:
    (service / "pyproject.toml").touch()
    (service / "celeryconfig.py").write_text("import a_library_that_is_missing\n")
    variables = {"CELERY_BROKER_URL": "memory://"}
    done = [forks.run("import my_service.celery", service, variables)]
    done += [
        forks.celery("-A", "my_service.celery", command, folder=service, variables=variables)
        for command in ("worker", "beat")
    ]
    line = "celeryconfig.py, line 1: ModuleNotFoundError: No module named 'a_library_that_is_missing'.\n"
    assert [(each.returncode, each.stderr) for each in done] == [(1, line)] * 3
