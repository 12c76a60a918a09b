"""One id leads from a request or a publisher to every task, retry, callback and dead letter.

It is a header of each message. Who publishes a message gives it the id that is bound there: a web
process by `bind`, a task the id of its own message. Otherwise the message starts with a new id,
that of its task.
"""

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any
from uuid import uuid4

from celery import Celery, canvas
from celery.app.task import Context
from celery.signals import before_task_publish, task_postrun, task_prerun

#: The header of messages. Celery's own `correlation_id` is the id of the task.
HEADER = "celery_service_correlation_id"

MAX_LENGTH = 200

_current: ContextVar[str | None] = ContextVar("celery_service_correlation_id", default=None)
# What was bound where eager tasks were called, which run inside others.
_outside: ContextVar[tuple[str | None, ...]] = ContextVar("celery_service_outside", default=())


class bind:  # it is called as a function, too
    """Use `id` for all messages that are published from now on, and in log lines.

    In a `with` statement, until its end. As a plain call, until the end of the thread's or the
    event loop's current context; in a task, until the end of the task.

    Raises:
        ValueError: The id isn't a text of 1 to 200 printable characters.
    """

    def __init__(self, id: str) -> None:  # noqa: A002
        if not _is_valid(id):
            raise ValueError(
                f"a correlation id is a text of 1 to {MAX_LENGTH} printable characters; "
                f"{id!r:.100} is not"
            )
        self._id = id
        self._before = _current.get()
        _current.set(id)

    def __enter__(self) -> str:
        """Return the id."""
        return self._id

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Bind again what was bound before."""
        # Not by a token: frameworks may leave the block in a copy of the context.
        _current.set(self._before)


def current() -> str | None:
    """Return the id that is bound here; in a task, the id of its message."""
    return _current.get()


def id_of(message: Mapping[str, Any]) -> str:
    """Return the id of a message, by its headers. Other publishers may not have added one."""
    for name in (HEADER, "root_id", "id"):
        if _is_valid(found := message.get(name)):
            return str(found)
    return str(uuid4())


def of_context(context: Context) -> str:
    """Return the id of the message of a task's context."""
    return id_of(vars(context) | (context.headers or {}))


class of_message(bind):  # as `bind`
    """Bind the id of a message: for the main process of a worker."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        super().__init__(id_of(message))


def install(app: Celery) -> None:
    """Add the id to each message, and bind it while a task runs."""
    before_task_publish.connect(_add)
    task_prerun.connect(_enter)
    task_postrun.connect(_leave)
    _join_canvases()


@functools.cache  # once, for all apps
def _join_canvases() -> None:
    # The messages of one canvas share an id, though Celery gives each task of a group its own root.
    for kind in (canvas.group, canvas._chain, canvas.chord):
        kind.apply_async = _together(kind.apply_async)  # type: ignore[method-assign]


def _is_valid(id_: object) -> bool:
    return isinstance(id_, str) and 0 < len(id_) <= MAX_LENGTH and id_.isprintable()


def _add(headers: dict[str, Any], **kwargs: object) -> None:
    # A message that is sent again has it: a retry, a dead letter.
    if not _is_valid(headers.get(HEADER)):
        headers[HEADER] = _current.get() or id_of(headers)


def _enter(task: Any, **kwargs: object) -> None:
    context: Context = task.request
    bound = _current.get()
    if context.is_eager:
        _outside.set((*_outside.get(), bound))
        _current.set(bound or of_context(context))
    else:
        # A thread or process serves one task after the other: nothing of the last one may stay.
        _outside.set(())
        _current.set(of_context(context))


def _leave(**kwargs: object) -> None:
    *before, bound = _outside.get() or (None,)
    _outside.set(tuple(before))
    _current.set(bound)


def _together(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(apply_async)
    def apply_under_one_id(self: Any, *args: Any, **options: Any) -> Any:
        if _current.get():
            return apply_async(self, *args, **options)
        with bind(str(uuid4())):
            return apply_async(self, *args, **options)

    return apply_under_one_id
