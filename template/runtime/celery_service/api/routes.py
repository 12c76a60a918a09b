"""Follow and cancel tasks, and health: the routes that every service has."""

from collections.abc import AsyncIterable
from typing import Annotated

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from celery_service.api import status as of
from celery_service.api.health import Report
from celery_service.api.service import ServiceOf
from celery_service.api.status import TaskStatus
from celery_service.api.tasks import EXAMPLE
from celery_service.tasks.progress import PROGRESS

#: Milliseconds after which a client follows a task again, when its stream has broken.
RETRY = 1000

TaskId = Annotated[str, Path(max_length=255, pattern=r"^[A-Za-z0-9_.:-]+$", examples=[EXAMPLE])]

tasks = APIRouter(prefix="/tasks", tags=["tasks"])


async def _known(task_id: TaskId, service: ServiceOf) -> TaskStatus:
    found = await service.reader.run(of.read, service.celery, service.keys, task_id)
    if found is None:
        raise HTTPException(404, "No task with this id is known.")
    return found


Known = Annotated[TaskStatus, Depends(_known)]


@tasks.get("/{task_id}", response_model_exclude_unset=True)
async def get_task(task: Known) -> TaskStatus:
    """Tell the state of a task, and its progress, result or error."""
    return task


@tasks.get("/{task_id}/events", response_class=EventSourceResponse)
async def follow_task(
    task: Known,
    service: ServiceOf,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> AsyncIterable[ServerSentEvent]:
    """Follow a task by server-sent events, each with the whole state, until it has ended.

    After a break, send the id of the last event as `Last-Event-ID`: the stream goes on with the
    present state, unless it is the one of that event.
    """
    seen = last_event_id
    with service.streams.follow(task.task_id) as follower:
        if task.version != seen or task.has_ended:
            yield _event(task)
            seen = task.version
        if task.has_ended:
            return
        async for status in follower.states():
            if status.version == seen:
                continue
            yield _event(status)
            seen = status.version
            if status.has_ended:
                return
    yield ServerSentEvent(event="close", data={"reason": "The server stops."}, retry=RETRY)


def _event(task: TaskStatus) -> ServerSentEvent:
    name = "progress" if task.status == PROGRESS else "state"
    return ServerSentEvent(event=name, id=task.version, raw_data=task.as_json, retry=RETRY)


@tasks.delete("/{task_id}", status_code=202, response_model_exclude_unset=True)
async def cancel_task(
    task: Known,
    service: ServiceOf,
    terminate: Annotated[bool, Query(description="End the task also if it runs.")] = False,
) -> TaskStatus:
    """Cancel a task: workers don't start it any more. The answer has its state before that."""
    if not task.has_ended:
        await service.control.run(service.celery.control.revoke, task.task_id, terminate=terminate)
    return task


health = APIRouter(prefix="/health", tags=["health"])


@health.get("/live")
async def is_live() -> dict[str, str]:
    """Tell that this process serves requests. It asks no other server."""
    return {"status": "healthy"}


@health.get("/ready", responses={503: {"model": dict[str, str]}})
async def is_ready(service: ServiceOf, response: Response) -> dict[str, str]:
    """Tell whether tasks can be sent and followed: broker and result store answer."""
    report = await service.health.report()
    servers = (report.components.broker, report.components.results)
    ready = all(each.status == "healthy" for each in servers)
    response.status_code = 200 if ready else 503
    return {"status": "healthy" if ready else "unhealthy"}


@health.get("/detailed", responses={503: {"model": Report}}, response_model_exclude_none=True)
async def details(service: ServiceOf, response: Response) -> Report:
    """Tell the health of all parts. The answer is up to 5 seconds old."""
    report = await service.health.report()
    response.status_code = 503 if report.status == "unhealthy" else 200
    return report
