"""The `CELERY_*` contract: what a variable does, and what is said when it can't."""

import math
from pathlib import Path

import pytest
from celery.app.defaults import NAMESPACES, flatten
from celery.bin.celery import celery as command_line
from celery_service.config.environment import COLLIDING, read_settings
from celery_service.config.settings import ConfigurationError

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
    "tuple": [('["a", "b"]', ("a", "b")), ("a,b", ("a", "b"))],
    "bytes": [("secret", b"secret")],
}
ADDRESS: list[tuple[str, object]] = [("redis://:a%20b@c", "redis://:a%20b@c")]
# Where the table says `any`, or says what Celery doesn't mean.
SPECIAL: dict[str, list[tuple[str, object]]] = {
    "beat_cron_starting_deadline": SAMPLES["int"],
    "result_backend_max_retries": [("2.5", 2.5), ("inf", math.inf)],
    "result_cache_max": [("-1", -1), ("7", 7)],
    "task_default_rate_limit": [("10/m", "10/m"), ("2.5", 2.5)],
    "timezone": [("Europe/Berlin", "Europe/Berlin"), ("UTC", "UTC")],
    "worker_max_memory_per_child": [("1", 1)],
    "worker_max_tasks_per_child": [("1", 1)],
    "worker_prefetch_multiplier": [("0", 0), ("7", 7)],
    "worker_redirect_stdouts_level": [("WARNING", "WARNING"), ("30", 30)],
    "worker_soft_shutdown_timeout": [("0", 0.0), ("2.5", 2.5)],
    "broker_read_url": ADDRESS,
    "broker_url": ADDRESS,
    "broker_write_url": ADDRESS,
    "result_backend": ADDRESS,
    "broker_use_ssl": [("true", True), ('{"ca_certs": "x"}', {"ca_certs": "x"})],
    "task_annotations": [('{"*": {"rate_limit": "10/s"}}', {"*": {"rate_limit": "10/s"}})],
    "task_default_delivery_mode": [("1", 1), ("transient", "transient")],
    "task_default_priority": [("5", 5)],
    "task_routes": [('{"a.*": {"queue": "b"}}', {"a.*": {"queue": "b"}})],
    "worker_concurrency": [("3", 3), ("auto", "auto")],
}
NOT_AS_TEXT = {"beat_schedule", "database_engine_callback"}


def cases() -> list[tuple[str, str, object]]:
    """Every setting that text can express, with every sample of its type."""
    return [
        (name, text, value)
        for name, option in OPTIONS.items()
        if name not in NOT_AS_TEXT
        for text, value in SPECIAL.get(name) or SAMPLES[option.type]
    ]


def test_every_setting_goes_through_the_environment() -> None:
    got = [read_settings({f"CELERY_{name.upper()}": text}) for name, text, _ in cases()]
    assert len(got) > 400
    assert got == [{name: value} for name, _, value in cases()]
    # True is not 1, nor 1.0.
    for settings, (name, _, value) in zip(got, cases(), strict=True):
        assert type(settings[name]) is type(value), name


def test_an_empty_variable_counts_as_unset() -> None:
    assert read_settings(dict.fromkeys(["CELERY_TASK_ACKS_LATE", "CELERY_FROBNICATE", "BROKER_URL"], "")) == {}


