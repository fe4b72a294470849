"""The command `scmmgan`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import scmmgan as smm

if TYPE_CHECKING:
    from mudata import MuData


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own arguments) and return its exit status."""
    parser = argparse.ArgumentParser(prog="scmmgan", description="Unpaired mapping between single-cell modalities.")
    parser.add_argument("--version", action="version", version=f"scmmgan {smm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "Align a real data set that needs no network, score it against the truth, draw it. Up to 2 minutes."
    demo = commands.add_parser("demo", help=text, description=text)
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("scmmgan_demo"), metavar="DIR", help="folder to write (%(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        _make_writable(args.output)
    except OSError as error:
        print(
            f"scmmgan demo: cannot write to {str(args.output)!r}: {error.strerror}. Name another folder with -o DIR.",
            file=sys.stderr,
        )
        return 2
    run_demo(args.output)
    return 0


def run_demo(folder: Path) -> None:
    """Align `datasets.pbmc68k_panels()` with default arguments; print scores; write the data and pictures."""
    mdata = smm.datasets.pbmc68k_panels()
    sizes = ", ".join(f"{name} ({adata.n_obs} cells × {adata.n_vars} genes)" for name, adata in mdata.mod.items())
    print(f"Real blood cells, their counts split at random into two modalities with 12 genes in common: {sizes}.")
    start = time.perf_counter()
    smm.tl.align(mdata)
    print(f"Aligned in {time.perf_counter() - start:.0f} s. Scores against the truth, which the alignment never saw:\n")
    print(score_table(mdata))
    print("\nWrote")
    for path, what in write_results(mdata, folder):
        print(f"  {path}  {what}")


def _make_writable(folder: Path) -> None:
    """Create the folder and try it, before any work is done; OSError if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


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
    """Write the aligned data and the pictures; return paths and what they hold."""
    import matplotlib

    matplotlib.use("Agg")  # files only: no display needed, no window opened
    import mudata as md
    from matplotlib import pyplot as plt

    written = [(folder / "aligned.h5mu", "the aligned data: read it with mudata.read()")]
    with md.set_options(pull_on_update=False):  # writing updates; pulling columns ends with mudata 0.4
        mdata.write(written[0][0])
    figures = {
        "history.png": (smm.pl.history(mdata, return_fig=True), "loss terms over the training"),
        "alignment_modality.png": (
            smm.pl.alignment(mdata, color="modality", return_fig=True),
            "cells before and after, coloured by modality",
        ),
        "alignment_cell_type.png": (
            smm.pl.alignment(mdata, color="cell_type", return_fig=True),
            "the same cells, coloured by cell type",
        ),
    }
    for name, (figure, what) in figures.items():
        figure.savefig(folder / name, dpi=200, bbox_inches="tight")
        plt.close(figure)
        written.append((folder / name, what))
    return written
