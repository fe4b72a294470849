"""What a GPU does in training: steps per second, launches and waits per step, agreement with the CPU, 100,000 + 100,000 cells.

    python benchmarks/gpu.py                          # some 4 minutes on one GPU, and 100,000 cells
    python benchmarks/gpu.py --device cpu --quick     # the same script without one
    python benchmarks/gpu.py --data DIR               # and pbmc5k_cite, on the CPU and on the GPU

Prints one line for each measurement. Synthetic cells, no data needed.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import scmmgan as smm
from scmmgan.model.defaults import COSTLY_EVERY
from scmmgan.model.nets import methods, networks, training
from scmmgan.model.nets.pinned import products

WIDTHS = {"a": 50, "b": 28}
PAIRS = [("a", "b"), ("b", "a")]
LINKS = 27
# of one GPU: networks, batch, and how their steps are taken; in lower precision they are recorded, too
WAYS = [
    ("default", 128, ("step by step", "recorded", "tf32", "bf16")),
    ("default", 256, ("recorded",)),
    ("default", 4_096, ("step by step", "recorded", "tf32", "bf16")),
    ("paper", 256, ("step by step", "recorded", "tf32", "bf16")),
    ("paper", 4_096, ("step by step",)),
]


def data(n: int, device: torch.device) -> training.TrainingData:
    """Random cells with anchors, links and weights of the default method; nothing is learnt from them."""
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.as_tensor(rng.normal(size=shape).astype(np.float32), device=device)

    x = {m: tensor(n, width) for m, width in WIDTHS.items()}
    links = {
        (a, b): training.LinkLoadings(
            tensor(WIDTHS[a], LINKS), tensor(WIDTHS[b], LINKS), *(torch.ones(LINKS, device=device) for _ in range(2))
        )
        for a, b in PAIRS
    }
    return training.TrainingData(
        x=x,
        anchors={(a, b): x[b].clone() for a, b in PAIRS},
        anchor_weight={pair: torch.ones(n, device=device) for pair in PAIRS},
        links=links,
        rows={m: torch.arange(500, n, device=device) for m in x},
        held_out={m: torch.arange(250, device=device) for m in x},
        weights=methods.METHODS["scmmgan"].weights,
    )


def train(
    kind: str, batch: int, steps: int, device: torch.device, *, geometry: str = "heat", precision: str = "float32"
) -> tuple[float, dict[str, Any]]:
    """Seconds of a training, and its history."""
    torch.manual_seed(0)
    generators = {(a, b): networks.GENERATORS[kind](WIDTHS[a], WIDTHS[b]).to(device) for a, b in PAIRS}
    critics = {m: networks.DISCRIMINATORS[kind](width).to(device) for m, width in WIDTHS.items()}
    # the decay of the rate is part of the recipe: equal numbers of steps are compared
    rules = (methods.METHODS["scmmgan"].lr, geometry, False, (0.5, 0.99), kind == "paper", precision)
    cells = data(20_000, device)
    wait(device)
    start = time.perf_counter()
    history = training.fit(
        generators, critics, cells, training.Recipe(steps, batch, *rules), random_state=0, device=device, progress_bar=False
    )  # fmt: skip
    wait(device)
    return time.perf_counter() - start, history


def step_by_step() -> AbstractContextManager[Any]:
    """Trainings whose steps are not recorded."""
    return patch("scmmgan.model.nets.graphs.STEPS_BEFORE_GRAPH", 10**9)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed(
    kind: str, batch: int, device: torch.device, steps: int, how: AbstractContextManager[Any], name: str, **rules: str
) -> None:
    """Steps per second, what a step takes beside what starts a training, and the floor of its products and bytes."""
    with how:
        train(kind, batch, min(20, steps), device, **rules)
        # the first 16 are those before recording, and the recording
        start = 16 if steps > 32 else steps // 4
        few, many = (train(kind, batch, n, device, **rules)[0] for n in (start, steps))
    seconds = (many - few) / (steps - start)
    products_, bytes_ = multiplications(kind, batch) / rate(device), traffic(kind) / bandwidth(device)
    floor = max(products_, bytes_)
    print(
        f"{kind}, batch {batch}, {name}: {steps / many:.0f} steps/s, {1e3 * seconds:.2f} ms a step once it runs; floor: products "
        f"{1e3 * products_:.3f} ms, bytes {1e3 * bytes_:.4f} ms: {100 * floor / seconds:.1f} %",
        flush=True,
    )  # fmt: skip


def multiplications(kind: str, batch: int) -> float:
    """Floating-point operations of a step's matrix products: 2 for each weight and cell, three times with the way back."""
    of = {
        "maps": sum(count(networks.GENERATORS[kind](WIDTHS[a], WIDTHS[b])) for a, b in PAIRS),
        "critics": sum(count(networks.DISCRIMINATORS[kind](width)) for width in WIDTHS.values()),
    }
    # maps: there and back; critics: measured and mapped cells, then mapped cells without weights of their own
    networks_ = batch * 2 * (of["maps"] * 2 * 3 + of["critics"] * (2 * 3 + 2))
    # three squarings of a heat operator, of mapped cells with the way back, in every fourth step
    return networks_ + len(PAIRS) * 2 * batch**3 * (3 + 3 * 3) / COSTLY_EVERY


