"""The base class of every task."""

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

import celery
from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]
from celery.exceptions import Reject
from celery.signals import worker_init

from celery_service.brokers.messages import MAX_DEPTH, is_too_deep
from celery_service.brokers.queues import queue_of
from celery_service.dead_letters import poison
from celery_service.lifecycle import green
from celery_service.tasks import loop
from celery_service.tasks.arguments import Arguments, InvalidArguments
from celery_service.tasks.limits import limits, take_from_command_line
from celery_service.tasks.options import check

_ENDS_A_PROCESS = (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)


class Task(celery.Task[..., Any]):
    """What every task of this service has unless its decorator says otherwise.

    The body may be an `async def`: it runs on the event loop of the thread that executes the task.

    `autoretry_for` waits a random part of 1, 2, 4, … minutes, at most of 10, so that a service that
    was down isn't met by everybody at once. After `max_retries` the task fails.
    """

    max_retries = 3
    default_retry_delay = 60
    retry_backoff = 60
    retry_backoff_max = 600
    retry_jitter = True
    # What can't succeed isn't tried again, whatever `autoretry_for` names.
    dont_autoretry_for = (InvalidArguments, Reject)

    Request = "celery_service.tasks.request:Request"

    # CELERY_TASK_TIME_LIMIT is the worker's. Celery would have publishers write theirs into each
    # message, where it overrules the worker. A limit in the decorator still travels.
    from_config = tuple(
        (attribute, setting)
        for attribute, setting in celery.Task.from_config
        if attribute not in ("time_limit", "soft_time_limit")
    )

    # What the body takes; None with `typing=False`, which is Celery's way to turn checks off.
    _arguments: Arguments | None = None

    # What returns a coroutine, where the body is an `async def`.
    _coroutine_function: Callable[..., Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Every decorator makes a class with the body as `run`; `autoretry_for` wraps it afterwards.
        super().__init_subclass__(**kwargs)
        body = cls.__dict__.get("run")
        function = body.__func__ if isinstance(body, staticmethod) else body
        if inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} yields; a task is a coroutine that returns")
        # Celery makes tasks of its own from our class, such as `celery.chord_unlock`.
        if function is None or cls.__module__.startswith("celery."):
            return

        def as_attribute(function: Callable[..., Any]) -> Any:
            return staticmethod(function) if isinstance(body, staticmethod) else function

        if cls.typing is not False:
            name = cls.name or f"{cls.__module__}.{cls.__qualname__}"
            bound = not isinstance(body, staticmethod)
            cls._arguments = Arguments(name, function, bound=bound)
            function = cls._arguments.checked(function)
        # A decorator between ours and the `async def` may hide it.
        if inspect.iscoroutinefunction(inspect.unwrap(function)):
            cls._coroutine_function = as_attribute(function)
            function = _on_the_loop(function)
        setattr(cls, "run", as_attribute(_failing(function)))  # noqa: B010

    def before_start(self, *_: Any) -> None:
        """Give up on a message whose process has died each time."""
        poison.refuse(self.app, self.request)

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Send the task, unless it could only fail.

        Raises:
            InvalidArguments: The body doesn't take these arguments, or an option is wrong.
        """
        try:
            check(self.name, args, kwargs, options)
            self._refuse_nesting(args, kwargs)
            if self._arguments:
                self._arguments.check(args or (), kwargs or {})
        except InvalidArguments:
            # What follows a task, such as the callback of a chord, is sent by the worker.
            # Nobody would hear of an error there, so it fails where it runs.
            follows = options.keys() & {"parent_id", "reply_to"}
            if not (follows and self.app.current_worker_task):
                raise
        return super().apply_async(args, kwargs, *rest, **options)

    def signature(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Prepare a call. The place of arguments isn't known yet where others may join them."""
        self._refuse_nesting(args, kwargs)
        known = (args or ()) if options.get("immutable") else ()
        if self._arguments and (known or kwargs):
            self._arguments.check(known, kwargs or {}, complete=False)
        return super().signature(args, kwargs, *rest, **options)

    def _refuse_nesting(self, args: Any, kwargs: Any) -> None:
        if is_too_deep(args, kwargs):
            text = f"{self.name}: an argument is nested deeper than {MAX_DEPTH} levels"
            raise InvalidArguments(text)

    def retry(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Run the task again later.

        Raises:
            InvalidArguments: An option is wrong. Celery would reject the message.
            Retry: Always, so that this run ends here.
        """
        check(self.name, args, kwargs, options)
        return super().retry(args, kwargs, *rest, **options)

    def signature_from_request(
        self,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: Any = None,
        **options: Any,
    ) -> Any:
        """Prepare a retry, in the queue that the message came from.

        Celery sends it to its exchange and routing key. RabbitMQ takes those of the default queue
        for what is delayed, and our routes would take the priority that each message has there.
        """
        request = self.request if request is None else request
        if queue is None and not options.keys() & {"exchange", "routing_key"}:
            queue = queue_of(self.app, request.delivery_info)
        return super().signature_from_request(request, args, kwargs, queue, **options)

    async def call_async(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body here and now, where an event loop runs already: no broker, no retries.

        Raises:
            TypeError: The task is no `async def`.
        """
        if self._coroutine_function is None:
            raise TypeError(f"{self.name} is no async task; call it")
        return await self._coroutine_function(*args, **kwargs)


def install(app: celery.Celery) -> None:
    """Make `Task` the base class of the tasks of `app`, and check them when a worker starts."""
    app.task_cls = Task  # type: ignore[assignment]  # a class will do: celery/app/base.py
    send = app.send_task

    @functools.wraps(send)
    def send_task(
        name: str, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any
    ) -> Any:
        check(name, args, kwargs, options)
        return send(name, args, kwargs, *rest, **options)

    # Also for who only knows the name of a task, for beat, and for the options of a decorator.
    app.send_task = send_task  # type: ignore[method-assign]

    def check_tasks(sender: Any, **kwargs: object) -> None:
        if sender.app is app:
            take_from_command_line(sender)
            _refuse_what_can_not_run(sender)

    worker_init.connect(check_tasks, weak=False)


def _on_the_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return loop.run(function(*args, **kwargs), _soft_time_limit())

    return run


def _failing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a task fail that raises what would end its process: `sys.exit()`, for instance.

    The pool threads would never hear of its end, solo would end the worker, and prefork would run
    it three times.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except _ENDS_A_PROCESS as error:
            # When the worker ends this process, the message goes back to the broker. And a plain
            # call is no business of ours.
            if terminate_handler_fired() or celery.current_app.current_worker_task is None:
                raise
            raise RuntimeError(f"the task raised {error!r}") from error

    return run


def _soft_time_limit() -> float | None:
    """Return the limit of the task that runs, in seconds; only loops that get no signal heed it."""
    task: celery.Task[..., Any] | None = celery.current_app.current_task
    if task is None or task.request.called_directly or task.request.is_eager:
        return None
    of_worker: float | None = task.app.conf.task_soft_time_limit
    return limits(task, task.request.timelimit)[1] or of_worker


def _refuse_what_can_not_run(worker: Any) -> None:
    pool = green.pool_of(worker)
    for name, task in sorted(worker.app.tasks.items()):
        if inspect.iscoroutinefunction(task.run):
            # Celery would report success without having run it.
            raise SystemExit(f"The task {name} is an `async def` on another base than celery.Task.")
        # Green threads replace the functions of the system that an event loop waits with.
        if getattr(task, "_coroutine_function", None) and pool in green.POOLS:
            raise SystemExit(
                f"The pool {pool} can't run async tasks such as {name}; "
                "use --pool=prefork, threads or solo."
            )
        _check_limits(task)


def _check_limits(task: Any) -> None:
    hard, soft = task.time_limit, task.soft_time_limit
    try:
        check(task.name, None, None, {"time_limit": hard, "soft_time_limit": soft})
    except InvalidArguments as error:
        raise SystemExit(f"The task {error}.") from None
    longest = hard or task.app.conf.task_time_limit
    if soft and longest and soft > longest:
        raise SystemExit(
            f"The task {task.name} has soft_time_limit={soft:g}; "
            f"it must not be above its time limit, {longest:g}."
        )
