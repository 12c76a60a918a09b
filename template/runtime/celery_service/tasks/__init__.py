"""What every task of a service has: its base class, its arguments, its event loop, `once`."""

from celery import Celery


def install(app: Celery) -> None:
    """Make base.Task the base class of the tasks of `app`, and check them when a worker starts."""
    from celery_service.tasks import base

    base.install(app)
