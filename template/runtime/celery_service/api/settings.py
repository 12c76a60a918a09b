"""The settings of the API."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from celery_service.api.addresses import is_local
from celery_service.config.settings import ConfigurationError

#: The key that switches the check off.
OPEN = "none"
SHORTEST = 16


def _check_key(secret: SecretStr) -> SecretStr:
    key = secret.get_secret_value()
    if key != OPEN and not (len(key) >= SHORTEST and re.fullmatch("[!-~]+", key)):
        raise ValueError(
            f"can't be used; it must have {SHORTEST} or more printable ASCII characters without "
            f"blanks, or be `{OPEN}`, which lets everybody in"
        )
    return secret


class Settings(BaseSettings):
    """Where the API listens, who may use it, and its limits."""

    model_config = SettingsConfigDict(env_prefix="api_", env_ignore_empty=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    # Clients send it as X-API-Key. Without a key, only programs on this machine are served.
    key: Annotated[SecretStr, AfterValidator(_check_key)] | None = None
    # Arguments of tasks are in the broker's memory, so they should be small.
    max_body_bytes: int = Field(default=100_000, ge=1)
    # Each open stream of events takes a connection and some memory.
    max_streams: int = Field(default=1000, ge=1)
    # Seconds that requests get to finish when the process stops.
    shutdown_timeout: int = Field(default=10, ge=1)

    @property
    def secret(self) -> str | None:
        """The key that clients must send; None if there is no check."""
        key = self.key.get_secret_value() if self.key else OPEN
        return None if key == OPEN else key

    @property
    def is_open(self) -> bool:
        """Whether somebody has said that everybody may use the API."""
        return self.key is not None and self.secret is None

    def check_host(self) -> None:
        """Refuse to listen beyond this machine without a key.

        Raises:
            ConfigurationError: API_HOST isn't a loopback address, and API_KEY isn't set.
        """
        if not is_local(self.host) and self.key is None:
            raise ConfigurationError(
                f"API_KEY is not set, and API_HOST is {self.host!r}, which other machines can "
                f"reach; set a key, or API_KEY={OPEN} to let everybody in."
            )
