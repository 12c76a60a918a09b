"""The id that a request shares with all tasks that it leads to: `bind` and `current`.

from celery_service import correlation

with correlation.bind(request.headers["X-Request-ID"]):
    my_task.delay()
"""

from celery_service.observability.correlation import HEADER, bind, current

__all__ = ["HEADER", "bind", "current"]
