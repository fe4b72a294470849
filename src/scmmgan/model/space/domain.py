"""A modality in model space, with all that leads there and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scmmgan.model.problem import Modality, Problem
from scmmgan.model.progress import tracked
from scmmgan.model.space.graphs import Graph, neighbor_graphs, smoothed
from scmmgan.model.space.linear import column_blocks, constant
from scmmgan.model.space.smoothing import Matrix
from scmmgan.model.space.transform import Transform, fit_shared, fit_transform, identity_transform


@dataclass(frozen=True)
class Domain:
    """One modality as the networks see it. `x`: cells × p, float32, unit global sd.

    `label_purity`: chance-corrected purity of each label among the cells' neighbours, None without labels.
    `graphs`: neighbours of the cells of each batch, none where nothing is smoothed.
    """

    modality: Modality
    smoothed: Matrix
    transform: Transform
    x: np.ndarray
    label_purity: np.ndarray | None = None
    graphs: Sequence[Graph] = ()

    @property
    def name(self) -> str:
        """Of the modality."""
        return self.modality.name

    def zscored(self, positions: np.ndarray) -> np.ndarray:
        """Chosen columns of the smoothed matrix, z-scored with the transform's statistics (float32)."""
        values = self.smoothed.columns(positions)
        values = values - self.transform.mean[positions].astype(np.float32)
        return values / self.transform.sd[positions].astype(np.float32)

    def landmark_means(self, label: np.ndarray, positions: np.ndarray, matrix: Matrix | None = None) -> np.ndarray:
        """Means (m × features) of chosen z-scored columns over the cells of every landmark `label` (n,), in float64.

        `matrix`: of other cells, in the same units; by default the smoothed one.
        """
        # cells are summed before they are smoothed: nothing cells × features is made
        names, at = np.unique(positions, return_inverse=True)
        size = np.bincount(label)
        chosen = (self.smoothed if matrix is None else matrix).take(names)
        sums = []
        for of in column_blocks(len(label), len(size)):
            own = (label >= of.start) & (label < of.stop)
            member = np.zeros((len(label), of.stop - of.start))
            member[own, label[own] - of.start] = (1 / size)[label[own]]
            sums.append(chosen.tdot(member).T)
        return ((np.vstack(sums) - self.transform.mean[names]) / self.transform.sd[names])[:, at]

    def half_smoothed(self, positions: np.ndarray) -> np.ndarray:
        """Chosen columns, z-scored before and after the smoothing, added and z-scored again (float32)."""
        blocks = []
        for of in column_blocks(len(self.x), len(positions)):
            measured, smooth = self.smoothed.measured(positions[of]), self.smoothed.columns(positions[of])
            blocks.append(_zscored(_zscored(measured) + _zscored(smooth)))
        return blocks[0] if len(blocks) == 1 else np.hstack(blocks)


def _zscored(values: np.ndarray) -> np.ndarray:
    """z-scores of columns (float32); 0 where they differ by rounding only."""
    mean, sd = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    still = constant(mean, sd)
    scaled = (values - mean.astype(np.float32)) / np.where(still, 1, sd).astype(np.float32)
    return np.where(still, np.float32(0), scaled)


def model_space(
    problem: Problem, *, random_state: int, transforms: Mapping[str, Transform] | None = None
) -> dict[str, Domain]:
    """All modalities smoothed and transformed; those into one space of which the problem says that they share it.

    `transforms`: those of an earlier alignment, in place of new ones.
    """
    labels, steps = problem.labels or {}, problem.steps
    matrices: dict[str, Matrix] = {}
    purity: dict[str, np.ndarray | None] = {}
    graphs: dict[str, Sequence[Graph]] = {}
    for name, m in tracked(problem.modalities.items(), "graph", len(problem.modalities)):
        graphs[name], purity[name] = (), None
        if steps[name]:
            graphs[name], purity[name] = neighbor_graphs(
                m, labels.get(name), denoise=not problem.by_shape, random_state=random_state
            )
        matrices[name] = smoothed(m, [graph.operator for graph in graphs[name]], steps[name])
    if transforms is not None:
        fitted = {name: (transforms[name], transforms[name].transform(matrix)) for name, matrix in matrices.items()}
    else:
        fitted = {}
        for space in problem.spaces:
            n_pcs = min(problem.modalities[m].n_pcs for m in space)
            found, cells = fit_shared([matrices[m] for m in space], list(space.values()), n_pcs=n_pcs)
            fitted |= dict(zip(space, zip(found, cells)))
        fitted |= {m: _own(problem, m, matrix) for m, matrix in matrices.items() if m not in fitted}
    return {
        name: Domain(m, matrices[name], *fitted[name], purity[name], graphs[name])
        for name, m in problem.modalities.items()
    }


def _own(problem: Problem, name: str, matrix: Matrix) -> tuple[Transform, np.ndarray]:
    modality = problem.modalities[name]
    if modality.embedded:
        return identity_transform(matrix)
    linked = [known.positions(name) for pair, known in problem.known.items() if name in pair]
    return fit_transform(
        matrix, n_pcs=modality.n_pcs, linked=np.unique(np.concatenate(linked)), allowed=modality.allowed
    )
