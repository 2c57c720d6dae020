"""Structured log lines of this process: JSON for machines, text for terminals, and the one place where secrets are taken out.

An event's name says where in a job's life it happened (``training.remote.executing``, made by ``event``); what happened and to what
are its keys: ``action``, ``job``, ``attempt``, ``instance``, ``token``. Bind those once with ``bound``; tasks started inside inherit
them. Lines of libraries (asyncssh, botocore) take the same way out.

Rules for editing: ``_clean`` is the only processor that redacts (redact.py says what), and runs last before rendering, on text not yet
escaped. Tracebacks never carry local variables.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from remote_trainer.redact import HIDDEN, hide, redact

__all__ = ["bound", "configure", "event", "get", "hide", "redact"]

_SECRET_KEY = re.compile(
    r"(?i)secret|passw|passphrase|token|api_?key|access_?key|private_?key|authori[sz]ation|cookie|credential"
)


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.format_exc_info,  # the plain traceback: sources and lines, never the values in them
]

structlog.configure(
    processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    wrapper_class=structlog.stdlib.BoundLogger,
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=False,  # a later configure() must reach loggers made before
)
# Silent until configured, as a library has to be: what goes out by another way is not redacted, and stdout is a command's answer.
logging.getLogger("remote_trainer").addHandler(logging.NullHandler())


def event(phase: str) -> str:
    """Return the name of events of a phase: ``training.remote.executing``."""
    return f"training.remote.{phase}"


def get() -> FilteringBoundLogger:
    """Return a logger: ``log.info(event("executing"), action="step_started", step="train.1")``."""
    return cast(FilteringBoundLogger, structlog.stdlib.get_logger("remote_trainer"))


def bound(**keys: object) -> AbstractContextManager[None]:
    """Add keys (job, attempt, instance, token) to every line logged inside, also by tasks started there."""
    return structlog.contextvars.bound_contextvars(**keys)


def configure(level: str = "info", form: Literal["auto", "json", "text"] = "auto", stream: TextIO | None = None) -> None:
    """Send all log lines of the process to a stream (stderr). May be called again."""
    stream = stream or sys.stderr
    colours = stream.isatty()
    render: Processor
    if form == "json" or (form == "auto" and not colours):
        render = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        render = structlog.dev.ConsoleRenderer(
            colors=colours, timestamp_key="at", exception_formatter=structlog.dev.plain_traceback
        )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), _library, *_SHARED],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _clean, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries: only what is wrong
    logging.getLogger("remote_trainer").setLevel(level.upper())
    logging.captureWarnings(True)


def _library(logger: WrappedLogger, method: str, keys: EventDict) -> EventDict:
    keys["logger"] = cast(logging.LogRecord, keys["_record"]).name
    return keys


def _clean(logger: WrappedLogger, method: str, keys: EventDict) -> EventDict:
    return cast(EventDict, _cleaned(keys))


def _cleaned(value: Any, key: str = "") -> Any:
    """Return the value as plain JSON types without secrets. Numbers stay: a fencing token is one."""
    match value:
        case None | bool() | int() | float():
            return value
        case _ if value and _SECRET_KEY.search(key):
            return HIDDEN
        case Mapping():
            return {redact(str(name)): _cleaned(each, str(name)) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_cleaned(each) for each in value]
        case bytes():
            return redact(value.decode(errors="replace"))
    return redact(str(value))
