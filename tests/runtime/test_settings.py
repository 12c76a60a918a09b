"""Settings that can't work stop the process with one line."""

from typing import Literal

import pytest
from celery_service.config.settings import ConfigurationError, read
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Example(BaseSettings):
    model_config = SettingsConfigDict(env_ignore_empty=True)

    port: int = Field(default=1, ge=1, le=65535)
    mode: Literal["on", "off"] = "on"
    pin: SecretStr = Field(default=SecretStr("12345"), min_length=5)
    names: list[str] = []
    sizes: dict[str, int] = {}
    even: int = 2
    needed: str

    @field_validator("even")
    @classmethod
    def _check(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


class Prefixed(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="mail_")

    port: int = 1


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PORT", "abc", "PORT is 'abc'; it must be a valid integer."),
        ("PORT", "0", "PORT is '0'; it must be greater than or equal to 1."),
        ("PORT", "redis://:pass@host", "PORT can't be used; it must be a valid integer."),
        ("MODE", "maybe", "MODE is 'maybe'; it must be 'on' or 'off'."),
        ("EVEN", "3", "EVEN must be even."),
        ("NEEDED", None, "NEEDED is not set."),
        ("NEEDED", "", "NEEDED is not set."),
        ("NAMES", "a,b", 'The environment: error parsing value for field "names" from source "EnvSettingsSource".'),
        ("SIZES", '{"a": "big"}', "SIZES (a) is 'big'; it must be a valid integer."),
        ("PIN", "1234", "PIN value should have at least 5 items after validation, not 4."),
    ],
)
def test_one_line_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str | None, says: str
) -> None:
    monkeypatch.setenv("NEEDED", "here")
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        read(Example)
    text = str(caught.value)
    assert text == says
    assert "\n" not in text
    assert "1234" not in text
    assert "pass" not in text


def test_the_line_names_the_variable_with_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_PORT", "abc")
    with pytest.raises(ConfigurationError, match=r"^MAIL_PORT is 'abc'; it must be a valid integer\.$"):
        read(Prefixed)


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEEDED", "here")
    monkeypatch.setenv("PORT", "7")
    monkeypatch.setenv("MODE", "")
    settings = read(Example)
    assert (settings.needed, settings.port, settings.mode) == ("here", 7, "on")
