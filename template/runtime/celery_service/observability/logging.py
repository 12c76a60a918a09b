"""The log: one line for each event, with the task that it comes from, in the format that LOG_FORMAT
names, on standard error.

`structlog.get_logger()`, the loggers of the standard library, warnings and uncaught exceptions all
go through it. context.py knows the current task, events.py logs what becomes of tasks, lines.py
makes lines, redaction.py keeps secrets out of them.
"""

import logging
import sys
import threading
from logging.handlers import WatchedFileHandler
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, cast

import click
import structlog
from billiard.util import get_logger as logger_of_processes
from celery import Celery, current_app
from celery.signals import setup_logging
from click.core import ParameterSource
from pydantic import BeforeValidator
from pydantic_settings import BaseSettings, SettingsConfigDict

from celery_service.config.settings import ConfigurationError, read
from celery_service.observability import context, doubles, events, lines

Format = Literal["console", "key_value", "json"]
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Settings(BaseSettings):
    """How processes log. `.env.example` lists the variables."""

    model_config = SettingsConfigDict(env_prefix="LOG_", env_ignore_empty=True)

    # By default, `console` on a terminal and `json` elsewhere.
    format: Format | None = None
    # By default, INFO for workers and beat, WARNING for commands.
    level: Annotated[Level | None, BeforeValidator(_upper)] = None
    # The folder for the files json.log and flat_line.log, in addition to standard error.
    dir: Path | None = None


settings = read(Settings)

_log = structlog.get_logger(__name__)


def add_processor(processor: structlog.typing.Processor) -> None:
    """Have every line go through `processor`, such as one that adds the id of a trace.

    It is called with None, the name of the level, and the line as a dict, and returns the dict. It
    may raise `structlog.DropEvent`. Secrets are redacted afterwards.
    """
    lines.processors.append(processor)


def install(app: Celery) -> None:
    """Point structlog at the standard library, which Celery's processes set up when they start."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _to_standard_library,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    context.install()
    events.install()
    # A receiver of this signal keeps Celery from configuring the root logger itself.
    setup_logging.connect(_set_up_process)
    if _is_command_of_celery():
        set_up(logging.WARNING)


def set_up(level: int | str | None = None, file: str | None = None) -> None:
    """Write the log of this process, as workers do: for scripts and web processes.

    Args:
        level: The lowest level, unless LOG_LEVEL is set. By default INFO.
        file: Where to write instead of standard error.

    Raises:
        ConfigurationError: A file can't be written.
    """
    _write(settings.level or level or logging.INFO, file)


def _set_up_process(
    loglevel: int | str | None = None, logfile: str | None = None, **kwargs: object
) -> None:
    """Set up a worker or beat. What the command line says about the level wins."""
    found = click.get_current_context(silent=True)
    source = found.get_parameter_source("loglevel") if found else None
    is_given = source in {ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT}
    # Celery passes its own default, WARNING, where the command line says nothing.
    default = logging.INFO if found else loglevel
    level = loglevel if is_given and loglevel else settings.level or default or logging.INFO
    _write(level, logfile)
    # Then no message ends without a run, about which Celery alone would log a line.
    if not current_app.conf.worker_deduplicate_successful_tasks:
        doubles.skip()


def _write(level: int | str, file: str | None) -> None:
    handlers = [_handler(settings.format, file)]
    if settings.dir:
        handlers += [
            _handler("json", settings.dir / "json.log"),
            _handler("key_value", settings.dir / "flat_line.log"),
        ]
    logging.basicConfig(level=level, handlers=handlers, force=True)
    # billiard reports here that a process of the pool was killed.
    of_processes = logger_of_processes()
    of_processes.handlers = handlers
    of_processes.setLevel(logging.ERROR)
    doubles.silence()
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def _handler(format_: Format | None, file: str | Path | None) -> logging.Handler:
    handler: Any = logging.StreamHandler()
    if file:
        # Unlike FileHandler, it notices that logrotate has moved the file.
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            handler = WatchedFileHandler(file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            asked = f"LOG_DIR is {str(settings.dir)!r}; " if isinstance(file, Path) else ""
            raise ConfigurationError(f"{asked}{file} can't be written: {error}.") from None
    is_terminal = not file and handler.stream.isatty()
    formats: dict[str | None, logging.Formatter] = {
        "console": lines.Console(colors=is_terminal),
        "key_value": lines.KeyValue(),
        "json": lines.Json(),
    }
    handler.setFormatter(formats[format_ or ("console" if is_terminal else "json")])
    handler.addFilter(lines.Prepare())
    return cast("logging.Handler", handler)


def _is_command_of_celery() -> bool:
    """Tell whether `celery -A …` is importing the app. Other programs set up their own log."""
    found = click.get_current_context(silent=True)
    command = getattr(sys.modules.get("celery.bin.celery"), "celery", None)
    return found is not None and found.find_root().command is command


def _to_standard_library(
    logger: logging.Logger, method_name: str, event_dict: structlog.typing.EventDict
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass a line of structlog to the logger of the same name."""
    options = {
        name: event_dict.pop(name)
        for name in ("exc_info", "stack_info", "stacklevel")
        if name in event_dict
    }
    event = event_dict.pop("event")
    return (event,), {"extra": {"service_fields": event_dict}, **options}


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        _log.critical("uncaught_exception", exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if not issubclass(args.exc_type, SystemExit):
        thread = args.thread.name if args.thread else None
        error = args.exc_value or args.exc_type()
        told = (args.exc_type, error, args.exc_traceback)
        _log.critical("uncaught_exception", thread=thread, exc_info=told)
