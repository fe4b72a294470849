"""Unpaired mapping between single-cell modalities: `pp`, `tl`, `pl`, `get`, `metrics`, `datasets`, `settings`."""

from __future__ import annotations

import importlib
from typing import Any

from scmmgan import settings

__version__ = "0.1.0"
__all__ = ["datasets", "get", "load", "metrics", "pl", "pp", "save", "settings", "tl"]


def __getattr__(name: str) -> Any:
    # lazy: torch, scanpy and mudata cost seconds that `import scmmgan` must not
    if name in ("load", "save"):
        return getattr(importlib.import_module(f"{__name__}.archive"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
