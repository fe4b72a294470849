"""CPU seconds of one alignment in a fresh process, imports included, on one thread; of several checkouts in turn.

    python benchmarks/speed.py pbmc5k_cite --data DIR                                # this checkout
    python benchmarks/speed.py pbmc5k_cite --data DIR --src ../other/src src --repeat 2    # A B A B

Reads the file and hides the truth first; what is timed starts with `import scmmgan`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from common import CASES, arguments, hide, markdown, read

CODE = """
import json, logging, resource, sys, time, warnings
warnings.simplefilter("ignore")
import mudata
mdata = mudata.read(sys.argv[1])
source, target, links, settings = json.loads(sys.argv[2])
start, wall = time.process_time(), time.perf_counter()
import scmmgan as smm
logging.getLogger("scmmgan").setLevel(logging.ERROR)
smm.tl.align(mdata, source, target, links=links, progress_bar=False, **settings)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, "gib": peak}))
"""


def run(file: Path, case: Any, settings: dict[str, Any], src: Path) -> dict[str, float]:
    """One alignment in a process of its own, with the package from `src`."""
    env = os.environ | {"PYTHONPATH": str(src.resolve()), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(file), json.dumps([*case, settings])]
    return json.loads(
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )


def main() -> None:
    parser = arguments(__doc__, ["pbmc5k_cite"], seeds=False)
    own = Path(__file__).resolve().parent.parent / "src"
    parser.add_argument("--src", type=Path, nargs="+", default=[own], metavar="FOLDER", help="checkouts to compare")
    parser.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
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
