"""What an alignment starts from: the values of every modality, and all that is known of a pair of them. Arrays only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import LINKED_STEPS, N_PCS, PAIRS_DECIDE, SHAPE_STEPS

Pair = tuple[str, str]
Values = np.ndarray | sp.csr_matrix


@dataclass(frozen=True)
class Sections:
    """Sections of a tissue that share no frame of coordinates: number (n,) of each cell's in `names`.

    `column`: where they were read.
    """

    column: str
    names: tuple[str, ...]
    codes: np.ndarray


@dataclass(frozen=True)
class Modality:
    """One modality as it was read: `values` (n × g, float32, not smoothed) with the names of its cells and features.

    `embedded`: the values are model space already. `allowed`: positions of the features that may enter the PCA.
    `batches`: row numbers of each sample, `batch_names` theirs. `steps` of smoothing, None where the problem chooses.
    `coordinates` (n × d) are mapped along, inside `sections` where there are several frames of them.
    `counts` (n × g): molecules, where they are known. `covariates` (n × c): of the cells, whose effect is taken out of
    the values.
    """

    name: str
    values: Values
    cells: np.ndarray
    features: np.ndarray
    embedded: bool = False
    allowed: np.ndarray | None = None
    batches: tuple[np.ndarray, ...] | None = None
    batch_names: tuple[str, ...] = ()
    n_pcs: int = N_PCS
    steps: int | None = None
    coordinates: np.ndarray | None = None
    counts: Values | None = None
    covariates: np.ndarray | None = None
    sections: Sections | None = None

    def __len__(self) -> int:
        return len(self.cells)

    def covariates_of(self, rows: np.ndarray) -> np.ndarray | None:
        """Covariates of some cells, centred."""
        if self.covariates is None:
            return None
        chosen = self.covariates[rows]
        return np.asarray(chosen - chosen.mean(0))


@dataclass(frozen=True)
class Links:
    """Linked features of two modalities: positions (l,) in either, weights (the largest is 1) and signs (1 or -1)."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray
    sign: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def take(self, chosen: np.ndarray) -> Links:
        """Chosen links, by position or as booleans."""
        return Links(self.first[chosen], self.second[chosen], self.weight[chosen], self.sign[chosen])


@dataclass(frozen=True)
class Known:
    """All that is known of one pair of modalities.

    `pairs`: row numbers (k × 2) of cells that are the same. `labels`: codes (n,) of one vocabulary by modality, -1: none.
    `partners`: row numbers (k × 2) and weights (k,) where a cell may have several; its heaviest is among the pairs.
    """

    names: Pair
    links: Links | None = None
    pairs: np.ndarray | None = None
    labels: Mapping[str, np.ndarray] | None = None
    partners: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def n_links(self) -> int:
        """Number of linked features."""
        return 0 if self.links is None else len(self.links)

    @property
    def n_pairs(self) -> int:
        """Number of known pairs."""
        return 0 if self.pairs is None else len(self.pairs)

    @property
    def by_shape(self) -> bool:
        """Whether the shapes of the two decide: no links, and too few pairs to place cells without the shapes."""
        return self.links is None and self.n_pairs < PAIRS_DECIDE

    def positions(self, name: str) -> np.ndarray:
        """Positions (l,) of the linked features of one of the two."""
        if self.links is None:
            return np.empty(0, dtype=int)
        return self.links.first if name == self.names[0] else self.links.second


@dataclass(frozen=True)
class Problem:
    """All modalities and what is known of any two of them, in one order.

    `spaces`: of modalities that lie in one space, positions of the features that make it, in one order; all others have their
    own.
    `fingerprint`: hash of links, pairs and labels. `centre`: the modality of a star, through which all others are mapped.
    """

    modalities: Mapping[str, Modality]
    known: Mapping[Pair, Known]
    label_names: Sequence[str] = ()
    spaces: Sequence[Mapping[str, np.ndarray]] = ()
    fingerprint: str = field(default="", compare=False)
    centre: str | None = None

    @property
    def names(self) -> list[str]:
        """Modalities in order."""
        return list(self.modalities)

    @property
    def labels(self) -> dict[str, np.ndarray] | None:
        """Label codes (n,) of all modalities."""
        found = {m: codes for k in self.known.values() for m, codes in (k.labels or {}).items()}
        return found or None

    @property
    def through(self) -> dict[Pair, str]:
        """Pairs that are coupled through a third modality, and which: of a star all without its centre.

        Else those of which nothing is known, where links or pairs lead there and on: of several the one with most of them.
        """
        if self.centre is not None:
            return {pair: self.centre for pair in self.known if self.centre not in pair}
        found = {}
        for pair, known in self.known.items():
            if known.links is not None or known.pairs is not None:
                continue
            there = {frozenset(names) for names in self.known}
            thirds = [c for c in self.modalities if all(frozenset((m, c)) in there for m in pair)]
            legs = {c: [self.of(m, c) for m in pair] for c in thirds}
            # labels count only where both legs have them
            usable = {
                c: min(leg.n_links + leg.n_pairs for leg in of)
                for c, of in legs.items()
                if not any(leg.by_shape or (known.labels is not None and leg.labels is None) for leg in of)
            }
            if usable:
                found[pair] = max(usable, key=lambda c: usable[c])
        return found

    @property
    def direct(self) -> dict[Pair, Known]:
        """The pairs that are coupled by what is known of them."""
        through = self.through
        return {pair: known for pair, known in self.known.items() if pair not in through}

    @property
    def by_shape(self) -> bool:
        """Whether the shapes of any two modalities decide."""
        return any(known.by_shape for known in self.direct.values())

    @property
    def steps(self) -> dict[str, int]:
        """Steps of smoothing by modality: as asked, else one where links or pairs decide and three where shapes do."""
        default = SHAPE_STEPS if self.by_shape else LINKED_STEPS
        return {name: default if m.steps is None else m.steps for name, m in self.modalities.items()}

    @property
    def shared(self) -> list[Pair]:
        """Ordered pairs of modalities in one space."""
        return [pair for space in self.spaces for pair in permutations(space, 2)]

    def of(self, a: str, b: str) -> Known:
        """What is known of two modalities, in whichever order."""
        return self.known[a, b] if (a, b) in self.known else self.known[b, a]

    def only(self, a: str, b: str, **changed: object) -> Problem:
        """The problem of two modalities, with what is known of them replaced where that is asked."""
        known = self.of(a, b)
        both = [{m: space[m] for m in known.names} for space in self.spaces if a in space and b in space]
        return replace(
            self,
            modalities={m: self.modalities[m] for m in known.names},
            known={known.names: replace(known, **changed)},  # type: ignore[arg-type]
            spaces=both,
            centre=None,
        )
