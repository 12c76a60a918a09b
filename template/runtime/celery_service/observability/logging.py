"""`structlog.get_logger()` and the loggers of the standard library write the same lines to standard
error, each with the id and the name of the task that it comes from.
"""

import logging
import logging.config
from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging, task_postrun, task_prerun

# What every line goes through, whichever of the two it comes from.
_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def add_processor(processor: structlog.typing.Processor) -> None:
    """Have every line go through `processor`, such as one that adds the id of a trace.

    Call it in `install`, before a process sets up its log.
    """
    _SHARED.append(processor)


def install(app: Celery) -> None:
    """Point structlog at the standard library, which Celery's processes set up when they start."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    # A receiver of this signal keeps Celery from configuring the root logger itself.
    setup_logging.connect(set_up_handlers)
    task_prerun.connect(_bind_task)
    task_postrun.connect(_unbind_task)


def set_up_handlers(
    loglevel: int | str | None = None,
    logfile: str | None = None,
    **kwargs: object,
) -> None:
    """Write log lines to `logfile` or standard error: as JSON, but on a terminal for people."""
    handler: logging.Handler = logging.FileHandler(logfile) if logfile else logging.StreamHandler()
    people = not logfile and handler.stream.isatty()  # type: ignore[attr-defined]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(
                    [structlog.dev.ConsoleRenderer()]
                    if people
                    else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
                ),
            ],
        )
    )
    logging.basicConfig(level=loglevel or logging.INFO, handlers=[handler], force=True)


def _bind_task(task_id: str, task: Any, **kwargs: object) -> None:
    # A thread or process serves one task after the other: nothing of the last one may stay.
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(task_id=task_id, task=task.name)


def _unbind_task(**kwargs: object) -> None:
    structlog.contextvars.clear_contextvars()
