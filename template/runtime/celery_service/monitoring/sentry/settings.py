"""The `SENTRY_*` variables."""

import re

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

#: How long a process waits at its end until its reports are sent, in seconds.
FLUSH = 2.0

DSN = re.compile(r"https?://[^\s/@]+@[^\s/@]+(/[^\s]*)?/[0-9]+")


class Settings(BaseSettings):
    """Where reports are sent, and what is in them. Nothing happens without `dsn`."""

    model_config = SettingsConfigDict(env_prefix="sentry_", env_ignore_empty=True)

    dsn: SecretStr | None = None
    environment: str | None = None
    release: str | None = None
    traces_sample_rate: float = Field(default=0.0, ge=0, le=1)
    # Arguments and local variables of tasks may be private.
    send_arguments: bool = False

    @field_validator("dsn")
    @classmethod
    def _check(cls, dsn: SecretStr | None) -> SecretStr | None:
        # Sentry's own check would import the whole SDK, also in publishers.
        if dsn and not DSN.fullmatch(dsn.get_secret_value()):
            raise ValueError("must be such as https://key@sentry.example.com/1")
        return dsn
