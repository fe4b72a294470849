"""Write the files of this format: `python tests/data/archive/make.py`. Run once for each format, never for an older one.

`format{N}/` holds an aligned MuData, its model as a directory, and what both gave: new cells of "rna" translated to "protein".
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import scmmgan as smm
from scmmgan.data.keys import FORMAT


def main() -> None:
    folder = Path(__file__).parent / f"format{FORMAT}"
    folder.mkdir()
    mdata = smm.datasets.toy(n_cells=64, n_features=[16, 12], n_linked=8)
    new = mdata["rna"][:8].copy()
    smm.tl.align(mdata, links="gene", max_steps=20, n_pcs=8, progress_bar=False)
    mdata.write(folder / "aligned.h5mu", compression="gzip")
    smm.save(mdata, folder / "model")
    mapped = smm.tl.translate(new, "rna", "protein", model=mdata)
    obs = {name: mapped.obs[name].to_numpy() for name in ("scmmgan_unmatched", "scmmgan_ood")}
    np.savez(
        folder / "expected.npz", cells=np.asarray(new.X), mapped=mapped.X, embedding=mapped.obsm["X_scmmgan"], **obs
    )


if __name__ == "__main__":
    sys.exit(main())
