"""Pictures of docs/gallery.md: aligns real data and draws into docs/images.

python docs/make_gallery.py [NAME ...] --data DIR [--cache DIR]

NAME: pbmc5k_cite, visium_lymph, pdac_st, drosophila_embryo (default: all). DIR holds NAME.h5mu. Alignments are kept in the
cache, and read from it the next time. About 4 minutes on 2 free cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl
import mudata as md
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import scmmgan as smm

mpl.use("Agg")
IMAGES = Path(__file__).parent / "images"


def aligned(name: str, data: Path, cache: Path, links: str = "auto") -> md.MuData:
    """The data set aligned twice: with default settings, and by its coupling alone."""
    stored = cache / f"{name}.h5mu"
    if stored.exists():
        return md.read(stored)
    mdata = md.read(data / f"{name}.h5mu")
    # equal names are the same cell in some sets: nothing may depend on the order of rows
    first, rng = next(iter(mdata.mod)), np.random.default_rng(0)
    rows = {m: rng.permutation(a.n_obs) if m == first else np.arange(a.n_obs) for m, a in mdata.mod.items()}
    mdata = md.MuData({m: a[rows[m]].copy() for m, a in mdata.mod.items()})
    for key, method in (("scmmgan", "scmmgan"), ("coupling", "coupling")):
        start = time.time()
        smm.tl.align(mdata, links=links, method=method, key_added=key, progress_bar=False)
        print(f"{name}: {key} in {time.time() - start:.0f} s")
    cache.mkdir(parents=True, exist_ok=True)
    mdata.write(stored)
    return mdata


def save(figure: Figure, name: str) -> None:
    """As PNG of at most 256 colours: a third of the size."""
    path = IMAGES / f"{name}.png"
    figure.savefig(path, dpi=120)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256)
    small.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def pbmc5k_cite(data: Path, cache: Path) -> None:
    mdata = aligned("pbmc5k_cite", data, cache, links="genes")
    save(smm.pl.history(mdata, return_fig=True), "history")
    save(smm.pl.diagnosis(mdata, "rna", "prot", return_fig=True), "diagnosis")
    save(smm.pl.alignment(mdata, color="cell_type", return_fig=True), "alignment_joint")
    names = ["CD3", "CD4", "CD14"]
    pairs = {"pairs": "obs_names", "features": names, "color": "cell_type"}
    save(smm.pl.alignment(mdata, "rna", "prot", **pairs, return_fig=True), "alignment_pairs")
    smm.tl.uncertainty(mdata, "prot", "rna", progress_bar=False)
    save(smm.pl.uncertainty(mdata, "prot", "rna", return_fig=True), "uncertainty")


def visium_lymph(data: Path, cache: Path) -> None:
    mdata = aligned("visium_lymph", data, cache)
    space = {"source": "spatial", "target": "rna", "return_fig": True}
    save(smm.pl.alignment(mdata, "spatial", "rna", return_fig=True), "alignment_shared")
    save(smm.pl.spatial_map(mdata, ["CDCA7", "CFH", "CD14"], keys=["scmmgan", "coupling"], **space), "map_lymph")
    smm.tl.cluster(mdata, "spatial", "rna", n_clusters=5)
    save(smm.pl.spatial_map(mdata, "scmmgan_cluster", **space), "clusters_lymph")


def pdac_st(data: Path, cache: Path) -> None:
    mdata = aligned("pdac_st", data, cache)
    space = {"source": "spatial", "target": "rna", "return_fig": True}
    smm.tl.cluster(mdata, "spatial", "rna", n_clusters=5)
    names = ["TFF1", "PRSS1", "COL1A1", "scmmgan_cluster"]
    save(smm.pl.spatial_map(mdata, names, keys=["scmmgan", "coupling"], **space), "map_pdac")
    smm.tl.uncertainty(mdata, "spatial", "rna", progress_bar=False)
    save(smm.pl.spatial_map(mdata, ["COL1A1", "PRSS1"], **space), "map_uncertainty")
    # the generator keeps mixed spots mixed
    smm.tl.correlations(mdata, "spatial", "rna", gene=["COL1A1", "CD3D"], key="coupling")
    save(smm.pl.correlations(mdata, "spatial", "rna", key="coupling", return_fig=True), "correlations")


def drosophila_embryo(data: Path, cache: Path) -> None:
    mdata = aligned("drosophila_embryo", data, cache)
    # seen from the side: head to tail, belly below
    mdata["spatial"].obsm["side"] = np.asarray(mdata["spatial"].obsm["spatial"])[:, [0, 2]] * [1, -1]
    space = {"source": "spatial", "target": "rna", "basis": "side", "return_fig": True}
    smm.tl.cluster(mdata, "spatial", "rna", n_clusters=5)
    names = ["ftz", "sna", "zen", "scmmgan_cluster"]
    save(smm.pl.spatial_map(mdata, names, keys=["scmmgan", "coupling"], **space), "map_embryo")
    smm.tl.place(mdata, "rna", "spatial", spatial="side")
    save(smm.pl.coordinates(mdata, "rna", "spatial", color=["ftz", "twi"], return_fig=True), "coordinates")


MAKERS = {f.__name__: f for f in (pbmc5k_cite, visium_lymph, pdac_st, drosophila_embryo)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MAKERS))
    parser.add_argument("--data", type=Path, required=True, help="folder with NAME.h5mu")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/scmmgan_gallery"))
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    for name in arguments.names:
        MAKERS[name](arguments.data, arguments.cache)
