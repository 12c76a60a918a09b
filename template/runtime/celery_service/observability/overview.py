"""The state of a service in numbers: for its hourly health check, and whoever else reports it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

from celery import Celery, current_task

from celery_service.brokers.errors import broker_errors
from celery_service.dead_letters.store import DeadLetters
from celery_service.observability.report import WAIT, ask_workers, is_report


class Overview(TypedDict):
    """What `overview` returns."""

    #: Workers that answer, and the tasks that they run.
    workers: int
    active_tasks: int
    #: Queue → messages that wait in it.
    queues: dict[str, int]
    #: None where no Redis keeps them.
    dead_letters: int | None


class Length(NamedTuple):
    """What a broker tells about a queue."""

    waiting: int
    #: RabbitMQ counts consumers; the other brokers don't know them: 0.
    consumers: int


def overview(app: Celery, wait: float = WAIT) -> Overview:
    """Ask workers, broker and result store. A worker that is too busy to answer isn't counted.

    Args:
        app: The application.
        wait: Seconds without an answer after which no more workers are expected to answer.

    Raises:
        OperationalError: The broker or the Redis of the results can't be reached.
    """
    answers = dict(ask_workers(app, wait))
    active = {
        name: int(answer["active"]) if is_report(answer) else 0 for name, answer in answers.items()
    }
    # With the pool `solo`, a worker doesn't answer while it runs the task that asks.
    task: Any = current_task
    if task and not task.request.called_directly:
        active.setdefault(task.request.hostname, 1)
    letters = DeadLetters(app)
    return {
        "workers": len(active),
        "active_tasks": sum(active.values()),
        "queues": {name: length.waiting for name, length in lengths(app, app.amqp.queues)},
        "dead_letters": letters.number() if letters.are_kept else None,
    }


def lengths(app: Celery, queues: Iterable[str]) -> Iterator[tuple[str, Length]]:
    """Yield each queue and its length. A queue that doesn't exist yet is empty.

    Raises:
        OperationalError: The broker can't be reached.
    """
    with app.connection_for_read() as connection, broker_errors(connection):
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        for name in queues:
            yield name, length_of(connection, name)


def length_of(connection: Any, queue: str) -> Length:
    """Ask the broker about a queue, on a connection that is open."""
    with connection.channel() as channel:
        try:
            found = channel.queue_declare(queue=queue, passive=True)
        except connection.channel_errors as error:
            if getattr(error, "reply_code", None) in (404, "404"):
                return Length(0, 0)
            raise
        return Length(int(found.message_count), int(found.consumer_count))


def routed(routes: Any) -> set[str]:
    """Return the queues that `task_routes` names. What functions choose can't be seen."""
    if isinstance(routes, Mapping):
        found = {_queue(target) for target in routes.values()}
    elif isinstance(routes, list | tuple):
        # A pair of a pattern and its target, or several of these.
        pair = len(routes) == 2 and isinstance(routes[0], str)
        return {_queue(routes[1])} - {""} if pair else set().union(*map(routed, routes))
    else:
        return set()
    return found - {""}


def _queue(target: Any) -> str:
    queue = target.get("queue") if isinstance(target, Mapping) else target
    return str(getattr(queue, "name", queue) or "")
