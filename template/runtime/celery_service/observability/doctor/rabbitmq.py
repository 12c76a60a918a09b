"""What RabbitMQ does with the messages: the types and limits of its queues, and its time-outs.

All of it is asked over AMQP, without the management plugin: a queue is declared as a worker
declares it. RabbitMQ answers with an error if it exists with other arguments.
"""

import re
from collections.abc import Iterator
from typing import Any

from celery import Celery
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from celery_service.brokers.errors import unavailable
from celery_service.config.settings import read
from celery_service.observability.doctor.finding import Finding, span
from celery_service.observability.doctor.servers import connected, uses_rabbitmq

#: How RabbitMQ names the arguments that matter most.
MEANINGS = {
    "x-queue-type": "its type",
    "x-delivery-limit": "its delivery limit",
    "x-dead-letter-exchange": "where it dead-letters to",
    "x-dead-letter-routing-key": "where it dead-letters to",
    "x-dead-letter-strategy": "how it dead-letters",
}
_DIFFERENCE = re.compile(r"inequivalent arg '([^']+)'.*?received (.+?) but current is (.+)$", re.S)


class Settings(BaseSettings):
    """What RabbitMQ doesn't tell."""

    model_config = SettingsConfigDict(env_prefix="doctor_", env_ignore_empty=True)

    # `consumer_timeout` of rabbitmq.conf, in seconds. RabbitMQ's default is 30 minutes.
    consumer_timeout: float = Field(default=1800, gt=0)


def check_queues(app: Celery) -> Iterator[Finding]:
    """Compare the queues with those that workers declare."""
    if not uses_rabbitmq(app):
        return
    with connected(app) as connection:
        wrong, missing, right = 0, [], 0
        for queue in app.amqp.queues.values():
            if not _exists(connection, queue.name):
                missing.append(queue.name)
            elif error := _refusal(connection, queue):
                wrong += 1
                yield _difference(queue.name, error)
            else:
                right += 1
        if right and not wrong:
            types = {
                str((each.queue_arguments or {}).get("x-queue-type", "classic"))
                for each in app.amqp.queues.values()
            }
            yield Finding("ok", "queue types", f"{right} {'/'.join(sorted(types))} queues, as here")
        if missing:
            text = f"not declared yet: {', '.join(missing)}; a worker declares them"
            yield Finding("ok", "queue types", text)


def _exists(connection: Any, name: str) -> bool:
    try:
        with connection.channel() as channel:
            channel.queue_declare(queue=name, passive=True)
    except connection.channel_errors as error:
        if getattr(error, "reply_code", None) == 404:
            return False
        raise
    return True


def _refusal(connection: Any, queue: Any) -> str:
    """Declare a queue that exists; return why RabbitMQ refuses to, or ""."""
    try:
        with connection.channel() as channel:
            queue.bind(channel).queue_declare()
    except connection.channel_errors as error:
        if getattr(error, "reply_code", None) == 406:
            return str(unavailable("", error)).removeprefix(": ")
        raise
    return ""


def _difference(name: str, error: str) -> Finding:
    found = _DIFFERENCE.search(error)
    if found:
        argument, ours, theirs = found.groups()
        what = MEANINGS.get(argument, argument)
        error = f"{what} is {_plain(theirs)}, workers declare {_plain(ours)} ({argument})"
    fix = (
        "Workers don't start. When the queue is empty, delete it, and the next worker creates it: "
        f"`rabbitmqctl delete_queue {name}`."
    )
    return Finding("broken", "queue types", f"queue {name}: {error}", fix)


def _plain(value: str) -> str:
    if "none" in value:
        return "not set"
    found = re.search(r"the value '(.*?)' of type", value)
    return found[1] if found else value.strip(" '\"")


def check_timeout(app: Celery) -> Iterator[Finding]:
    """Compare the time limits of tasks with the time that RabbitMQ gives a consumer."""
    if not uses_rabbitmq(app):
        return
    timeout = read(Settings).consumer_timeout
    app.loader.import_default_modules()
    general = app.conf.task_time_limit
    limits = {
        name: task.time_limit or general
        for name, task in app.tasks.items()
        if not name.startswith("celery.")
    }
    limits[""] = general
    endless = sorted(name for name, limit in limits.items() if not limit)
    too_long = {name: limit for name, limit in limits.items() if limit and limit >= timeout}
    shown = f"consumer_timeout ({timeout:g} s unless you have changed it)"
    if not endless and not too_long:
        longest = max(limits.values())
        yield Finding("ok", "time limits", f"up to {span(longest)}, below {shown}")
        return
    name = endless[0] if endless else max(too_long, key=too_long.__getitem__)
    limit = "no time limit" if endless else f"the time limit {too_long[name]:g} s"
    yield Finding(
        *("warning", "time limits"),
        f"{name or 'CELERY_TASK_TIME_LIMIT'} has {limit}, which isn't below RabbitMQ's {shown}: "
        "RabbitMQ delivers the message of such a task again while it runs",
        "Raise consumer_timeout in rabbitmq.conf (milliseconds), and tell it to this command: "
        "DOCTOR_CONSUMER_TIMEOUT, in seconds. Or split the task.",
    )
