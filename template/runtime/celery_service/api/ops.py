"""For operators: queues, workers and dead letters."""

import asyncio
from typing import Any

from celery import Celery
from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import JSONResponse
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from redis.exceptions import RedisError

from celery_service.api.keys import Keys
from celery_service.api.problems import Unavailable
from celery_service.api.queues import Queue, queues
from celery_service.api.routes import TaskId
from celery_service.api.service import Service, ServiceOf
from celery_service.api.status import plain
from celery_service.api.tasks import Accepted
from celery_service.dead_letters.replay import NotSent, replay
from celery_service.dead_letters.store import DeadLetters
from celery_service.dead_letters.story import Record

router = APIRouter(prefix="/ops", tags=["operations"])

#: So many dead letters are listed, the newest.
MOST = 100
#: What may be large or private is shown for one dead letter only.
LONG = ("args", "kwargs", "body", "options", "traceback")


class Worker(BaseModel):
    """A worker that answers."""

    name: str
    active: int


class Overview(BaseModel):
    """What operators see first."""

    #: None while the broker is away.
    queues: list[Queue] | None
    workers: list[Worker]
    dead_letters: list[dict[str, Any]]
    #: None if they are only logged, because results are not in Redis.
    dead_letters_total: int | None


@router.get("")
async def overview(
    service: ServiceOf,
    limit: int = Query(default=MOST, ge=0, le=MOST, description="How many dead letters."),
) -> Overview:
    """Tell the queues, the workers, and the newest dead letters, without their arguments.

    While the broker is away, there are no queues and no workers, only dead letters.
    """
    (total, letters), found, report = await asyncio.gather(
        service.reader.run(_newest, service.celery, limit),
        _queues(service),
        service.health.report(),
    )
    active = report.components.celery.active
    return Overview(
        queues=found,
        workers=[Worker(name=name, active=count) for name, count in active.items()],
        dead_letters=letters,
        dead_letters_total=total,
    )


@router.get("/dead-letters/{dead_letter_id}", response_model=dict[str, Any])
async def dead_letter(dead_letter_id: TaskId, service: ServiceOf) -> Response:
    """Give all that is known of a dead letter."""
    record = await _find(service, dead_letter_id)
    return JSONResponse(plain(record))


@router.post("/dead-letters/{dead_letter_id}/replay", status_code=202)
async def replay_dead_letter(
    dead_letter_id: TaskId, service: ServiceOf, response: Response
) -> Accepted:
    """Send the task of a dead letter again, under its old id. The dead letter goes."""
    record = await _find(service, dead_letter_id)
    try:
        sent = await service.control.run(_replay, service.celery, service.keys, record)
    except NotSent as error:
        if isinstance(error.__cause__, OperationalError | RedisError | OSError):
            raise Unavailable("The broker can't be reached.") from error
        raise HTTPException(409, f"It stays: {error}.") from error
    if not sent:
        raise HTTPException(409, "Somebody else sends it, or has dropped it.")
    accepted = Accepted(task_id=dead_letter_id, check_url=f"/api/v1/tasks/{dead_letter_id}")
    response.headers["Location"] = accepted.check_url
    return accepted


@router.delete("/dead-letters/{dead_letter_id}", status_code=204)
async def drop_dead_letter(dead_letter_id: TaskId, service: ServiceOf) -> None:
    """Drop a dead letter."""
    record = await _find(service, dead_letter_id)
    await service.reader.run(lambda: DeadLetters(service.celery).remove(record))


async def _queues(service: Service) -> list[Queue] | None:
    # Dead letters are where the results are, and can be read without the broker.
    try:
        return await service.control.run(queues, service.celery)
    except Unavailable:
        return None


async def _find(service: Service, record_id: str) -> Record:
    found = await service.reader.run(lambda: DeadLetters(service.celery).get(record_id))
    if found is None:
        raise HTTPException(404, "There is no such dead letter.")
    return found


# --- in threads ---


def _newest(app: Celery, count: int) -> tuple[int | None, list[Record]]:
    store = DeadLetters(app)
    records = store.newest(count) if count else []
    short = [{name: each[name] for name in each if name not in LONG} for each in records]
    return store.number() if store.are_kept else None, [plain(each) for each in short]


def _replay(app: Celery, keys: Keys, record: Record) -> bool:
    keys.add([record["id"]])
    return replay(app, DeadLetters(app), record)
