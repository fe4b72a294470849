"""What a method without a coupling gives: the cells of all modalities in one space, and the way from there to features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from scmmgan.model.problem import Values


class Decoder(Protocol):
    """The way from the joint space to the features of every modality."""

    def decode(self, z: np.ndarray, target: str, features: np.ndarray) -> np.ndarray:
        """Values (n × f, float32, the units of the layer) of the target's features at positions `features` (f,).

        `z` (n × q, float32): cells in the joint space, measured in any modality.
        """
        ...

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """JSON-able settings, and arrays by name; no arrays where nothing can be rebuilt from a file."""
        ...


class Mapper(Decoder, Protocol):
    """A decoder that new cells can be embedded with, too."""

    def needed(self, modality: str) -> np.ndarray:
        """Positions of the features that are read."""
        ...

    def shares(self, modality: str) -> np.ndarray:
        """How much (g,) of what is read each feature carries; they sum to 1."""
        ...

    def read(self, values: Values, columns: np.ndarray, modality: str) -> np.ndarray:
        """What is read (n × p) of cells, from their values (n × g') of the features at `columns`."""
        ...

    def embed(self, x: np.ndarray, modality: str) -> np.ndarray:
        """Cells (n × q, float32) in the joint space, from what was read (n × p)."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A fitted method: `embeddings` (n × q, float32) of all modalities in one space, and the `model` that decodes them.

    Without a model there are no mapped values.
    `history`: one list per loss term, all as long as `step`. `info`: what is recorded beside the arguments, in `params["fit"]`:
    str, bool, numbers, arrays, or tables as dicts of columns.
    """

    embeddings: Mapping[str, np.ndarray]
    model: Decoder | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=lambda: {"step": [0]})
    info: Mapping[str, Any] = field(default_factory=dict)
