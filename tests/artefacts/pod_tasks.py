"""A task for test_kubernetes.py, which adds this file to a project: it notes its runs in Redis."""

import time
from typing import Any

from celery import current_app


@current_app.task(name="pods.work", max_retries=0)
def work(key: str, seconds: float) -> str:
    """Take long in the first run, and no time in later runs."""
    backend: Any = current_app.backend
    if backend.client.hincrby("runs", key, 1) == 1:
        time.sleep(seconds)
    backend.client.rpush("ended", key)
    return key
