"""Addresses of brokers and results: what is refused, and what is made of them. No message shows a password."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery_service.config.settings import ConfigurationError

from support.configuration import RABBITMQ, REDIS, configured

PORT = "{} can't be read; its port must be a number from 1 to 65535, and its password must have %2F for /,"
DATABASE = "{} must have a number as its database, such as redis://localhost:6379/0."
OPTION = "{} has an option after its ? that is unknown or has a wrong value; options are such as ssl_cert_reqs="
TLS = "{} has options of TLS, so it must start with rediss://."
REDISES = "redis://, rediss://, redis+socket://, sentinel://"

#: An address of a Redis that can't work → what is said about the variable that holds it.
WRONG = {
    "redis://:hunter2@localhost:notaport/0": PORT,
    "redis://:hunter2@localhost:99999/0": PORT,
    "redis://:hunter2@localhost:0/0": PORT,
    "redis://:hunter2@[::1/0": PORT,
    # A password with a character that must be written as %23 or %2F.
    "redis://:hunter2#x@localhost:6379/0": PORT,
    "redis://:hunter2/x@localhost:6379/0": PORT,
    "redis://:hunter2@localhost:6379/x": DATABASE,
    "redis://:hunter2@localhost:6379/-1": DATABASE,
    "redis://:hunter2@localhost:6379/0/1": DATABASE,
    "redis://:hunter2@localhost:6379/0?hunter2=1": OPTION,
    "redis://:hunter2@localhost:6379/0?ssl_cert_reqs=required": TLS,
    "rediss://:hunter2@localhost:6379/0?ssl_cert_reqs=hunter2": OPTION,
    "rediss://:hunter2@localhost:6379/0?ssl_ca_certs=/hunter2": "{} names a file that doesn't exist, as ssl_ca_certs.",
    "redis+socket://": "{} names no socket; write it such as redis+socket:///run/redis.sock.",
    "redis+socket://:hunter2@/run/redis.sock?virtual_host=x": DATABASE,
    "redis+cluster://:hunter2@localhost:6379/0": f"{{}} starts with 'redis+cluster'; it must start with {REDISES}",
    "bogus://:hunter2@localhost": f"{{}} starts with 'bogus'; it must start with {REDISES}",
    ":hunter2@localhost:6379": f"{{}} doesn't start with a scheme; it must start with {REDISES}",
}


def refusal(root: Path, **settings: str) -> str:
    """Give the line that refuses these settings."""
    with pytest.raises(ConfigurationError) as caught:
        configured(root, **settings)
    line = str(caught.value)
    assert "\n" not in line
    assert "hunter2" not in line
    return line


@pytest.mark.parametrize(("url", "says"), WRONG.items())
def test_a_redis_that_can_not_be_the_broker(tmp_path: Path, url: str, says: str) -> None:
    assert refusal(tmp_path, broker_url=url).startswith(says.format("CELERY_BROKER_URL"))


@pytest.mark.parametrize("broker", [REDIS, RABBITMQ, "memory://"])
@pytest.mark.parametrize(("url", "says"), WRONG.items())
def test_a_redis_that_can_not_keep_results(tmp_path: Path, broker: str, url: str, says: str) -> None:
    line = refusal(tmp_path, broker_url=broker, result_backend=url)
    assert line.startswith(says.format("CELERY_RESULT_BACKEND"))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqp://guest:hunter2@localhost:notaport//", PORT),
        ("amqp://guest:hunter2@localhost:5672//;amqp://guest:hunter2@localhost:notaport//", PORT),
        ("amqp://guest:hunter2@localhost//?hunter2=1", OPTION),
        ("amqp://guest:hunter2@localhost//?heartbeat=hunter2", OPTION),
    ],
)
def test_a_rabbitmq_that_can_not_be_the_broker(tmp_path: Path, url: str, says: str) -> None:
    assert refusal(tmp_path, broker_url=url).startswith(says.format("CELERY_BROKER_URL"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"broker_read_url": "redis://a:x"}, PORT.format("CELERY_BROKER_READ_URL")),
        ({"broker_url": f"{REDIS};{REDIS}"}, "CELERY_BROKER_URL names several servers; only Sentinels can be several."),
        ({"broker_url": "sentinel://a:1;sentinel://b:x"}, PORT.format("CELERY_BROKER_URL")),
        (
            {"broker_url": "sentinel://a:1"},
            'CELERY_BROKER_TRANSPORT_OPTIONS must hold a "master_name" when CELERY_BROKER_URL names a Sentinel.',
        ),
        (
            {"result_backend": "sentinel://a:1"},
            'CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS must hold a "master_name" when CELERY_RESULT_BACKEND names a',
        ),
        ({"broker_url": RABBITMQ, "result_backend": ""}, "CELERY_RESULT_BACKEND is not set; name a Redis such as "),
        ({"broker_url": "redis+cluster://a"}, "CELERY_BROKER_URL starts with 'redis+cluster'; it must"),
    ],
)
def test_an_invalid_address_is_refused_with_one_line(tmp_path: Path, settings: dict[str, str], says: str) -> None:
    assert refusal(tmp_path, **({"broker_url": REDIS} | settings)).startswith(says)


@pytest.mark.parametrize("backend", ["rpc://", "db+sqlite:///x", "cache+memory://", "file:///tmp", "disabled", "redis"])
@pytest.mark.parametrize("broker", [REDIS, RABBITMQ])
def test_dead_letters_need_a_redis(tmp_path: Path, broker: str, backend: str) -> None:
    line = refusal(tmp_path, broker_url=broker, result_backend=backend)
    assert line.startswith("CELERY_RESULT_BACKEND ")
    assert line.endswith("sentinel://: results and dead letters need a Redis that is not a cluster.")


def test_the_line_names_the_file_that_holds_the_address(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("redis://:hunter2@localhost:x/0\n")
    assert refusal(tmp_path, broker_url_file=str(secret)).startswith(PORT.format("CELERY_BROKER_URL_FILE"))


@pytest.mark.parametrize(
    "url",
    ["redis://", "redis://localhost", "redis://localhost/", "redis://:%23%2F%40@[::1]:6379//1", "rediss://localhost/0"],
)
def test_a_valid_redis_url_is_accepted(tmp_path: Path, url: str) -> None:
    assert configured(tmp_path, broker_url=url)["result_backend"] == url
    assert configured(tmp_path, broker_url=RABBITMQ, result_backend=url)["result_backend"] == url


# --- TLS --------------------------------------------------------------------------------------------------------------


def connections(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Give what the broker and the results would connect with."""
    app = Celery("unit", set_as_current=False)
    app.config_from_object(settings)
    backend: Any = app.backend
    return app.connection_for_write().ssl, backend.client.connection_pool.make_connection()


