"""What the library overrides, replaces or uses by a private name, and the state of it that the library was written for.

    make pins     # writes tests/runtime/pins.txt: after you have looked at what has changed

Celery and its companions may change these without notice. A line of pins.txt is a checksum, the name, and the modules
of the library that rely on it. What is overridden is found by looking at the library's classes; what is replaced or
only called stands in USED, and `missing()` finds in the library's source what has been forgotten there.
"""

import ast
import contextlib
import functools
import hashlib
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import celery_service

TABLE = Path(__file__).parents[1] / "runtime" / "pins.txt"
LIBRARY = Path(celery_service.__file__).parent
#: Whose code may change without notice. The others promise what we use of them.
PACKAGES = ("aiocache", "amqp", "billiard", "celery", "flower", "kombu", "redis")

#: Methods that Python calls. What else begins with two underscores, each version of Python has more of.
METHODS = {"__call__", "__enter__", "__exit__", "__init__", "__init_subclass__", "__iter__", "__new__", "__reduce__"}

#: Module of the library → what it replaces in objects of others, what it calls by a private name, and what calls it by
#: one: the last must go on to do so.
USED: dict[str, tuple[str, ...]] = {
    "brokers.clients": (
        "celery.app.base:Celery.amqp_cls",
        "celery.app.base:Celery.control_cls",
        "celery.app.backends:by_name",
        "celery.loaders.base:BaseLoader.override_backends",
        # They use nothing of a producer but `publish`.
        "kombu.pidbox:Mailbox._publish",
        "kombu.pidbox:Mailbox._publish_reply",
    ),
    "brokers.rabbitmq.transport": (
        "amqp.channel:Channel._on_basic_return",
        # It repeats what raises a recoverable error, and declares what isn't declared.
        "kombu.connection:Connection.ensure",
        "kombu.common:_maybe_declare",  # declared_entities
    ),
    "brokers.redis.backend": (
        # It calls `on_interval` each second, and after each result.
        "celery.backends.asynchronous:Drainer",
        "celery.backends.base:Backend._ensure_retryable",
        "celery.backends.redis:ResultConsumer",
        "celery.loaders.base:BaseLoader.init_worker",  # worker_initialized
    ),
    "brokers.messages": (
        # What they read of a message, in the worker's main process.
        "celery.worker.request:Request.__init__",
        "celery.worker.request:Request.revoked",
        "celery.worker.request:create_request_cls",
        "celery.worker.strategy:default",
    ),
    "brokers.rabbitmq": (
        "celery.app.base:Celery.send_task",
        "kombu.transport.native_delayed_delivery:calculate_routing_key",
        "kombu.transport.native_delayed_delivery:declare_native_delayed_delivery_exchanges_and_queues",
        "kombu.connection:Connection.recoverable_connection_errors",
    ),
    "brokers.redis.consumer": ("celery.worker.state:active_requests",),
    "brokers.redis.lease": (
        # Its thread has connections of its own, and puts back what others haven't renewed.
        "kombu.transport.redis:Channel.__init__",  # Client
        "kombu.transport.redis:Channel._get_pool",
        "kombu.transport.redis:Channel.conn_or_acquire",
        "kombu.transport.redis:Channel.from_transport_options",  # global_keyprefix
        "kombu.transport.redis:Channel.unacked_index_key",
        "kombu.transport.redis:Channel.visibility_timeout",
        "kombu.transport.redis:QoS.restore_by_tag",
    ),
    "brokers.rabbitmq.consumer": (
        "celery.events.dispatcher:EventDispatcher.send",  # mutex
        "celery.worker.consumer.events:Events.start",  # event_dispatcher
        "celery.worker.loops:_quick_drain",
        "celery.worker.loops:synloop",
    ),
    "brokers.redis.qos": (
        "kombu.transport.redis:Channel._q_for_pri",
        "kombu.transport.redis:Channel.conn_or_acquire",
        "kombu.transport.redis:QoS._remove_from_indices",
        "kombu.transport.redis:QoS.restore_by_tag",
        "kombu.transport.redis:Channel._do_restore_message",
        "kombu.transport.virtual.base:QoS",  # _delivered
    ),
    "brokers.redis.transport": (
        # Kombu's event loop: it calls _brpop_start and _brpop_read, and uses _in_poll and _brpop_sent_at.
        "kombu.transport.redis:MultiChannelPoller",
        "kombu.transport.redis:Channel._flush_brpop_reauth",
        "kombu.transport.redis:Channel._get_message_priority",
        "kombu.transport.redis:Channel._q_for_pri",
        "kombu.transport.redis:Channel.__init__",  # _expires, _queue_cycle, active_queues
        "kombu.transport.redis:Channel.conn_or_acquire",
        "kombu.transport.redis:GlobalKeyPrefixMixin",  # its parse_response
        "kombu.transport.virtual.base:Transport._deliver",
        "kombu.utils.scheduling:round_robin_cycle",
        "kombu.utils.scheduling:priority_cycle",
        "redis.client:Redis.parse_response",
        "redis.connection:AbstractConnection.send_command",
    ),
    "data.backends": (
        "aiocache.backends.memory:SimpleMemoryBackend",  # _delete, _handlers
    ),
    "dead_letters.chords": (
        "celery.backends.base:BaseKeyValueStoreBackend.get_key_for_group",
        "celery.backends.redis:CHORD_PART_RETURN_LUA",
        "celery.backends.redis:RedisBackend.on_chord_part_return",  # what it keeps of a chord that fails
    ),
    "dead_letters.poison": ("celery.app.base:Celery._get_backend",),
    "dead_letters.story": ("celery.app.task:Context",),
    "lifecycle.green": (
        "celery.app.task:Task.Request",
        "celery.backends.base:Backend.__init__",  # result_backend_thread_safe
        "celery.backends.redis:RedisBackend.__init__",  # redis_max_connections
    ),
    "lifecycle.green_request": ("celery.worker.request:Request.on_success",),
    "lifecycle.heartbeat": (
        "celery.backends.base:Backend._sleep",
        "celery.beat:Scheduler.tick",
        "celery.beat:Service.start",
        "celery.worker.consumer.consumer:Consumer.ensure_connected",
        "celery.worker.state:maybe_shutdown",
        "kombu.connection:Connection._ensure_connection",
    ),
    "lifecycle.beat": (
        "celery.beat:Scheduler.tick",
        "celery.beat:Scheduler.close",
        "celery.beat:Service.start",
    ),
    "lifecycle.schedule": ("celery.app.base:Celery.add_periodic_task",),
    "lifecycle.shutdown": (
        "billiard.pool:Pool.__init__",  # _pool
        "billiard.process:BaseProcess._is_alive",
        # In green pools it is kept from doing anything: task_consumer, pool, cancel_active_requests.
        "celery.apps.worker:on_cold_shutdown",
        "celery.concurrency.prefork:TaskPool.on_start",  # _pool
        "celery.utils.dispatch.signal:Signal._live_receivers",  # lock
        "celery.worker.worker:WorkController.on_stopped",
        "celery.worker.worker:WorkController.terminate",
        "celery.worker.worker:WorkController.wait_for_soft_shutdown",
    ),
    "monitoring.opentelemetry.export": (
        "opentelemetry.sdk._shared_internal:BatchProcessor.shutdown",
        "opentelemetry.sdk.trace.export:BatchSpanProcessor.shutdown",  # _batch_processor
    ),
    "monitoring.prometheus.beat": (
        "celery.beat:Scheduler.apply_async",
        "celery.beat:Scheduler.tick",
        "celery.beat:Service.start",
    ),
    "monitoring.prometheus.broker": (
        "kombu.transport.redis:Channel._q_for_pri",
        "kombu.transport.redis:Channel.conn_or_acquire",
        "kombu.transport.redis:Channel.from_transport_options",  # global_keyprefix, priority_steps
    ),
    "monitoring.prometheus.requests": (
        "celery.worker.request:Request.__init__",
        "celery.worker.request:Request._announce_revoked",
        "celery.worker.request:Request._retry_worker_lost",
        "celery.worker.request:Request.on_accepted",
        "celery.worker.request:Request.on_failure",
        "celery.worker.request:Request.on_retry",
        "celery.worker.request:Request.on_timeout",
        "celery.worker.request:Request.reject",
        "celery.worker.request:Request.send_event",
        "celery.worker.request:create_request_cls",
        "celery.worker.strategy:default",  # task.Request
    ),
    "monitoring.prometheus.worker": (
        "celery.app.amqp:Queues.consume_from",
        "celery.worker.state:active_requests",
    ),
    "observability.report": (
        "celery.worker.control:Panel",
        "celery.worker.control:stats",
        "celery.worker.state:active_requests",
    ),
    "tasks.base": (
        "billiard.common:terminate_handler_fired",
        "celery.app.base:Celery.send_task",  # Task.apply_async and beat call it
        # They make a class of each body, and wrap its `run` afterwards.
        "celery.app.autoretry:add_autoretry_behaviour",
        "celery.app.base:Celery._task_from_fun",
    ),
    "tasks.limits": (
        "celery.worker.components:Pool.create",
        "celery.worker.worker:WorkController.setup_defaults",
    ),
    "tasks.loop": ("billiard.pool:soft_timeout_sighandler",),
    "monitoring.flower": (
        "celery.bin.base:CLIContext.__init__",  # quiet
        "flower.app:Flower.__init__",
        "flower.app:Flower.start",
        "flower.app:Flower.start_http_server",
        "flower.app:Flower.stop",
        # It reads the variables that we check, and takes Flower from its own module.
        "flower.command:apply_env_options",
        "flower.command:Flower",
        # What asks for the password, and by which options.
        "flower.views:BaseHandler.get_current_user",  # basic_auth
        "flower.views.monitor:Metrics.get",
        "flower.inspector:Inspector._on_update",
    ),
    "monitoring.sentry": (
        # Its name in that module is set to the one that Sentry's integration has made.
        "celery.app.trace:build_tracer",
        "celery.worker.consumer.consumer:Consumer.update_strategies",
        "celery.worker.request:Request._context",
    ),
    "monitoring.sentry.sdk": (
        "sentry_sdk.integrations.celery:_make_event_processor",
        "sentry_sdk.integrations.celery:_wrap_task_call",
        "sentry_sdk.integrations.celery:_wrap_tracer",
    ),
    "observability.correlation": (
        # They send the messages of a canvas while they run.
        "celery.canvas:_chain.apply_async",
        "celery.canvas:_chord.apply_async",
        "celery.canvas:group.apply_async",
    ),
    "observability.doubles": (
        # It drops their lines, by the texts.
        "celery.app.trace:LOG_FAILURE",
        "celery.app.trace:LOG_IGNORED",
        "celery.app.trace:LOG_INTERNAL_ERROR",
        "celery.app.trace:LOG_RECEIVED",
        "celery.app.trace:LOG_REJECTED",
        "celery.app.trace:LOG_RETRY",
        "celery.app.trace:LOG_SUCCESS",
        "celery.app.trace:TraceInfo._log_error",
        "celery.app.trace:report_internal_error",
        "celery.backends.base:Backend._ensure_retryable",
        "celery.backends.redis:E_LOST",
        "celery.beat:Scheduler.apply_entry",
        "celery.worker.consumer.consumer:Consumer.on_unknown_message",
        "celery.worker.consumer.consumer:Consumer.on_unknown_task",
        "celery.worker.request:Request._retry_worker_lost",
        "celery.worker.request:Request.on_failure",
        "celery.worker.request:Request.on_timeout",
        "celery.worker.request:Request.revoked",
    ),
    # The signals that it needs, and where they are sent.
    "observability.events": (
        "celery.app.trace:TraceInfo.handle_failure",
        "celery.app.trace:TraceInfo.handle_retry",
        "celery.worker.request:Request._announce_cancelled",
    ),
    # It asks for time_limits, and calls on_failure.
    "tasks.request": ("celery.worker.request:Request._context", "celery.worker.request:create_request_cls"),
}


