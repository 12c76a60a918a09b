"""What happens in the library, for whoever counts or reports it, as `celery.signals` for Celery.

Receivers are called in the process and the thread in which it happens.
"""

from celery.utils.dispatch import Signal

#: A dead letter was added. Arguments: `record`, a mapping with `id`, `task`, `reason`, `queue`, …
#: The sender is the app.
dead_letter_added = Signal(name="dead_letter_added", providing_args=["record"])

#: This process lost the lease of messages that it runs, so that others may run them as well.
#: Arguments: `count`.
leases_lost = Signal(name="leases_lost", providing_args=["count"])

#: The process that ran a task has died. The broker delivers the message again, up to three times.
#: Arguments: `request`, `exception`. The sender is the task.
process_lost = Signal(name="process_lost", providing_args=["request", "exception"])

#: A web process starts, with the HTTP API. The sender is the app.
api_started = Signal(name="api_started")

#: A route of the HTTP API has raised an exception that it should not. Arguments: `exception`, and
#: `request`, a text such as "POST /api/v1/reports". The sender is the app.
request_failed = Signal(name="request_failed", providing_args=["exception", "request"])
