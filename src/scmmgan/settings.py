"""What scmmgan says, and how much of it: `scmmgan.settings.verbosity`.

Messages go to stderr through the logger `scmmgan`, without any set-up. The root logger is not touched, and where the user
has set up logging for the terminal, messages appear there and not twice.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any, TextIO

# numbers, names and levels of scanpy
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "hint": 15, "debug": logging.DEBUG}
DEFAULT = "info"  # so that a verdict is seen where something supports the alignment, too

_logger = logging.getLogger("scmmgan")

verbosity: int | str


class _Terminal(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment, unless another handler writes the record to the terminal."""

    def __init__(self) -> None:
        # not that of StreamHandler, which keeps the stderr of today: notebooks and tests replace it
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, if nobody else does."""
        if sys.stderr is not None and not self._is_shown(record):
            super().emit(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        terminals = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
        logger: logging.Logger | None = _logger
        while logger is not None:
            for handler in logger.handlers:
                stream = None if handler is self else getattr(handler, "stream", None)
                if stream is not None and stream in terminals and record.levelno >= handler.level:
                    return True
            logger = logger.parent if logger.propagate else None
        return False


class _Settings(ModuleType):
    """The module with a `verbosity` that is checked when it is set."""

    @property
    def verbosity(self) -> int:
        """How much is said, as in scanpy: 0 errors, 1 warnings, 2 infos (default), 3 hints, 4 everything.

        Names are taken, too: `scmmgan.settings.verbosity = "warning"`. The verdict on an alignment is a warning where
        nothing supports it, else an info.
        """
        level = _logger.getEffectiveLevel()
        return next((number for number, of in enumerate(LEVELS.values()) if level >= of), len(LEVELS) - 1)

    @verbosity.setter
    def verbosity(self, value: int | str) -> None:
        names = list(LEVELS)
        known: dict[int | str, str] = {**dict(enumerate(names)), **{name: name for name in names}}
        found = value.lower() if isinstance(value, str) else value
        if isinstance(found, bool) or found not in known:
            raise ValueError(
                f"`verbosity` must be one of {names}, or its number from 0 to {len(names) - 1}; got {value!r}."
            )
        _logger.setLevel(LEVELS[known[found]])


@contextmanager
def quietly() -> Iterator[None]:
    """Infos and warnings are left out: for input that is read a second time, of which all was said the first time."""

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING

    _logger.addFilter(errors_only)
    try:
        yield
    finally:
        _logger.removeFilter(errors_only)


def unpulled() -> AbstractContextManager[Any]:
    """Mudata 0.3 copies columns of the modalities into the whole, and warns of it; 0.4 does not, and has no such option."""
    import mudata

    return mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()


def _set_up() -> None:
    """Add the handler, once, and a level where the user has set none."""
    # by name: of a module that was loaded anew the class is another one
    if not any(type(handler).__name__ == _Terminal.__name__ for handler in _logger.handlers):
        _logger.addHandler(_Terminal())
    if _logger.level == logging.NOTSET:
        _logger.setLevel(LEVELS[DEFAULT])


sys.modules[__name__].__class__ = _Settings
_set_up()
