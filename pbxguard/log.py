"""structlog for the whole program: one canonical JSON line per call, library loggers included.

Everything is encoded by JSON, so that a line end in a caller's name cannot start a line of the log.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_NUMBER_KEYS = frozenset({"cli", "cli_key", "callee", "callee_key", "asserted", "diverted_by"})


def mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: numbers keep their first three and last four characters."""
    for key in _NUMBER_KEYS & event.keys():
        if event[key] is None:
            continue
        value = str(event[key])
        if len(value) > 7:
            event[key] = value[:3] + "*" * (len(value) - 7) + value[-4:]
        elif value:
            event[key] = "*" * len(value)
    return event


def configure(*, level: str = "info", mask_numbers: bool = False, for_good: bool = False) -> None:
    """Log as JSON lines to standard error, the loggers of the libraries too.

    panoramisk logs every request at INFO with what the peer sent, and alembic its own inner life: both are heard
    from WARNING up only. A server configures once *for_good*, which spares it the look-up at every line.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if mask_numbers:
        shared.append(mask)
    renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=for_good,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for library in ("panoramisk", "alembic"):
        logging.getLogger(library).setLevel(max(number, logging.WARNING))
