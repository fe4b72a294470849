"""CPU seconds of one alignment in a fresh process, imports included, on one thread; of several checkouts in turn.

    python benchmarks/speed.py pbmc5k_cite --data DIR                                # this checkout
    python benchmarks/speed.py pbmc5k_cite --data DIR --src ../other/src src --repeat 2    # A B A B
    python benchmarks/speed.py rivals --data DIR --cells 1000 2000 5000 --python maxfuse=/venv/bin/python scglue=...

Reads the file and hides the truth first; what is timed starts with `import scmmgan`. `rivals`: other packages, each called by
its documented interface in an interpreter of its own, beside `tl.align` (as it is, and the coupling alone), all in turn. Joint
embeddings are scored by angle, as far as cells are not drawn twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import CASES, Rows, arguments, cell_types, hide, markdown, read

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

SHOW = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, "gib": peak}))
"""
CODE = (
    """
import json, logging, resource, sys, time, warnings
warnings.simplefilter("ignore")
import mudata
mdata = mudata.read(sys.argv[1])
source, target, links, settings = json.loads(sys.argv[2])
start, wall = time.process_time(), time.perf_counter()
import scmmgan as smm
logging.getLogger("scmmgan").setLevel(logging.ERROR)
smm.tl.align(mdata, source, target, links=links, progress_bar=False, **settings)
"""
    + SHOW
)
KEEP = """
if "joint" in globals():
    np.savez(f"{sys.argv[1]}/joint.npz", **dict(zip("ab", joint)))
"""
# a: RNA, b: proteins (log-normalised and CLR, counts in a layer); links: names of genes and proteins, row by row
READ = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import anndata, numpy as np
a, b = (anndata.read_h5ad(f"{sys.argv[1]}/{name}.h5ad") for name in "ab")
links = json.load(open(f"{sys.argv[1]}/links.json"))
start, wall = time.process_time(), time.perf_counter()
"""
ALIGN = """
import mudata
import scmmgan as smm, pandas as pd
mdata = mudata.MuData({"a": a, "b": b})
smm.tl.align(mdata, links=pd.DataFrame(links, columns=["a", "b"]), progress_bar=False, method=METHOD)
joint = [mdata[m].obsm["X_scmmgan"] for m in "ab"]
"""
RIVALS = {
    "scmmgan": ALIGN.replace("METHOD", "'scmmgan'"),
    "scmmgan, coupling alone": ALIGN.replace("METHOD", "'coupling'"),
    # parameters as in its tutorial on CITE-seq, as far as there are as many features
    "maxfuse": """
