"""Where metrics are served."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from celery_service.config.settings import read


class Settings(BaseSettings):
    """Where a worker or beat serves its metrics."""

    model_config = SettingsConfigDict(env_prefix="metrics_", env_ignore_empty=True)

    # Metrics tell names of tasks and queues to everybody who can reach the port.
    host: str = "127.0.0.1"
    # The port of celery-exporter. With 0, the system chooses a free one.
    port: int = Field(default=9808, ge=0, le=65535)


settings = read(Settings)