def pins() -> dict[str, tuple[str, list[str]]]:
    """Return the name of everything → its checksum now, and the modules of the library that rely on it."""
    return {name: (checksum(name), sorted(modules)) for name, modules in sorted(_users().items())}


def _users() -> dict[str, set[str]]:
    users: dict[str, set[str]] = defaultdict(set)
    for module, name in _overridden():
        users[name].add(module)
    for module, names in USED.items():
        for name in names:
            users[name].add(module)
    return users


def checksum(name: str) -> str:
    """Return what changes when the source does, blanks aside; "gone" when there is no such thing any more."""
    try:
        source = _source(name)
    except (AttributeError, ImportError):
        return "gone"
    return hashlib.sha256(" ".join(source.split()).encode()).hexdigest()[:16]


def _source(name: str) -> str:
    module, _, path = name.partition(":")
    thing: Any = importlib.import_module(module)
    for part in path.split("."):
        thing = inspect.getattr_static(thing, part)
    if isinstance(thing, property):
        thing = thing.fget
    if isinstance(thing, staticmethod | classmethod):
        thing = thing.__func__
    if isinstance(thing, functools.cached_property):
        thing = thing.func
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return inspect.getsource(thing)
    # A value of a class or a module. Some show their address.
    return re.sub(r" at 0x\w+", "", repr(thing))


