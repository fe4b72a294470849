"""Where a new cell lies in model space: its values, smoothed with those of its nearest training cells only.

Training cells are x = Pᵗ u, with u their own projections and P the operator of their neighbours (`smoothing_operator`). A
new cell is one more row of P: its own share s beside the shares p of training cells, whose rows stay as they are. Then
x = sᵗ u + Σ sᵗ⁻¹⁻ᵏ p Pᵏ u over k < t, which of a training cell is what it was. New cells have no label: where training
cells were smoothed inside labels, they choose among all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy.sparse as sp

from scmmgan.model.defaults import COPY_DISTANCE, MAX_REFERENCE, SMOOTHING_NEIGHBORS, WIDTH_NEIGHBOR
from scmmgan.model.problem import Values
from scmmgan.model.progress import tracked
from scmmgan.model.space.diffusion import nearest_neighbors
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.pca import Projection
from scmmgan.model.space.smoothing import BatchedMatrix


@dataclass(frozen=True)
class Located:
    """New cells in model space (n × p, float32), and what is known of them.

    `unmatched` (n,): by target, mean unmatched share of the neighbours. `ood` (n,): share of the training cells that are
    nearer to their neighbours, in [0, 1]; new cells of the kinds that were trained on are spread evenly over it. Empty where no
    training cells are kept.
    """

    x: np.ndarray
    unmatched: dict[str, np.ndarray]
    ood: np.ndarray


@dataclass(frozen=True)
class Reference:
    """Training cells of one batch that new cells are smoothed with; every field is a plain array.

    `own`: values → model space. `search`: values → where neighbours are looked for; `scores` (n × q): training cells
    there. `width` (n,): kernel bandwidth of each; `reach` (n,): distance to the last neighbour that it chose among all.
    `smoothed` (t × n × p): their values after 0 to t - 1 steps, in model space. `unmatched`
    (n,): by target. `variance` (p,): of the training cells in model space. `share`: of the batch among all cells.
    """

    own: Projection
    search: Projection
    scores: np.ndarray
    width: np.ndarray
    reach: np.ndarray
    smoothed: np.ndarray
    unmatched: Mapping[str, np.ndarray]
    variance: np.ndarray
    share: float

    def locate(self, values: Values, columns: np.ndarray) -> Located:
        """New cells, from their values (n × g') of the features `columns`; features that are not there count as their mean."""
        weight, offset = self.own.onto(columns)
        own = np.asarray(values @ weight) + offset
        weight, offset = self.search.onto(columns)
        kernel, width = self._kernel(np.asarray(values @ weight) + offset)
        degree = np.asarray(kernel.sum(1)).ravel()
        # a cell counts twice for itself, as a pair of cells that choose each other does
        self_share = (2 / (2 + degree))[:, None]
        p, steps = sp.diags(1 / (2 + degree)) @ kernel, len(self.smoothed)
        x = self_share**steps * own
        for k, step in enumerate(self.smoothed):
            x += self_share ** (steps - 1 - k) * (p @ step)
        mean = sp.diags(1 / np.maximum(degree, 1e-300)) @ kernel
        unmatched = {target: (mean @ of).astype(np.float32) for target, of in self.unmatched.items()}
        nearer = np.searchsorted(np.sort(self.width), width) / len(self.width)
        return Located(x.astype(np.float32), unmatched, nearer.astype(np.float32))

    def _kernel(self, z: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
        """Weights (n × training cells) of the neighbours of cells z, not normalised, and bandwidths (n,)."""
        distance = _distances(z, self.scores.astype(np.float64))
        k = min(SMOOTHING_NEIGHBORS, len(self.scores) - 1)
        row = np.arange(len(z))[:, None]
        near = np.argpartition(distance, k, axis=1)[:, : k + 1]
        near = np.take_along_axis(near, np.argsort(distance[row, near], axis=1, kind="stable"), axis=1)
        lengths, at = distance[row, near], min(WIDTH_NEIGHBOR, k) - 1
        # a training cell once more is no neighbour of itself
        copy = lengths[:, 0] <= np.maximum(COPY_DISTANCE * lengths[:, at + 1], 1e-6 * self.width.mean())
        chosen = np.where(copy[:, None], near[:, 1:], near[:, :-1])
        distance[copy, near[copy, 0]] = np.inf
        lengths = distance[row, chosen]
        width = np.maximum(lengths[:, at], self.width.min())
        out = np.exp(-((lengths / width[:, None]) ** 2))
        # the kernel is symmetric: those that would choose the cell count, too
        i, j = np.nonzero(distance <= self.reach * (1 + 1e-6))
        back = np.exp(-((distance[i, j] / self.width[j]) ** 2))
        entries = np.r_[out.ravel(), back]
        at_rows, at_columns = np.r_[np.repeat(row, k), i], np.r_[chosen.ravel(), j]
        return sp.csr_matrix((entries, (at_rows, at_columns)), shape=distance.shape), lengths[:, at]

    def state(self) -> dict[str, Any]:
        """All fields as arrays, nested."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return found | {"own": self.own.state(), "search": self.search.state(), "unmatched": dict(self.unmatched)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Reference:
        """The reference that `state` came from; ValueError where its arrays do not fit each other."""
        found = {name: np.asarray(state[name]) for name in ("scores", "width", "reach", "smoothed", "variance")}
        own, search = (Projection.from_state(state[name]) for name in ("own", "search"))
        unmatched = {str(t): np.asarray(of) for t, of in state["unmatched"].items()}
        n, p = len(found["scores"]), len(own.loadings)
        shapes = {"scores": (n, len(search.loadings)), "width": (n,), "reach": (n,)}
        shapes |= {"smoothed": (len(found["smoothed"]), n, p), "variance": (p,)}
        if wrong := [name for name, shape in shapes.items() if found[name].shape != shape]:
            raise ValueError(f"{wrong[0]!r} of the training cells has shape {found[wrong[0]].shape}")
        if n < 2 or any(of.shape != (n,) for of in unmatched.values()):
            raise ValueError("the training cells do not fit their unmatched shares")
        return cls(own, search, unmatched=unmatched, share=float(state["share"]), **found)


def references(domain: Domain, unmatched: Mapping[str, np.ndarray]) -> list[Reference]:
    """Training cells of each batch of a modality, at most 20,000 in all; `unmatched` (n,) of all cells by target."""
    matrix, n = domain.smoothed, len(domain.x)
    batched = isinstance(matrix, BatchedMatrix)
    parts = matrix.parts if isinstance(matrix, BatchedMatrix) else [matrix]
    rows = matrix.rows if isinstance(matrix, BatchedMatrix) else [np.arange(n)]
    found = []
    for i, (part, of) in enumerate(zip(parts, rows)):
        moved = (matrix.scale[i], matrix.shift[i]) if isinstance(matrix, BatchedMatrix) else (1.0, 0.0)
        own = _own(domain, *moved)
        values, steps = own.scores(part.unsmoothed), []
        for _ in range(part.steps):
            steps.append(values.astype(np.float32))
            values = part.operator @ values
        # where nothing is smoothed, model space itself says which cells are like others
        if domain.graphs:
            graph = domain.graphs[i]
            search, scores = graph.projection, graph.scores
        else:
            search, scores = own, values.astype(np.float32)
        kept = _sample(len(of), MAX_REFERENCE * len(of) // n if batched else MAX_REFERENCE)
        distance = nearest_neighbors(scores[kept], SMOOTHING_NEIGHBORS)[1]
        width = distance[:, min(WIDTH_NEIGHBOR, distance.shape[1]) - 1]
        found.append(
            Reference(
                own=own,
                search=search,
                scores=scores[kept],
                width=np.maximum(width, max(1e-6 * distance.mean(), 1e-12)),
                reach=distance[:, -1],
                smoothed=np.stack([step[kept] for step in steps])
                if steps
                else np.empty((0, len(kept), values.shape[1]), dtype=np.float32),
                unmatched={target: share[of][kept] for target, share in unmatched.items()},
                variance=domain.x[of].var(0, dtype=np.float64),
                share=len(of) / n,
            )
        )
    return found


def located(
    found: Sequence[Reference], values: Values, columns: np.ndarray, batch: np.ndarray, *, batch_size: int
) -> Located:
    """New cells with the training cells of their batch (n,); -1: the mean over what they would be in each.

    So many cells at a time as `batch_size` says; what a cell is depends on no other.
    """
    parts: list[tuple[np.ndarray, Located]] = []
    for code in np.unique(batch):
        rows = np.flatnonzero(batch == code)
        each = found if code < 0 else [found[code]]
        for start in tracked(range(0, len(rows), batch_size), "translate"):
            at = rows[start : start + batch_size]
            parts.append((at, _mean([(r.share, r.locate(values[at], columns)) for r in each])))
    order = np.argsort(np.concatenate([at for at, _ in parts]))
    return Located(
        np.concatenate([part.x for _, part in parts])[order],
        {t: np.concatenate([part.unmatched[t] for _, part in parts])[order] for t in found[0].unmatched},
        np.concatenate([part.ood for _, part in parts])[order],
    )


def _mean(each: Sequence[tuple[float, Located]]) -> Located:
    """The mean over batches by their shares; a cell is as far out as in the batch that it is least so."""
    if len(each) == 1:
        return each[0][1]
    total = sum(share for share, _ in each)
    return Located(
        np.sum([np.float32(share / total) * of.x for share, of in each], axis=0),
        {
            t: np.sum([np.float32(share / total) * of.unmatched[t] for share, of in each], axis=0)
            for t in each[0][1].unmatched
        },
        np.min([of.ood for _, of in each], axis=0),
    )


def _own(domain: Domain, scale: np.ndarray | float, shift: np.ndarray | float) -> Projection:
    """The transform's encoder, of values that are to be scaled and shifted first."""
    found = domain.transform
    center, sd = (found.mean - shift) / scale, found.sd / scale
    return Projection(found.encoded, center[found.encoded], sd[found.encoded], found.encoder / float(found.scale))


def _sample(n: int, most: int) -> np.ndarray:
    """Row numbers of at most so many of n cells, but enough to be neighbours, drawn at random."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).permutation(n)[: max(most, SMOOTHING_NEIGHBORS + 1)])


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances (n × m) in float64, about the mean of y, so that squares lose few digits."""
    middle = y.mean(0)
    x, y = x - middle, y - middle
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None, :] - 2 * (x @ y.T)
    return np.sqrt(np.maximum(squared, 0))
