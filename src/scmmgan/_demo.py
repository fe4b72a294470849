"""What `scmmgan demo` does: align a real data set, score it against the truth, write data and pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import scmmgan as smm
from scmmgan.settings import unpulled

if TYPE_CHECKING:
    from mudata import MuData


def run_demo(folder: Path) -> str:
    """Align `datasets.pbmc68k_panels()` with default arguments; write the data and pictures; scores and names of files."""
    mdata = smm.datasets.pbmc68k_panels()
    start = time.perf_counter()
    smm.tl.align(mdata)
    seconds, table = time.perf_counter() - start, score_table(mdata)
    written = write_results(mdata, folder)
    sizes = ", ".join(f"{name} ({adata.n_obs} cells × {adata.n_vars} genes)" for name, adata in mdata.mod.items())
    lines = [
        f"Real blood cells, their counts split at random into two modalities with 12 genes in common: {sizes}.",
        f"Aligned in {seconds:.0f} s. Scores against the truth, which the alignment never saw:\n\n{table}\n\nWrote",
        *(f"  {path}  {what}" for path, what in written),
    ]
    return "\n".join(lines)


def score_table(mdata: MuData) -> str:
    """FOSCTTM and label transfer of the alignment, next to a perfect and a random map.

    The random map is the alignment with its cells exchanged at random (mean of ten): what a map scores that hits
    the right cloud of cells and nothing else.
    """
    a, b = mdata.mod
    joint = smm.get.embedding(mdata)
    cells, labels = {}, {}
    for name, adata in mdata.mod.items():
        order = np.argsort(mdata.uns["truth"][name]["cell"])  # equal rows are the same cell from here on
        cells[name] = np.asarray(joint[[f"{name}:{cell}" for cell in adata.obs_names[order]]].X)
        labels[name] = adata.obs["cell_type"].to_numpy()[order]

    def scores(x: np.ndarray) -> list[float]:
        return [
            smm.metrics.foscttm(x, cells[b]),
            smm.metrics.label_transfer(x, labels[a], cells[b], labels[b]),
            smm.metrics.label_transfer(cells[b], labels[b], x, labels[a]),
        ]

    rng = np.random.default_rng(0)
    rows = {
        "perfect map": [0.0, 1.0, 1.0],
        "scmmgan": scores(cells[a]),
        "random map": np.mean([scores(rng.permutation(cells[a])) for _ in range(10)], axis=0),
    }
    lines = [f"{'':12}{'FOSCTTM':>9}{f'label transfer {a} → {b}':>36}{f'{b} → {a}':>20}"]
    lines += [f"{title:12}{row[0]:9.3f}{row[1]:36.3f}{row[2]:20.3f}" for title, row in rows.items()]
    return "\n".join(lines)


def write_results(mdata: MuData, folder: Path) -> list[tuple[Path, str]]:
    """Write the aligned data and the pictures, all or none; return paths and what they hold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    data = folder / "aligned.h5mu"
    written = [(data, "the aligned data: read it with mudata.read()")]
    colored = {"modality": "cells before and after, coloured by modality"}
    colored["cell_type"] = "the same cells, coloured by cell type"
    figures = {"history.png": (smm.pl.history(mdata, return_fig=True), "loss terms over the training")}
    for color, what in colored.items():
        figures[f"alignment_{color}.png"] = (smm.pl.alignment(mdata, color=color, return_fig=True), what)
    with _beside() as beside:
        with unpulled():
            mdata.write(beside(data))
        for name, (figure, what) in figures.items():
            figure.savefig(beside(folder / name), dpi=200, bbox_inches="tight")
            plt.close(figure)
            written.append((folder / name, what))
    return written


@contextmanager
def _beside() -> Iterator[Callable[[Path], Path]]:
    """Names of files to write beside others, whose names they get at the end; after an error they are removed."""
    files: dict[Path, Path] = {}

    def beside(path: Path) -> Path:
        files[path] = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        return files[path]

    try:
        yield beside
        for there in files.values():
            # a disk that is full may say so only now
            with open(there, "r+b") as file:
                os.fsync(file.fileno())
        for path, there in files.items():
            os.replace(there, path)
    finally:
        for there in files.values():
            there.unlink(missing_ok=True)