def test_variables_that_celery_and_its_commands_read_are_allowed() -> None:
    options = [f"CELERY_{option.name}" for option in command_line.params]
    for name, command in command_line.commands.items():
        options += [f"CELERY_{name}_{option.name}" for option in command.params]
    settings = {f"CELERY_{name.upper()}" for name in OPTIONS}
    by_celery = ["CELERY_LOG_LEVEL", "CELERY_LOG_FILE", "CELERY_LOG_REDIRECT", "CELERY_LOADER"]
    allowed = {name.upper() for name in options + by_celery} - settings - COLLIDING.keys()
    assert len(allowed) > 90
    assert read_settings(dict.fromkeys(allowed, "x")) == {}


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CELERY_TASK_ACK_LATE", "1", "is not a setting of Celery; did you mean CELERY_TASK_ACKS_LATE?"),
        ("CELERY_FROBNICATE", "1", "is not a setting of Celery; docs/dev/celery.md links to all of them."),
        *(
            ("CELERY_WORKER_CONCURRENCY", value, f"is {value!r}; it must be a whole number, 1 or more, or auto.")
            for value in ("lots", "2.5", "0", "-5", "inf", "none")
        ),
        *(
            (f"CELERY_{name}", value, f"is {value!r}; it must be a number of seconds above 0, or none.")
            for name in ("TASK_TIME_LIMIT", "TASK_SOFT_TIME_LIMIT", "REDIS_SOCKET_TIMEOUT")
            for value in ("0", "-5", "inf", "nan", "1m")
        ),
        *(
            # The `celery` command reads this one as well, and knows no `none`.
            ("CELERY_WORKER_MAX_TASKS_PER_CHILD", value, f"is {value!r}; it must be a whole number, 1 or more.")
            for value in ("0", "-5", "inf", "none")
        ),
        *(
            ("CELERY_WORKER_PREFETCH_MULTIPLIER", value, f"is {value!r}; it must be a whole number, 0 or more.")
            for value in ("-5", "inf", "none")
        ),
        *(
            ("CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT", value, f"is {value!r}; it must be a number of seconds, 0 or more.")
            for value in ("-5", "inf", "none")
        ),
        *(
            ("CELERY_WORKER_ETA_TASK_LIMIT", value, f"is {value!r}; it must be a whole number, 1 or more, or none.")
            for value in ("0", "-5", "inf")
        ),
        ("CELERY_BROKER_POOL_LIMIT", "-3", "is '-3'; it must be a whole number, 0 or more, or none."),
        ("CELERY_EVENT_QUEUE_TTL", "-1", "is '-1'; it must be a number, 0 or more, or none."),
        ("CELERY_RESULT_BACKEND_MAX_RETRIES", "nan", "is 'nan'; it must be a number, 0 or more, or inf."),
        *(
            ("CELERY_TASK_DEFAULT_RATE_LIMIT", value, f"is {value!r}; it must be a number of tasks a second, or")
            for value in ("often", "10/x", "-5", "inf")
        ),
        *(
            ("CELERY_TIMEZONE", value, f"is {value!r}; it must be a time zone such as UTC or Europe/Berlin.")
            for value in ("Mars/Olympus", "Europe", "../etc/passwd", "CEST")
        ),
        ("CELERY_BROKER_URL", " redis://:hunter2@x", "can't be read; it must be an address without blanks."),
        ("CELERY_RESULT_BACKEND", "redis://:hunt er2@x", "can't be read; it must be an address without blanks."),
        ("CELERY_TASK_ACKS_LATE", "maybe", "is 'maybe'; it must be true or false (or yes, no, on, off, 1, 0)."),
        ("CELERY_RESULT_EXPIRES", "nan", "is 'nan'; it must be a number of seconds, 0 or more, or none."),
        ("CELERY_RESULT_EXPIRES", "inf", "is 'inf'; it must be a number of seconds, 0 or more, or none."),
        ("CELERY_RESULT_EXPIRES", "-5", "is '-5'; it must be a number of seconds, 0 or more, or none."),
        ("CELERY_TASK_DEFAULT_PRIORITY", "high", "is 'high'; it must be a whole number, 0 or more, or none."),
        ("CELERY_DATABASE_ENGINE_CALLBACK", "x", "can't be set as text; set it in celeryconfig.py."),
        # What may hold a password isn't shown.
        ("CELERY_TASK_ROUTES", '{"a', "can't be read; it must be a JSON object or list."),
        ("CELERY_TASK_QUEUES", "[]", 'can\'t be read; it must be a JSON object such as {"key": "value"}.'),
        ("CELERY_ACCEPT_CONTENT", '["a"', "can't be read; it must be a JSON list, or words with commas such as a,b."),
        ("CELERY_BROKER_USE_SSL", "x", "can't be read; it must be true, false or a JSON object such as"),
        ("CELERY_BROKER_TRANSPORT_OPTIONS", '{"password": "hunter2"', "can't be read; it must be a JSON object"),
        ("CELERY_BEAT_SCHEDULE", "{}", "means the schedule file to `celery beat` and the schedule itself to Celery;"),
        ("CELERY_BROKER", "redis://localhost", "is read by the `celery` command only; set CELERY_BROKER_URL."),
        ("BROKER_URL", "redis://x", "overrides CELERY_BROKER_URL in the `celery` command only; set just"),
        ("RESULT_BACKEND", "redis://x", "overrides CELERY_RESULT_BACKEND in the `celery` command only; set just"),
        ("CELERY_BROKER_URL_FILE", "/missing", ": '/missing' can't be read: No such file or directory."),
        ("CELERY_BROKER_URL_FILE", "/dev/null", ": '/dev/null' is empty."),
    ],
)
def test_one_line_says_what_is_wrong(variable: str, value: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings({variable: value})
    text = str(caught.value)
    assert text.startswith(f"{variable}{says}" if says[0] == ":" else f"{variable} {says}")
    assert text[-1] in ".?"
    assert "\n" not in text
    assert "hunter2" not in text


def test_secrets_come_from_files(tmp_path: Path) -> None:
    secret = tmp_path / "broker"
    secret.write_text("redis://:hunter2@localhost:1/0\n")
    variables = {"CELERY_BROKER_URL_FILE": str(secret)}
    assert read_settings(variables) == {"broker_url": "redis://:hunter2@localhost:1/0"}
    both = variables | {"CELERY_BROKER_URL": "redis://localhost"}
    with pytest.raises(ConfigurationError, match=r"^CELERY_BROKER_URL_FILE and CELERY_BROKER_URL are both set\.$"):
        read_settings(both)


def test_a_secret_that_is_not_text_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "broker"
    secret.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="it is not UTF-8 text"):
        read_settings({"CELERY_BROKER_URL_FILE": str(secret)})
