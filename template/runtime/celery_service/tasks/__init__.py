"""What every task of a service has: its base class, arguments, limits, event loop, `once`."""

from celery import Celery


def install(app: Celery) -> None:
    """Make base.Task the base class of the tasks of `app`, and check them when a worker starts.

    What they print is not kept back.
    """
    from celery_service.tasks import base, output

    base.install(app)
    output.install()
