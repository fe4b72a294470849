"""Long work: what is shown while it runs, and how many seconds its stages took."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from scmmgan.model.defaults import SHOWN_AFTER

logger = logging.getLogger("scmmgan")

Item = TypeVar("Item")
_is_shown: ContextVar[bool] = ContextVar("_is_shown", default=False)


@contextmanager
def shown(show: bool) -> Iterator[None]:
    """Show the `tracked` loops inside, if that is asked for."""
    before = _is_shown.set(bool(show))
    try:
        yield
    finally:
        _is_shown.reset(before)


def tracked(items: Iterable[Item], what: str, total: int | None = None) -> Iterable[Item]:
    """The items of a loop, with a bar and the time that is left where the loop takes longer than two seconds."""
    if not _is_shown.get():
        return items
    from tqdm.auto import tqdm

    found: Iterable[Item] = tqdm(
        items, desc=f"scmmgan {what}", total=total, delay=SHOWN_AFTER, mininterval=0.5, leave=False
    )
    return found


class Stages:
    """Seconds of the stages of a piece of work, by name."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._began: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the seconds inside."""
        self._began[name] = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = time.perf_counter() - self._began.pop(name)

    def so_far(self) -> dict[str, float]:
        """Seconds of all stages, up to now of one that goes on."""
        now = time.perf_counter()
        return {**self._seconds, **{name: now - began for name, began in self._began.items()}}

    def log(self, done: str) -> None:
        """Say in one line what was done, and in how many seconds."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._seconds.items())
        logger.info("%s in %.1f s: %s.", done, sum(self._seconds.values()), parts)