def traffic(kind: str) -> float:
    """Bytes of a step that no cache keeps from one to the next: weights, slopes, moments and averages, read and written."""
    nets = [networks.GENERATORS[kind](WIDTHS[a], WIDTHS[b]) for a, b in PAIRS]
    nets += [networks.DISCRIMINATORS[kind](width) for width in WIDTHS.values()]
    return 4 * 10 * sum(p.numel() for net in nets for p in net.parameters())


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.ndim == 2)


def timed(call: Any, device: torch.device) -> float:
    """Seconds of ten calls, after two."""
    for repeat in (2, 10):
        wait(device)
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        wait(device)
    return time.perf_counter() - start


def rate(device: torch.device, precision: str = "float32") -> float:
    """Operations per second of a large product."""
    n = 4_096 if device.type == "cuda" else 1_024
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    with products(precision):
        return 10 * 2 * n**3 / timed(lambda: a @ a, device)


def bandwidth(device: torch.device) -> float:
    """Bytes per second that are read and written in a large copy."""
    a = torch.randn(2**27 if device.type == "cuda" else 2**24, device=device)
    b = torch.empty_like(a)
    return 10 * 2 * 4 * a.numel() / timed(lambda: b.copy_(a), device)


def launches(kind: str, device: torch.device, geometry: str = "heat") -> None:
    """Kernels and waits of a step, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    few, steps = 24, 74
    for how, name in ((step_by_step(), "step by step"), (nullcontext(), "recorded")):
        found = []
        with how:
            for n in (few, steps):
                with profile(activities=kinds) as seen:
                    train(kind, 128 if kind == "default" else 256, n, device, geometry=geometry)
                found.append(Counter({event.key: event.count for event in seen.key_averages()}))
        calls = {key: (n - found[0][key]) / (steps - few) for key, n in found[1].items()}
        kernels, graphs = (
            sum(n for key, n in calls.items() if key.startswith(of))
            for of in (("cudaLaunchKernel", "cuLaunchKernel"), "cudaGraphLaunch")
        )
        waits = sum(n for key, n in calls.items() if "Synchronize" in key)
        print(
            f"{kind}, {geometry}, {name}: {kernels:.0f} launches of kernels, {graphs:.2f} of graphs, {waits:.2f} waits per step"
        )


def agreement(device: torch.device, steps: int) -> None:
    """Losses beside those of the CPU: the same batches, drawn there; largest relative difference."""
    for geometry in ("heat", "eigvec"):
        own, other = (train("default", 128, steps, torch.device(d), geometry=geometry)[1] for d in (device, "cpu"))
        off = {
            k: float(np.nanmax(np.abs(np.subtract(own[k], other[k])) / np.maximum(np.abs(other[k]), 1e-3)))
            for k in other
        }
        worst = max(off, key=lambda k: off[k])
        print(
            f"losses of {steps} steps, {geometry}, {device} and CPU: largest relative difference {off[worst]:.1e} ({worst}; asked: 1e-3)"
        )


def stages(record: Any) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in record["params"]["seconds"].items())


def whole(n: int, device: str) -> None:
    """n + n cells with 100 links, from values to written slots."""
    mdata = smm.datasets.toy(n_cells=n, n_features=[2_000, 100])
    start = time.perf_counter()
    smm.tl.align(mdata, links="gene", features=[], device=device, progress_bar=False)
    seconds = time.perf_counter() - start
    print(f"{n:,} + {n:,} cells end to end, {device}: {seconds:.1f} s ({stages(mdata.uns['scmmgan'])})", flush=True)


def real(folder: Path, device: str, seeds: int) -> None:
    """pbmc5k_cite, some seeds: FOSCTTM and seconds."""
    import mudata

    mudata.set_options(pull_on_update=False)
    seen = mudata.read_h5mu(folder / "pbmc5k_cite.h5mu")
    parts = {m: seen[m] for m in seen.mod}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        orders = {m: rng.permutation(of.n_obs) for m, of in parts.items()}
        mixed = {}
        for m, of in parts.items():
            mixed[m] = of[orders[m]].copy()
            mixed[m].obs_names = [f"{m}_{i}" for i in range(of.n_obs)]
        start = time.perf_counter()
        mdata = smm.tl.align(mixed, random_state=seed, device=device, progress_bar=False)
        seconds = time.perf_counter() - start
        a, b = mixed
        z = [mdata[m].obsm["X_scmmgan"][orders[m].argsort()] for m in (a, b)]
        score = smm.metrics.foscttm(*z)
        print(f"pbmc5k_cite, {device}, seed {seed}: FOSCTTM {np.mean(score):.4f}, {seconds:.1f} s ({stages(mdata.uns['scmmgan'])})", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="few steps and 2,000 cells")
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("scmmgan").setLevel(logging.ERROR)
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("no GPU here; --device cpu runs what can be run without")
    print("torch", torch.__version__, torch.cuda.get_device_name(device) if on_gpu else "CPU")
    print(
        f"products of {4_096 if on_gpu else 1_024}: {rate(device) / 1e12:.2f} TFLOP/s, copies {bandwidth(device) / 1e9:.0f} GB/s"
    )
    print(
        f"bf16: {rate(device, 'bf16') / 1e12:.2f} TFLOP/s"
        + (f", tf32: {rate(device, 'tf32') / 1e12:.2f}" if on_gpu else "")
    )
    for kind, batch, ways in (
        WAYS if on_gpu else [(k, b, ("as is", "bf16")) for k, b in (("default", 128), ("paper", 256))]
    ):
        # distances of the published discriminator take seconds in large batches
        steps = 20 if args.quick else 4 if (kind, batch) == ("paper", 4_096) else 100 if batch < 1_000 else 60
        for way in ways:
            rules = {"precision": way} if way in ("tf32", "bf16") else {}
            speed(kind, batch, device, steps, step_by_step() if way == "step by step" else nullcontext(), way, **rules)
    if on_gpu:
        launches("default", device)
        launches("paper", device)
        speed("default", 128, torch.device("cpu"), 100, nullcontext(), "CPU")
    if device.type != "cpu":
        agreement(device, 20 if args.quick else 100)
    for of in dict.fromkeys((args.device, "cpu")):
        if args.data:
            real(args.data, of, 1 if of == "cpu" else 3)
    whole(2_000 if args.quick else 100_000, args.device)


if __name__ == "__main__":
    main()