# --- what is overridden -----------------------------------------------------------------------------------------------


def _modules() -> Iterator[Any]:
    for module in pkgutil.walk_packages([str(LIBRARY)], "celery_service."):
        yield importlib.import_module(module.name)


def _overridden() -> Iterator[tuple[str, str]]:
    """Yield each attribute that a class of the library has in place of one of others, and the module of the class."""
    for module in _modules():
        for cls in vars(module).values():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__ or not any(map(_is_theirs, cls.__mro__)):
                continue
            for number, ours in enumerate(cls.__mro__):
                # Also a mixin, which overrides what comes after it.
                if not ours.__module__.startswith("celery_service"):
                    continue
                for name in vars(ours).keys() | _set_on_self(ours):
                    if original := _original(name, cls.__mro__[number + 1 :]):
                        yield ours.__module__.removeprefix("celery_service."), original


def _is_theirs(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in PACKAGES


def _original(name: str, bases: tuple[type, ...]) -> str:
    """Return the full name of the first one among the bases that are not ours."""
    is_made_by_python = name.startswith("__") and name not in METHODS
    for base in bases:
        if name in vars(base) and _is_theirs(base) and not is_made_by_python:
            # Celery gives its bootsteps the module as a part of this name.
            return f"{base.__module__}:{base.__qualname__.removeprefix(f'{base.__module__}.')}.{name}"
    return ""


# --- what is forgotten ------------------------------------------------------------------------------------------------


def missing() -> list[str]:
    """Return where the library uses a private name of others, or sets something of theirs, that no pin covers."""
    covered = set()
    for name in _users():
        covered |= set(re.split(r"[.:]", name))
        with contextlib.suppress(AttributeError, ImportError):
            # What a pinned class or function mentions is covered by its source.
            covered |= set(re.findall(r"\b_\w+|(?<=\bself\.)\w+", _source(name)))
    return [where for where, name in _uses() if name not in covered]


#: What stands in the language or in libraries that promise it.
PROMISED = {
    # Of log records, and hooks.
    *("msg", "exc_info", "service_entry", "service_fields", "service_json", "excepthook"),
    # Attributes of loggers, and of tracer providers.
    *("propagate", "sampler"),
    *("_exit", "_Feature", "isolation_level", "daemon", "__annotations__", "task_cls", "allow_reuse_port"),
    # Settings of Celery, and an option of its command line.
    *("task_soft_time_limit", "task_time_limit", "soft_time_limit"),
    "basic_auth",  # an option of Flower
    "status_code",  # of FastAPI's responses
}


def _uses() -> Iterator[tuple[str, str]]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(LIBRARY.rglob("*.py"))}
    own = set().union(*map(_names_defined_in, trees.values())) | PROMISED
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            is_private = node.attr.startswith("_") and not node.attr.startswith("__")
            is_set = isinstance(node.ctx, ast.Store) and not _is_self(node.value)
            if (is_private or is_set) and node.attr not in own:
                yield f"{path.relative_to(LIBRARY)}:{node.lineno}: {ast.unparse(node)}", node.attr