import maxfuse as mf
z = lambda x: (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
dense = lambda x: x.toarray() if hasattr(x, "toarray") else np.asarray(x)
shared = [z(dense(of[:, [link[i] for link in links]].X)) for i, of in enumerate((a, b))]
some, panel = min(20, len(links) - 2), min(15, b.n_vars - 2)
fusor = mf.model.Fusor(*shared, z(dense(a.X)), z(dense(b.X)))
fusor.split_into_batches(max_outward_size=8000, matching_ratio=4, metacell_size=2, verbose=False)
fusor.construct_graphs(n_neighbors1=15, n_neighbors2=15, svd_components1=40, svd_components2=panel, resolution1=2, resolution2=2, verbose=False)
fusor.find_initial_pivots(wt1=0.7, wt2=0.7, svd_components1=some, svd_components2=some, verbose=False)
fusor.refine_pivots(wt1=0.7, wt2=0.7, svd_components1=40, cca_components=min(25, b.n_vars - 2), verbose=False)
fusor.filter_bad_matches(target="pivot", filter_prop=0.5, verbose=False)
fusor.propagate(wt1=0.7, wt2=0.7, svd_components1=40, verbose=False)
fusor.filter_bad_matches(target="propagated", filter_prop=0.3, verbose=False)
fusor.get_matching(target="full_data")
joint = fusor.get_embedding(fusor.active_arr1, fusor.active_arr2)
""",
    "scglue": """
import tempfile
import networkx as nx, scanpy as sc, scglue
graph = nx.MultiDiGraph()
for node in (*a.var_names, *b.var_names):
    graph.add_edge(node, node, weight=1.0, sign=1)
for gene, protein in links:
    graph.add_edge(gene, protein, weight=1.0, sign=1)
    graph.add_edge(protein, gene, weight=1.0, sign=1)
for of, width in ((a, 100), (b, min(100, b.n_vars - 1))):
    of.var["highly_variable"] = True
    sc.pp.pca(of, n_comps=width)
    scglue.models.configure_dataset(of, "NB", use_highly_variable=True, use_layer="counts", use_rep="X_pca")
with tempfile.TemporaryDirectory() as folder:
    glue = scglue.models.fit_SCGLUE({"a": a, "b": b}, graph, fit_kws={"directory": folder})
joint = [glue.encode_data(name, of) for name, of in (("a", a), ("b", b))]
""",
    # it needs equal names
    "tangram": """
import tangram as tg
shown = a[:, [gene for gene, _ in links]].copy()
b = b[:, [protein for _, protein in links]].copy()
b.var_names = shown.var_names
tg.pp_adatas(shown, b, genes=None)
found = tg.map_cells_to_space(shown, b, mode="cells", device="cpu")
""",
    # it needs equal names, maps one way, and leaves cells without a count in linked genes without coordinates
    "cellmapper": """
import cellmapper
names = {protein: gene for gene, protein in links}
b.var_names = [names.get(name, f"protein {name}") for name in b.var_names]
mapper = cellmapper.CellMapper(b, a)
mapper.compute_fast_cca(n_comps=min(20, len(links) - 2))
joint = [np.nan_to_num(of.obsm["X_cca"]) for of in (a, b)]
a.obsm["X_cca"], b.obsm["X_cca"] = joint
mapper.map(use_rep="X_cca", layer_key="X")
""",
    "moscot": """
import scanpy as sc
from moscot.problems.cross_modality import TranslationProblem
for i, (of, width) in enumerate(((a, 50), (b, min(50, b.n_vars - 1)))):
    sc.pp.pca(of, n_comps=width)
    x = of[:, [link[i] for link in links]].X
    x = np.asarray(x.toarray() if hasattr(x, "toarray") else x)
    of.obsm["shared"] = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    of.obs["batch"] = "one"
problem = TranslationProblem(adata_src=a, adata_tgt=b)
problem = problem.prepare(src_attr="X_pca", tgt_attr="X_pca", joint_attr="shared").solve(alpha=0.5, epsilon=1e-2)
problem.translate(source="src", target="tgt", forward=True)
""",
}


def run(file: Path, case: Any, settings: dict[str, Any], src: Path) -> dict[str, float]:
    """One alignment in a process of its own, with the package from `src`."""
    env = os.environ | {"PYTHONPATH": str(src.resolve()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(file), json.dumps([*case, settings])]
    return json.loads(
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )


def drawn(whole: Any, case: Any, n: int, folder: Path) -> dict[str, np.ndarray] | None:
    """`n` cells of each modality, normalised, and their links; returns the rows that were drawn, where they are the same cells.

    More cells than there are: with replacement, their counts drawn anew (Poisson), and no truth.
    """
    import scmmgan as smm

    rng, parts, rows = np.random.default_rng(n), {}, {}
    both = whole[case.source].obs_names.intersection(whole[case.target].obs_names)
    chosen, anew = both[rng.permutation(len(both))[:n]], n > len(both)
    for name, m in zip("ab", (case.source, case.target)):
        rows[name] = (
            rng.integers(0, whole[m].n_obs, n) if anew else whole[m].obs_names.get_indexer(rng.permutation(chosen))
        )
        counts = sp.csr_matrix(whole[m].layers["counts"])[rows[name]].astype(np.float32)
        if anew:
            counts.data = rng.poisson(counts.data).astype(np.float32)
            counts.eliminate_zeros()
        part = anndata.AnnData(counts, var=whole[m].var.copy())
        part.obs_names = [f"{name}_{i}" for i in range(n)]
        parts[name] = part[:, np.asarray((counts > 0).sum(0)).ravel() > 2].copy()
    mdata = mudata.MuData(parts)
    table = smm.pp.link_features(mdata, "a", "b", on=case.links).drop_duplicates("a").drop_duplicates("b")
    for name, kind in (("a", "log1p"), ("b", "clr")):
        part = mdata[name]
        smm.pp.normalize(mdata, name, kind=kind)
        part.layers["counts"], part.X = part.X, part.layers.pop(kind)
        part.write_h5ad(folder / f"{name}.h5ad")
    (folder / "links.json").write_text(json.dumps(table[["a", "b"]].to_numpy().tolist()))
    return None if anew else rows


def scored(folder: Path, whole: Any, case: Any, rows: dict[str, np.ndarray] | None) -> dict[str, float]:
    """FOSCTTM and label transfer (mean of both ways) of a joint embedding by angle, where there is one, and a truth."""
    from scmmgan import metrics

    file = folder / "joint.npz"
    if rows is None or not file.exists():
        return {}
    with np.load(file) as found:
        a, b = (found[name] / np.maximum(np.linalg.norm(found[name], axis=1, keepdims=True), 1e-12) for name in "ab")
    file.unlink()
    names, types = (
        [of[rows[name]] for name, of in zip("ab", (get(whole[case.source]), get(whole[case.target])))]
        for get in (lambda adata: np.asarray(adata.obs_names), cell_types)
    )
    transfer = [metrics.label_transfer(b, types[1], a, types[0]), metrics.label_transfer(a, types[0], b, types[1])]
    foscttm = metrics.foscttm(a[np.argsort(names[0])], b[np.argsort(names[1])])
    return {"foscttm": foscttm, "label_transfer": float(np.mean(transfer))}


def rivals(args: argparse.Namespace, name: str) -> None:
    """Every package that has an interpreter, in turn; the least seconds and memory, and the median scores, of the repeats."""
    interpreters = {name: sys.executable for name in RIVALS if name.startswith("scmmgan")} | dict(args.python)
    source = str(args.src[0].resolve())
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env = os.environ | threads | {"PYTHONPATH": source, "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": ONE_THREAD}
    whole, case, rows = read(args.data, name), CASES[name], Rows(args.out)
    slow: set[str] = set()
    columns = ["cpu", "wall", "gib", "foscttm", "label_transfer"]
    for n in args.cells:
        with tempfile.TemporaryDirectory() as folder:
            truth = drawn(whole, case, n, Path(folder))
            for _ in range(args.repeat):
                for package in (package for package in interpreters if package not in slow):
                    command = [interpreters[package], "-c", READ + RIVALS[package] + SHOW + KEEP, folder]
                    row: dict[str, Any] = {"cells": n, "package": package} | dict.fromkeys(columns, np.nan)
                    try:
                        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=args.limit)
                        if done.returncode:
                            row["error"] = done.stderr.strip().splitlines()[-1]
                            slow.add(package)
                        else:
                            row |= json.loads(done.stdout.strip().splitlines()[-1])
                            row |= scored(Path(folder), whole, case, truth)
                    except subprocess.TimeoutExpired:
                        # more cells would take longer
                        slow.add(package)
                        row["error"] = f"more than {args.limit} s"
                    rows.add(row)
    how = dict.fromkeys(columns[:3], "min") | dict.fromkeys(columns[3:], "median")
    table = pd.DataFrame(rows).groupby(["cells", "package"], sort=False).agg(how).round(3)
    markdown(["cells", "package", *table], [[*key, *values] for key, values in zip(table.index, table.to_numpy())])


def _interpreter(item: str) -> tuple[str, str]:
    name, _, path = item.partition("=")
    if name not in RIVALS or not path:
        raise argparse.ArgumentTypeError(f"NAME=PATH with a name of {[*RIVALS]}")
    return name, path


def main() -> None:
    parser = arguments(__doc__, ["pbmc5k_cite"], seeds=False)
    own = Path(__file__).resolve().parent.parent / "src"
    parser.add_argument("--src", type=Path, nargs="+", default=[own], metavar="FOLDER", help="checkouts to compare")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--python", type=_interpreter, nargs="+", default=[], metavar="NAME=PATH", help="of rivals")
    parser.add_argument(
        "--cells", type=int, nargs="+", default=[1_000, 2_000, 5_000], help="of each modality, for rivals"
    )
    parser.add_argument("--limit", type=float, default=600, help="seconds that a rival may take")
    args = parser.parse_args()
    if args.names[0] == "rivals":
        for name in args.names[1:] or ["pbmc5k_cite"]:
            rivals(args, name)
        return
    rows = []
    for name in args.names:
        hidden = hide(read(args.data, name).mod, CASES[name], 0)
        file = Path(f"/tmp/scmmgan_speed_{os.getpid()}.h5mu")
        hidden.mdata.write(file)
        try:
            for _ in range(args.repeat):
                for src in args.src:
                    rows.append({"data": name, "src": str(src), **run(file, CASES[name], dict(args.set), src)})
                    print(rows[-1], flush=True)
        finally:
            file.unlink()
    table = pd.DataFrame(rows).groupby(["data", "src"], sort=False)[["cpu", "wall", "gib"]].min().round(2)
    markdown(["data", "src", *table], [[*key, *values] for key, values in zip(table.index, table.to_numpy())])


if __name__ == "__main__":
    main()
