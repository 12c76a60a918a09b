"""The configuration that the library makes of variables, in this process."""

from pathlib import Path
from typing import Any

from celery_service.brokers import rabbitmq
from celery_service.config.merge import configuration

REDIS = "redis://localhost:1/0"
RABBITMQ = "amqp://guest:guest@localhost:1//"
#: RabbitMQ keeps no results.
RESULTS = "redis://localhost:2/0"


def configured(root: Path, **settings: str) -> dict[str, Any]:
    """Give the configuration of a project in `root`; `task_time_limit="5"` stands for CELERY_TASK_TIME_LIMIT."""
    if settings.get("broker_url", "").partition("://")[0] in rabbitmq.SCHEMES:
        settings = {"result_backend": RESULTS} | settings
    environ = {f"CELERY_{name.upper()}": value for name, value in settings.items() if value}
    return configuration(root=root, routes={"a.*": "low_priority"}, environ=environ)
