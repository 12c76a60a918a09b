"""For operators: queues, workers and dead letters."""

import json
from typing import Any

from celery import Celery
from fastapi import APIRouter, HTTPException
from kombu.utils.encoding import bytes_to_str
from pydantic import BaseModel

from celery_service.api.routes import TaskId
from celery_service.api.service import ServiceOf
from celery_service.dead_letters.store import DeadLetters

router = APIRouter(prefix="/ops", tags=["operations"])

#: So many dead letters are listed, the newest.
MOST = 100


class Queue(BaseModel):
    name: str
    length: int
    oldest_age_seconds: float | None = None


class Worker(BaseModel):
    name: str
    active: int


class Overview(BaseModel):
    queues: list[Queue]
    workers: list[Worker]
    dead_letters: list[dict[str, Any]]
    dead_letters_total: int


@router.get("")
async def overview(service: ServiceOf) -> Overview:
    """Tell the queues, the workers, and the newest dead letters."""
    raise HTTPException(501)


@router.get("/dead-letters/{id}")
async def dead_letter(id: TaskId, service: ServiceOf) -> dict[str, Any]:
    """Give all that is known of a dead letter."""
    raise HTTPException(501)


@router.post("/dead-letters/{id}/replay", status_code=202)
async def replay(id: TaskId, service: ServiceOf) -> dict[str, Any]:
    """Send the task of a dead letter again, under its old id."""
    raise HTTPException(501)


@router.delete("/dead-letters/{id}", status_code=204)
async def drop(id: TaskId, service: ServiceOf) -> None:
    """Drop a dead letter."""
    raise HTTPException(501)


_ = (Celery, bytes_to_str, json, DeadLetters)
