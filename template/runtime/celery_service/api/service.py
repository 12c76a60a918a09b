"""What the routes of an application share, from its start to its end."""

from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, FastAPI, Request

from celery_service.api.health import Health
from celery_service.api.keys import Keys
from celery_service.api.settings import Settings
from celery_service.api.streams import Streams
from celery_service.api.threads import Batches, Threads


@dataclass(frozen=True)
class Service:
    """Parts of the API that live as long as its process."""

    celery: Celery
    settings: Settings
    keys: Keys
    #: Remembers the ids of tasks before they are sent.
    sent: Batches
    #: Threads that send tasks.
    publisher: Threads
    #: Threads that send commands to workers, and ask for queues.
    control: Threads
    #: Threads that ask the result store. They answer while the broker is away.
    reader: Threads
    streams: Streams
    health: Health


def attach(app: FastAPI, service: Service) -> None:
    """Make a service available to the routes."""
    app.state.service = service


async def service_of(request: Request) -> Service:
    """Return the service of the application that serves a request.

    FastAPI would call a plain function in a thread, for each request.
    """
    found: Service = request.app.state.service
    return found


ServiceOf = Annotated[Service, Depends(service_of)]
