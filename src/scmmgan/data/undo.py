"""Writing to a MuData as one step: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mudata import MuData

FRAMES = ("obs", "var")
MAPPINGS = ("layers", "obsm", "varm", "uns")


@contextmanager
def all_or_nothing(mdata: MuData, modalities: Iterable[str]) -> Iterator[None]:
    """On any error inside, Ctrl-C included, `mdata` and these modalities get back every slot that they had."""
    steps: list[Callable[[], None]] = []
    for data in (mdata, *(mdata.mod[name] for name in dict.fromkeys(modalities) if name in mdata.mod)):
        steps += [partial(_put_frame, data, name, getattr(data, name).copy(deep=False)) for name in FRAMES]
        there = [name for name in MAPPINGS if getattr(data, name, None) is not None]
        steps += [partial(_put_entries, data, name, dict(getattr(data, name))) for name in there]
    try:
        yield
    except BaseException:
        _run(steps)
        raise


def _run(steps: list[Callable[[], None]]) -> None:
    try:
        for step in steps:
            step()
    except KeyboardInterrupt:
        # pressed again: the steps can be repeated
        for step in steps:
            step()


def _put_frame(data: Any, name: str, frame: Any) -> None:
    setattr(data, name, frame)


def _put_entries(data: Any, name: str, entries: dict[str, Any]) -> None:
    now = getattr(data, name)
    for key in [key for key in now if key not in entries]:
        del now[key]
    for key, value in entries.items():
        if key not in now or now[key] is not value:
            now[key] = value
