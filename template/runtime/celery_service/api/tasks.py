"""Send tasks from a route: `Tasks` is a dependency, `await tasks.send(signature)` sends one."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any
from urllib.parse import quote
from uuid import NAMESPACE_OID, uuid4, uuid5

from celery import Signature, states
from fastapi import Depends, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from celery_service.api.problems import RETRY_AFTER
from celery_service.api.service import Service, ServiceOf
from celery_service.api.threads import LIMIT

EXAMPLE = "5f2b9a0e-7c1d-4f83-9a55-0d5c8e3f1b77"


class Accepted(BaseModel):
    """A task was sent. `check_url` tells what becomes of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"task_id": EXAMPLE, "status": "PENDING", "check_url": f"/api/v1/tasks/{EXAMPLE}"}
            ]
        }
    )

    task_id: str
    status: str = states.PENDING
    check_url: str


class AlreadySent(Exception):
    """The task of this `Idempotency-Key` was sent by an earlier request."""

    def __init__(self, accepted: Accepted) -> None:
        super().__init__(accepted.task_id)
        self.accepted = accepted


class Sender:
    """Sends the tasks of one request."""

    def __init__(self, service: Service, request: Request, response: Response) -> None:
        self._service = service
        self._request = request
        self._response = response
        self._first: str | None = None
        self._is_new = False
        self._attempts = 0

    async def send(self, signature: Signature[Any], **options: Any) -> Accepted:
        """Send a task, or a chain or chord, and return what the client gets, with status 202.

        Raises:
            Unavailable: The broker or the result store is away. The client gets a 503. The task may
                still be sent; with the same `Idempotency-Key`, the client may safely try again.
        """
        task_id = self._next_id()
        end = asyncio.get_running_loop().time() + LIMIT
        await self._service.sent.add(task_id)
        left = max(0.1, end - asyncio.get_running_loop().time())
        await self._service.publisher.run(self._publish, signature, task_id, options, limit=left)
        accepted = self.accepted(task_id)
        if self._attempts == 1:
            self._response.headers["Location"] = accepted.check_url
        return accepted

    def accepted(self, task_id: str) -> Accepted:
        """Return the answer for a task that was sent."""
        root = self._request.scope.get("root_path", "")
        return Accepted(task_id=task_id, check_url=f"{root}/api/v1/tasks/{quote(task_id)}")

    def _next_id(self) -> str:
        self._attempts += 1
        if self._first is None:
            return str(uuid4())
        if self._attempts == 1:
            return self._first
        # Tasks that are sent again get the ids that they had.
        return str(uuid5(NAMESPACE_OID, f"{self._first}{self._attempts}"))

    def _publish(self, signature: Signature[Any], task_id: str, options: dict[str, Any]) -> None:
        try:
            signature.apply_async(task_id=task_id, **options)
        except BaseException:
            with contextlib.suppress(Exception):
                self._service.keys.forget(task_id)
            raise

    async def claim(self, key: str) -> str:
        """Claim an `Idempotency-Key`, and return its name in the store.

        Raises:
            AlreadySent: Its task was sent.
            HTTPException: The key belongs to another request, or another request is sending it.
        """
        body = hashlib.sha256(await self._request.body()).hexdigest()
        fingerprint = f"{self._request.method} {self._request.url.path} {body}"
        name = hashlib.sha256(key.encode()).hexdigest()
        end = asyncio.get_running_loop().time() + LIMIT
        while True:
            claim, task_id = await self._service.reader.run(
                self._service.keys.claim, name, fingerprint, str(uuid4())
            )
            if claim in ("new", "again"):
                self._first, self._is_new = task_id, claim == "new"
                return name
            if claim == "sent":
                raise AlreadySent(self.accepted(task_id))
            if claim == "other":
                raise HTTPException(422, "Idempotency-Key: another request has used this key.")
            if asyncio.get_running_loop().time() > end:
                detail = "A request with this Idempotency-Key is still running."
                raise HTTPException(409, detail, {"Retry-After": str(RETRY_AFTER)})
            await asyncio.sleep(0.05)

    async def release(self, name: str, *, failed: bool) -> None:
        """End the claim. After an error, the same request may be sent again."""
        sent = self._attempts > 0 and not failed
        # A request that isn't valid uses up no key. One that has failed may have sent its task.
        forget = self._is_new and self._attempts == 0
        # If this fails, the lock ends by itself, and a repetition sends the task once more, under
        # the same id.
        with contextlib.suppress(Exception):
            await self._service.reader.run(
                self._service.keys.release, name, sent=sent, forget=forget
            )


async def _sender(
    service: ServiceOf,
    request: Request,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Of requests with the same key and body, one sends a task, for a day.",
            examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        ),
    ] = None,
) -> AsyncGenerator[Sender, None]:
    sender = Sender(service, request, response)
    if idempotency_key is None:
        yield sender
        return
    name = await sender.claim(idempotency_key)
    try:
        yield sender
    except BaseException:
        await sender.release(name, failed=True)
        raise
    await sender.release(name, failed=False)


#: The dependency of a route that sends tasks. It must end before the response is sent.
Tasks = Annotated[Sender, Depends(_sender, scope="function")]


def already_sent(request: Request, error: Any) -> Response:
    """Answer a repetition as its first request was answered."""
    accepted: Accepted = error.accepted
    return JSONResponse(accepted.model_dump(), 202, {"Location": accepted.check_url})
