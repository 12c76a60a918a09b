"""The tasks of a service: their base class, arguments, limits, event loop, and `once`."""

from celery import Celery


def install(app: Celery) -> None:
    """Make base.Task the base class of the tasks of `app`, and check them when a worker starts.

    Also write the output of tasks line by line: see output.py.
    """
    from celery_service.tasks import base, output

    base.install(app)
    output.install()
