"""A module of the project's tasks: it has the worker know those of Celery's integration tests."""

from celery import current_app
from t.integration.tasks import ClassBasedAutoRetryTask  # type: ignore[import-not-found]

current_app.register_task(ClassBasedAutoRetryTask())
