"""Our defaults and the environment, merged; and what can't work is refused."""

import importlib
import json
from pathlib import Path

import pytest
from celery import Celery
from celery.app.defaults import NAMESPACES, flatten
from celery_service.brokers.queues import route_by_priority
from celery_service.config.settings import ConfigurationError

from support.configuration import RABBITMQ, REDIS, RESULTS, configured
from support.forks import Forks


@pytest.mark.parametrize("url", [REDIS, RABBITMQ, "memory://", "filesystem://localhost"])
def test_every_default_is_a_setting_of_celery(tmp_path: Path, url: str) -> None:
    assert configured(tmp_path, broker_url=url).keys() <= dict(flatten(NAMESPACES)).keys()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "CELERY_BROKER_URL is not set; name a broker such as redis://localhost:6379/0 or amqp://"),
        (
            {"task_soft_time_limit": "600"},
            "CELERY_TASK_SOFT_TIME_LIMIT is 600; it must be below CELERY_TASK_TIME_LIMIT, 600.",
        ),
        # The derived one isn't blamed.
        ({"task_time_limit": "0"}, "CELERY_TASK_TIME_LIMIT is '0'; it must be a number of seconds above 0, or none."),
        *(
            (
                {"broker_transport_options": f'{{"visibility_timeout": {lease}}}'},
                f"CELERY_BROKER_TRANSPORT_OPTIONS has visibility_timeout {shown}; it must be a number of seconds, 1 or",
            )
            for lease, shown in [("null", None), ("0", 0), ('"none"', "'none'"), ('"x"', "'x'"), ("Infinity", "inf")]
        ),
        ({"config_module": "missing"}, "CELERY_CONFIG_MODULE is 'missing', which can't be imported: No module named"),
    ],
)
def test_an_invalid_configuration_is_refused_with_one_line(
    tmp_path: Path, variables: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configured(tmp_path, **({"broker_url": REDIS} | variables if variables else {}))
    text = str(caught.value)
    assert text.startswith(says)
    assert "\n" not in text


def test_options_of_a_transport_are_added_to_ours(tmp_path: Path) -> None:
    settings = configured(tmp_path, broker_url=REDIS, broker_transport_options='{"max_connections": 20}')
    options = settings["broker_transport_options"]
    assert options["max_connections"] == 20
    assert options["queue_order_strategy"] == "priority"
    assert options["visibility_timeout"] == 60


def test_the_soft_time_limit_is_nine_tenths_of_the_time_limit(tmp_path: Path) -> None:
    assert configured(tmp_path, broker_url=REDIS, task_time_limit="100")["task_soft_time_limit"] == 90


@pytest.mark.parametrize("url", [REDIS, RABBITMQ])
@pytest.mark.parametrize("limit", ["none", "100", "7200"])
def test_the_lease_does_not_depend_on_the_time_limit(tmp_path: Path, url: str, limit: str) -> None:
    settings = configured(tmp_path, broker_url=url, task_time_limit=limit)
    assert ("task_soft_time_limit" in settings) == (limit != "none")
    assert settings["broker_transport_options"].get("visibility_timeout") == (60 if url == REDIS else None)


@pytest.mark.parametrize("lease", [1, 7200, 2.5])
def test_a_lease_can_be_set(tmp_path: Path, lease: float) -> None:
    settings = configured(tmp_path, broker_url=REDIS, broker_transport_options=f'{{"visibility_timeout": {lease}}}')
    assert settings["broker_transport_options"]["visibility_timeout"] == lease


def test_results_know_the_master_of_the_brokers_sentinel(tmp_path: Path) -> None:
    broker = {
        "broker_url": "sentinel://a:1;sentinel://b:1",
        "broker_transport_options": '{"master_name": "mine", "sentinel_kwargs": {"password": "x"}}',
    }
    options = configured(tmp_path, **broker)["result_backend_transport_options"]
    assert (options["master_name"], options["sentinel_kwargs"]) == ("mine", {"password": "x"})
    assert "retry_policy" in options
    named = {"result_backend_transport_options": '{"master_name": "theirs"}'}
    assert configured(tmp_path, **broker, **named)["result_backend_transport_options"]["master_name"] == "theirs"
    elsewhere = {"result_backend": "sentinel://c:1"}
    options = configured(tmp_path, **broker, **elsewhere, **named)["result_backend_transport_options"]
    assert "sentinel_kwargs" not in options


def test_a_configuration_does_not_change_the_next_one(tmp_path: Path) -> None:
    before = configured(tmp_path, broker_url=REDIS)
    configured(tmp_path, broker_url=REDIS, task_time_limit="5", broker_transport_options='{"max_connections": 20}')
    assert configured(tmp_path, broker_url=REDIS) == before


@pytest.mark.parametrize(
    ("url", "consumer", "results"),
    [
        (REDIS, "celery_service.brokers.redis.consumer:Consumer", REDIS),
        ("rediss://localhost:1/0", "celery_service.brokers.redis.consumer:Consumer", "rediss://localhost:1/0"),
        (RABBITMQ, "celery_service.brokers.rabbitmq.consumer:Consumer", RESULTS),
        ("pyamqp://localhost:1", "celery_service.brokers.rabbitmq.consumer:Consumer", RESULTS),
        ("memory://", "celery_service.brokers.consumer:Consumer", "cache+memory://"),
    ],
)
def test_the_url_chooses_the_broker(tmp_path: Path, url: str, consumer: str, results: str) -> None:
    settings = configured(tmp_path, broker_url=url)
    assert settings["worker_consumer"] == consumer
    assert settings["result_backend"] == results
    assert list(settings["task_queues"]) == ["high_priority", "default", "low_priority", "dead_letter"]
    # Celery finds the class, and the queues.
    app = Celery("unit", set_as_current=False)
    app.config_from_object(settings)
    module, _, name = consumer.partition(":")
    assert app.amqp.queues["high_priority"].exchange.name == "high_priority"
    assert hasattr(importlib.import_module(module), name)


def test_without_a_server_messages_go_through_folders_of_the_project(tmp_path: Path) -> None:
    root = tmp_path / "a project"
    (root / ".dev").mkdir(mode=0o755, parents=True)
    settings = configured(root, broker_url="filesystem://localhost")
    assert settings["result_backend"] == f"file://{root}/.dev/results"
    assert settings["broker_transport_options"]["data_folder_in"] == f"{root}/.dev/messages"
    assert {path.name for path in (root / ".dev").iterdir()} == {"messages", "control", "results"}
    assert (root / ".dev").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("options", "queue"),
    [
        ({}, None),
        ({"priority": 9}, "high_priority"),
        ({"priority": 7}, "high_priority"),
        ({"priority": 6}, None),
        ({"priority": 3}, None),
        ({"priority": 2}, "low_priority"),
        ({"priority": 0}, "low_priority"),
        ({"priority": 9, "queue": "mine"}, None),
    ],
)
def test_a_priority_chooses_a_queue(options: dict[str, object], queue: str | None) -> None:
    assert route_by_priority("task", (), {}, options) == (queue and {"queue": queue})


