"""What tools read of the cells of two aligned modalities, and the verdict that their results rest on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")


@dataclass(frozen=True)
class Cells:
    """Joint embedding of the cells of both modalities; unmatched share and ambiguity (n,) of those of the source."""

    source: np.ndarray
    target: np.ndarray
    unmatched: np.ndarray
    ambiguous: np.ndarray


def read_cells(mdata: MuData, source: str, target: str, keys: Keys) -> Cells:
    """What is known of the cells of two aligned modalities."""
    found = _slots.check_aligned(mdata, (source, target), keys)
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}: its cells are their own partners. Name two.")
    unmatched = _slots.unmatched(mdata, source, target, keys)
    ambiguous = keys.ambiguous(target if len(found["modalities"]) > 2 else None)
    # rivals of a coupling say which cells are ambiguous
    flags = _slots.needed(mdata, source, "obs", ambiguous, "diagnose") if _slots.has_coupling(mdata, keys) else None
    return Cells(
        source=np.asarray(mdata[source].obsm[keys.embedding]),
        target=np.asarray(mdata[target].obsm[keys.embedding]),
        # shapes leave no cell unmatched
        unmatched=np.zeros(mdata[source].n_obs) if unmatched is None else unmatched.astype(np.float64),
        ambiguous=np.zeros(mdata[source].n_obs) if flags is None else np.asarray(flags, dtype=np.float64),
    )


def warn_of_verdict(mdata: MuData, source: str, target: str, keys: Keys) -> None:
    """Log when nothing supports the alignment that partners come from."""
    found = _slots.diagnosis(mdata, source, target, keys)
    if not found["supported"]:
        logger.warning(
            "The alignment of %r and %r is %r: partners may belong to other populations. See `scmmgan.get.diagnosis`.",
            source, target, str(found["verdict"]),
        )  # fmt: skip