@pytest.mark.parametrize(
    ("settings", "verifies"),
    [
        ({"broker_url": "rediss://a"}, ssl.CERT_REQUIRED),
        ({"broker_url": "rediss://a", "broker_use_ssl": "true"}, ssl.CERT_REQUIRED),
        ({"broker_url": "rediss://a?ssl_cert_reqs=none"}, ssl.CERT_NONE),
        ({"broker_url": "rediss://a?ssl_cert_reqs=CERT_OPTIONAL"}, ssl.CERT_OPTIONAL),
        ({"broker_url": "rediss://a?ssl_check_hostname=false"}, ssl.CERT_REQUIRED),
        ({"broker_url": "redis://a", "broker_use_ssl": "true"}, ssl.CERT_REQUIRED),
        ({"broker_url": "redis://a", "broker_use_ssl": '{"ssl_cert_reqs": "none"}'}, ssl.CERT_NONE),
    ],
)
def test_certificates_are_verified_by_default(
    tmp_path: Path, settings: dict[str, str], verifies: ssl.VerifyMode
) -> None:
    of_broker, of_results = connections(configured(tmp_path, **settings))
    # Without the option, redis-py verifies: that is what a broker with another option of TLS gets.
    asked = of_broker.get("ssl_cert_reqs", ssl.CERT_REQUIRED)
    assert (verifies if asked == "none" else asked) == verifies
    assert of_results.cert_reqs == verifies


@pytest.mark.parametrize(
    ("settings", "verifies"),
    [
        ({"result_backend": "rediss://a"}, ssl.CERT_REQUIRED),
        ({"result_backend": "rediss://a?ssl_cert_reqs=none"}, ssl.CERT_NONE),
        ({"result_backend": "rediss://a", "redis_backend_use_ssl": '{"ssl_cert_reqs": "none"}'}, ssl.CERT_NONE),
        ({"result_backend": "redis://a", "redis_backend_use_ssl": '{"ssl_check_hostname": true}'}, ssl.CERT_REQUIRED),
    ],
)
def test_certificates_of_a_separate_result_backend_are_verified(
    tmp_path: Path, settings: dict[str, str], verifies: ssl.VerifyMode
) -> None:
    for broker in (REDIS, RABBITMQ):
        of_broker, of_results = connections(configured(tmp_path, broker_url=broker, **settings))
        assert not of_broker
        assert of_results.cert_reqs == verifies
