"""Pictures of docs/gallery.md: runs the code that stands there, and saves what each block draws into docs/images.

python docs/make_gallery.py [NAME ...] --data DIR [--cache DIR]

NAME: of pictures (default: all). DIR holds pbmc5k_cite.h5mu, visium_lymph.h5mu, pdac_st.h5mu and drosophila_embryo.h5mu.
Alignments are kept in the cache, and read from it the next time. About 4 minutes on 2 free cores.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mudata as md
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

import scmmgan as smm
from scmmgan.settings import unpulled

mpl.use("Agg")
PAGE = Path(__file__).parent / "gallery.md"
IMAGES = PAGE.parent / "images"


def blocks(text: str) -> list[tuple[str, str]]:
    """Code of the page, each block with the name of the picture that follows it; of the first one, the data, none does."""
    found = re.findall(r"^```python\n(.*?)^```\s+(?:!\[[^]]*\]\(images/(\w+)\.png\))?", text, re.MULTILINE | re.DOTALL)
    return [(code, name) for code, name in found if "smm." in code]


def aligned(name: str, first: str, data: Path, cache: Path) -> md.MuData:
    """A data set under its name on the page, aligned by the calls in the first block."""
    [file] = re.findall(rf'^{name} = .*"(\w+\.h5mu)"', first, re.MULTILINE)
    if (cache / file).exists():
        return md.read(cache / file)
    mdata = shuffled(md.read(data / file))
    for line in re.findall(rf"^smm\.tl\.align\({name}\b.*", first, re.MULTILINE):
        start = time.time()
        exec(line, {"smm": smm, name: mdata})
        print(f"{line}: {time.time() - start:.0f} s")
    cache.mkdir(parents=True, exist_ok=True)
    mdata.write(cache / file)
    return mdata


def shuffled(mdata: md.MuData) -> md.MuData:
    """Rows of the first modality in another order: equal names are the same cell in some sets, and nothing may show it."""
    first, rng = next(iter(mdata.mod)), np.random.default_rng(0)
    rows = {m: rng.permutation(a.n_obs) if m == first else np.arange(a.n_obs) for m, a in mdata.mod.items()}
    return md.MuData({m: a[rows[m]].copy() for m, a in mdata.mod.items()})


def save(name: str) -> None:
    """The current figure as PNG of at most 256 colours: a third of the size."""
    path = IMAGES / f"{name}.png"
    plt.gcf().savefig(path, dpi=120)
    plt.close("all")
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256)
    small.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def main() -> None:
    """Draw what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pictures (default: all)")
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/scmmgan_gallery"))
    arguments = parser.parse_args()
    (first, _), *others = blocks(PAGE.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"smm": smm, "np": np}
    IMAGES.mkdir(exist_ok=True)
    for code, picture in others:
        if arguments.names and picture not in arguments.names:
            continue
        for name in re.findall(r"^(\w+) = md.read", first, re.MULTILINE):
            if name not in names and re.search(rf"\b{name}\b", code):
                names[name] = aligned(name, first, arguments.data, arguments.cache)
        exec(code, names)
        save(picture)


if __name__ == "__main__":
    with unpulled():
        main()
