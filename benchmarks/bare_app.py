"""What the full project is compared with: a Celery app that has nothing but what `Run.bare_app` adds at the end."""

from celery import Celery

app = Celery("bare")


@app.task(name="benchmark.noop")
def noop(number: int) -> None:
    """Do nothing."""