# --- what a process makes of it ---------------------------------------------------------------------------------------

SHOW = """
import json
from my_service.celery import celery
from kombu.transport import TRANSPORT_ALIASES
conf = celery.conf
print(json.dumps({
    "broker": conf.broker_url, "results": conf.result_backend, "late": conf.task_acks_late,
    "concurrency": conf.worker_concurrency, "routes": conf.task_routes, "serializer": conf.task_serializer,
    "uri": celery.connection_for_write().as_uri(include_password=True), "transport": TRANSPORT_ALIASES["redis"],
}, default=str))
"""


def test_the_app_uses_the_settings_of_the_environment(forks: Forks, service: Path) -> None:
    """The settings as Celery sees them, not as we have read them."""
    secret = service / "secret"
    secret.write_text("redis://:hunter2@broker:1/2\n")
    variables = {
        "CELERY_BROKER_URL_FILE": str(secret),
        "CELERY_RESULT_BACKEND": "redis://results:3/4",
        "CELERY_TASK_ACKS_LATE": "false",
        "CELERY_WORKER_CONCURRENCY": "3",
        "CELERY_TASK_ROUTES": '{"a.*": {"queue": "b"}}',
    }
    done = forks.run(SHOW, service, variables)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {
        "broker": "redis://:hunter2@broker:1/2",
        "results": "redis://results:3/4",
        "late": False,
        "concurrency": 3,
        "routes": {"a.*": {"queue": "b"}},
        "serializer": "json",
        "uri": "redis://:hunter2@broker:1/2",
        "transport": "celery_service.brokers.redis.transport:Transport",
    }


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "CELERY_BROKER_URL is not set"),
        ({"CELERY_BROKER_URL": "redis://localhost:notaport/0"}, "CELERY_BROKER_URL can't be read; its port must be"),
        ({"CELERY_TIMEZONE": "Mars/Olympus"}, "CELERY_TIMEZONE is 'Mars/Olympus'; it must be a time zone"),
        ({"CELERY_TASK_TIME_LIMIT": "-5"}, "CELERY_TASK_TIME_LIMIT is '-5'; it must be a number of seconds above 0"),
        ({"CELERY_RESULT_BACKEND": "rpc://"}, "CELERY_RESULT_BACKEND starts with 'rpc'; it must start with"),
        ({"CELERY_TASK_ACK_LATE": "1"}, "did you mean CELERY_TASK_ACKS_LATE?"),
        ({"CELERY_BEAT_SCHEDULE": "{}"}, "CELERY_BEAT_SCHEDULE means the schedule file"),
        ({"CELERY_BROKER_URL_FILE": "/missing"}, "'/missing' can't be read: No such file"),
        ({"DEAD_LETTERS_MAX_COUNT": "0"}, "DEAD_LETTERS_MAX_COUNT is '0'; it must be greater than or equal to 1."),
    ],
)
def test_an_invalid_configuration_stops_every_process_with_one_line(
    forks: Forks, service: Path, variables: dict[str, str], says: str
) -> None:
    if variables and "CELERY_BROKER_URL_FILE" not in variables:
        variables = {"CELERY_BROKER_URL": "memory://"} | variables
    before = {path for path in service.rglob("*") if "__pycache__" not in path.parts}
    processes = [forks.run("import my_service.celery", service, variables)]
    processes += [
        forks.celery("-A", "my_service.celery", *command, folder=service, variables=variables)
        for command in (["worker"], ["beat"], ["inspect", "ping"])
    ]
    for done in processes:
        assert done.returncode == 1
        assert done.stdout == ""
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert {path for path in service.rglob("*") if "__pycache__" not in path.parts} == before


def test_a_task_module_that_can_not_be_imported_stops_the_worker(forks: Forks, service: Path) -> None:
    (service / "my_service" / "tasks" / "broken.py").write_text("import a_library_that_is_missing\n")
    variables = {"CELERY_BROKER_URL": "memory://"}
    done = forks.celery("-A", "my_service.celery", "worker", "--pool=solo", folder=service, variables=variables)
    assert done.returncode != 0
    assert "a_library_that_is_missing" in done.stderr
