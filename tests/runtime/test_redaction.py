"""What is secret doesn't get into a line."""

from pathlib import Path
from typing import Any

import pytest
from celery_service.observability import redaction
from pydantic import SecretStr

from support.forks import Forks


@pytest.fixture(autouse=True)
def _without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the settings of other tests."""
    monkeypatch.setattr(redaction, "_values", set())
    monkeypatch.setattr(redaction, "_written", ())


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        # URLs.
        ("redis://:hunter2@host:6379/0 is away", "redis://:***@host:6379/0 is away"),
        ("amqp://user:p%40ss@host//", "amqp://user:***@host//"),
        ("sentinel://:a@b:1;sentinel://:c@d:2", "sentinel://:***@b:1;sentinel://:***@d:2"),
        ("postgresql+psycopg://u:p@ss@host/db", "postgresql+psycopg://u:***@host/db"),
        # Pairs.
        ("password=hunter2", "password=***"),
        ("PASSWORD = 'hunter 2', user='me'", "PASSWORD = '***', user='me'"),
        ('{"api_key": "abc", "n": 1}', '{"api_key": "***", "n": 1}'),
        (r'"{\"token\": \"abc\", \"n\": 1}"', r'"{\"token\": \"***\", \"n\": 1}"'),
        ("db_password: hunter2", "db_password: ***"),
        ("https://host/?access_token=abc&page=2", "https://host/?access_token=***&page=2"),
        ("{'client_secret': b'abc'}", "{'client_secret': b'***'}"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("authorization: Basic dXNlcg==", "authorization: Basic ***"),
        ("sent Bearer abcdefgh1234", "sent Bearer ***"),
        ("Set-Cookie: session=abc; Path=/", "Set-Cookie: ***; Path=/"),
    ],
)
def test_text(text: str, redacted: str) -> None:
    assert redaction.is_suspicious(text)
    assert redaction.redact_text(text) == redacted
    assert redaction.redact_text(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "tasks.tokens.refresh_tokens succeeded",
        "the password of the user was changed",
        "https://host:8080/path?mail=a@b",
        "max_tokens=512",
        "password=None",
        "def login(user, password):",
        "bearer of news",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redaction.redact_text(text) == text


def test_values() -> None:
    line: dict[str, Any] = {
        "event": "sent",
        "password": "a",
        "headers": {"Authorization": "b", "X-Api-Key": 5, "accept": "*"},
        "users": [{"accessToken": "c", "name": "Zoë"}, ("redis://:d@e",)],
        "max_tokens": 512,
        "token": None,
        "secret": "",
        "is_secret": True,
    }
    assert redaction.redact(line) == {
        "event": "sent",
        "password": "***",
        "headers": {"Authorization": "***", "X-Api-Key": "***", "accept": "*"},
        "users": [{"accessToken": "***", "name": "Zoë"}, ["redis://:***@e"]],
        "max_tokens": 512,
        "token": None,
        "secret": "",
        "is_secret": True,
    }


def test_values_of_settings() -> None:
    redaction.add_settings(
        {
            "broker_url": "redis://:from%2Durl@host",
            "smtp_password": SecretStr('quoted"one'),
            "options": {"sentinel_kwargs": {"password": "in-options"}},
            "short": SecretStr("abc"),
        }
    )
    for secret in ("from%2Durl", "from-url", "in-options", 'quoted\\"one'):
        assert redaction.is_suspicious(f'{{"event": "it is {secret}"}}'), secret
    assert redaction.redact(["it is from-url", 'quoted"one', "in-options."]) == ["it is ***", "***", "***."]
    assert redaction.redact("abc") == "abc"


def test_settings_of_a_process(forks: Forks, service: Path) -> None:
    """Also in tracebacks, in the arguments of the standard library and in every format."""
    code = (
        "import logging\n"
        "import my_service.celery\n"
        "from celery_service.config.settings import read\n"
        "from pydantic import SecretStr\n"
        "from pydantic_settings import BaseSettings\n"
        "class Settings(BaseSettings):\n"
        "    mail_key: SecretStr\n"
        "settings = read(Settings)\n"
        "from celery_service.observability import logging as log\n"
        "log.set_up()\n"
        "try:\n"
        "    raise ValueError(f'{settings.mail_key.get_secret_value()} is wrong')\n"
        "except ValueError:\n"
        "    logging.exception('see %s', 'redis://:hunter2hunter2@host')\n"
        "logging.error('hunter2hunter2')\n"
        "class Model:\n"
        "    def __repr__(self): return 'Model(password=\"abcabc\")'\n"
        "logging.error('model', extra={'model': Model(), 'more': [Model()]})"
    )
    variables = {"CELERY_BROKER_URL": "redis://:hunter2hunter2@host/0", "MAIL_KEY": "m4il-s3cret"}
    for format_ in ("json", "key_value", "console"):
        done = forks.run(code, service, variables | {"LOG_FORMAT": format_, "LOG_DIR": str(service / "log")})
        assert done.returncode == 0, done.stderr
        written = done.stderr + "".join(path.read_text() for path in (service / "log").iterdir())
        assert not [secret for secret in ("hunter2", "m4il-s3cret", "abcabc") if secret in written], written
        assert "ValueError: *** is wrong" in done.stderr
