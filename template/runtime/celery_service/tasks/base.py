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
    """The base class of all tasks of this service. Its attributes are defaults for the decorator.

    The body may be an `async def`: it runs on the event loop of the thread that executes the task.

    `autoretry_for` waits for a random time of up to 1, 2, 4, … minutes, at most 10, so that not all
    tasks call a service at once when it is back. After `max_retries`, the task fails.
    """

    max_retries = 3
    default_retry_delay = 60
    retry_backoff = 60
    retry_backoff_max = 600
    retry_jitter = True
    # These tasks can't succeed, so they aren't retried, even with `autoretry_for=(Exception,)`.
    dont_autoretry_for = (InvalidArguments, Reject)

    Request = "celery_service.tasks.request:Request"

    # The worker's CELERY_TASK_TIME_LIMIT applies. By default, publishers write their own value into
    # each message, which overrides the worker's. Limits of the decorator are still sent.
    from_config = tuple(
        (attribute, setting)
        for attribute, setting in celery.Task.from_config
        if attribute not in ("time_limit", "soft_time_limit")
    )

    # The arguments of the body; None with `typing=False`, Celery's option to turn checks off.
    _arguments: Arguments | None = None

    # The function that returns the coroutine, if the body is an `async def`.
    _coroutine_function: Callable[..., Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # The decorator creates a class with the body as `run`; `autoretry_for` wraps `run` later.
        super().__init_subclass__(**kwargs)
        body = cls.__dict__.get("run")
        function = body.__func__ if isinstance(body, staticmethod) else body
        if inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} yields; a task is a coroutine that returns")
        # Celery's own tasks, such as `celery.chord_unlock`, use this class too.
        if function is None or cls.__module__.startswith("celery."):
            return

        def as_attribute(function: Callable[..., Any]) -> Any:
            return staticmethod(function) if isinstance(body, staticmethod) else function

        if cls.typing is not False:
            name = cls.name or f"{cls.__module__}.{cls.__qualname__}"
            bound = not isinstance(body, staticmethod)
            cls._arguments = Arguments(name, function, bound=bound)
            function = cls._arguments.checked(function)
        # Another decorator may wrap the `async def`.
        if inspect.iscoroutinefunction(inspect.unwrap(function)):
            cls._coroutine_function = as_attribute(function)
            function = _on_the_loop(function)
        setattr(cls, "run", as_attribute(_failing(function)))  # noqa: B010

    def before_start(self, *_: Any) -> None:
        """Fail if the process that ran this message has died DELIVERY_LIMIT times."""
        poison.refuse(self.app, self.request)

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Send the task, after checking its arguments and options.

        Raises:
            InvalidArguments: The body doesn't take these arguments, or an option is invalid.
        """
        try:
            check(self.name, args, kwargs, options)
            self._refuse_nesting(args, kwargs)
            if self._arguments:
                self._arguments.check(args or (), kwargs or {})
        except InvalidArguments:
            # The worker sends tasks that follow another one, such as the callback of a chord.
            # Nobody would see an error here, so send the task, which then fails when it runs.
            follows = options.keys() & {"parent_id", "reply_to"}
            if not (follows and self.app.current_worker_task):
                raise
        return super().apply_async(args, kwargs, *rest, **options)

    def signature(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Create a signature. Check positional arguments only if none can be added before them."""
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
            InvalidArguments: An option is invalid. Celery would reject the message.
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
        """Create the signature of a retry, for the queue that the message came from.

        Celery would send it to the exchange and routing key of the message. On RabbitMQ, a delayed
        message has those of the default queue. Our routes would also choose a queue by the priority
        in `delivery_info`.
        """
        request = self.request if request is None else request
        if queue is None and not options.keys() & {"exchange", "routing_key"}:
            queue = queue_of(self.app, request.delivery_info)
        return super().signature_from_request(request, args, kwargs, queue, **options)

    async def call_async(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body in the current event loop, without the broker and without retries.

        Raises:
            TypeError: The task isn't an `async def`.
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

    # Tasks that are sent by name and tasks that beat sends are checked too, and so are the options
    # of decorators.
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
    """Make a task fail that raises an exception like SystemExit, for example by `sys.exit()`.

    Otherwise, the pool `threads` would not notice that the task has ended, `solo` would end the
    worker, and `prefork` would run the task three times.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except _ENDS_A_PROCESS as error:
            # If the worker ends this process, the message goes back to the broker. A plain call
            # raises the exception as it is.
            if terminate_handler_fired() or celery.current_app.current_worker_task is None:
                raise
            raise RuntimeError(f"the task raised {error!r}") from error

    return run


def _soft_time_limit() -> float | None:
    """Return the current task's limit in seconds. It is used in pools without a signal for it."""
    task: celery.Task[..., Any] | None = celery.current_app.current_task
    if task is None or task.request.called_directly or task.request.is_eager:
        return None
    of_worker: float | None = task.app.conf.task_soft_time_limit
    return limits(task, task.request.timelimit)[1] or of_worker


def _refuse_what_can_not_run(worker: Any) -> None:
    pool = green.pool_of(worker)
    for name, task in sorted(worker.app.tasks.items()):
        if inspect.iscoroutinefunction(task.run):
            # Celery would report success without running the coroutine.
            raise SystemExit(f"The task {name} is an `async def` on another base than celery.Task.")
        # gevent and eventlet replace the system functions that an event loop uses to wait.
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
