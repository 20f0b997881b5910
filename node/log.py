"""Logging: structlog to standard error, JSON or console, with the standard library's loggers routed into it.

This is the only place that configures logging. Standard output belongs to what a command prints.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor

    from node.config import LogSection

# libp2p reports every failed stream negotiation and dial, which hostile or restarting peers cause at will; what
# matters of it is logged by node.network in its own words. Its own level counts even where ours is "debug".
_LIBRARY_LEVELS = {
    "": logging.WARNING,
    "libp2p": logging.CRITICAL,
    "multiaddr": logging.ERROR,
    "asyncio": logging.WARNING,
    "py.warnings": logging.ERROR,
}


def configure_logging(section: LogSection, **bound: str) -> None:
    """Set up structlog and the standard library's logging; may be called again to change it.

    ``bound`` (for example ``moniker="val0"``) is added to every event of this process. Our own loggers
    (``structlog.get_logger()``) write from ``section.level`` up; libraries from their fixed level up.
    """
    level = logging.getLevelNamesMapping()[section.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _bind(bound),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(section.format),
            ],
        )
    )
    root = logging.getLogger()
    for previous in list(root.handlers):
        root.removeHandler(previous)
    root.addHandler(handler)
    for name, library_level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(library_level)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.processors.StackInfoRenderer(), *_renderers(section.format)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _bind(bound: dict[str, str]) -> Processor:
    def add(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        for key, value in bound.items():
            event.setdefault(key, value)
        return event

    return add


def _renderers(form: str) -> list[Processor]:
    if form == "json":
        return [
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(sort_keys=True, default=_render_unknown),
        ]
    colours = sys.stderr.isatty()
    return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)]


def _render_unknown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