def _names_defined_in(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            names.add(node.attr)
    return names


def _set_on_self(cls: type) -> set[str]:
    methods = [inspect.getsource(each) for each in vars(cls).values() if inspect.isfunction(each)]
    return {
        node.attr
        for method in methods
        for node in ast.walk(ast.parse(textwrap.dedent(method)))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value)
    }


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


# --- the table --------------------------------------------------------------------------------------------------------


def read() -> dict[str, tuple[str, list[str]]]:
    """Return what pins.txt says, in the form of `pins()`."""
    lines = [line.split() for line in TABLE.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {name: (sum_, modules) for sum_, name, *modules in lines}


def changes() -> list[str]:
    """Return a line for each difference between pins.txt and what is installed."""
    then, now = read(), pins()
    lines = []
    for name in sorted(then.keys() | now.keys()):
        if name not in now:
            lines.append(f"{name} is no longer used")
        elif name not in then:
            lines.append(f"{name} is new in {_files(now[name][1])}")
        elif then[name][0] != now[name][0]:
            what = "is gone" if now[name][0] == "gone" else "has changed"
            lines.append(f"{name} {what}; see {_files(now[name][1])}")
        elif then[name][1] != now[name][1]:
            lines.append(f"{name} is used by {_files(now[name][1])}")
    return lines


def _files(modules: list[str]) -> str:
    return ", ".join(f"celery_service/{module.replace('.', '/')}" for module in modules)


def write() -> None:
    """Bring pins.txt up to date."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [f"{sum_} {name} {' '.join(modules)}" for name, (sum_, modules) in pins().items()]
    head = ["# Written by `make pins`, from:", f"# {versions}", "# See tests/support/pins.py."]
    TABLE.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    write()
