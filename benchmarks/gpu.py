"""What a GPU does in training: steps per second, launches and waits per step, agreement with the CPU, 100,000 + 100,000 cells.

    python benchmarks/gpu.py                          # under 4 minutes on one GPU
    python benchmarks/gpu.py --device cpu --quick     # the same script without one

Prints one line for each measurement. Synthetic cells, no data needed.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch

import scmmgan as smm
from scmmgan.model.nets import methods, networks, training

WIDTHS = {"a": 50, "b": 28}
PAIRS = [("a", "b"), ("b", "a")]
LINKS = 27


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


def train(kind: str, batch: int, steps: int, device: torch.device, n: int = 20_000) -> tuple[float, dict[str, Any]]:
    """Seconds of a training, and its history."""
    torch.manual_seed(0)
    generators = {(a, b): networks.GENERATORS[kind](WIDTHS[a], WIDTHS[b]).to(device) for a, b in PAIRS}
    critics = {m: networks.DISCRIMINATORS[kind](width).to(device) for m, width in WIDTHS.items()}
    recipe = training.Recipe(steps, batch, methods.METHODS["scmmgan"].lr, plain=kind == "paper")
    cells = data(n, device)
    wait(device)
    start = time.perf_counter()
    history = training.fit(generators, critics, cells, recipe, random_state=0, device=device, progress_bar=False)
    wait(device)
    return time.perf_counter() - start, history


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed(kind: str, batch: int, device: torch.device, steps: int) -> None:
    """Steps per second, and the share of the time that the products alone would take."""
    train(kind, batch, 10, device)
    seconds = train(kind, batch, steps, device)[0]
    floor = multiplications(kind, batch) / rate(device)
    print(f"{kind}, batch {batch}: {steps / seconds:.0f} steps/s, {100 * floor * steps / seconds:.0f} % of it products")


def multiplications(kind: str, batch: int) -> float:
    """Floating-point operations of a step's matrix products: 2 for each weight and cell, three times with the way back."""
    of = {
        "maps": sum(count(networks.GENERATORS[kind](WIDTHS[a], WIDTHS[b])) for a, b in PAIRS),
        "critics": sum(count(networks.DISCRIMINATORS[kind](width)) for width in WIDTHS.values()),
    }
    # maps: there and back; critics: measured and mapped cells, then mapped cells without weights of their own
    return batch * 2 * (of["maps"] * 2 * 3 + of["critics"] * (2 * 3 + 2))


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.ndim == 2)


def rate(device: torch.device) -> float:
    """Operations per second of a large product in single precision."""
    n = 4_096 if device.type == "cuda" else 1_024
    a = torch.randn(n, n, device=device)
    for repeat in (2, 10):
        wait(device)
        start = time.perf_counter()
        for _ in range(repeat):
            a @ a
        wait(device)
    return 10 * 2 * n**3 / (time.perf_counter() - start)


def launches(kind: str, device: torch.device) -> None:
    """Kernels and waits of a step, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    steps = 40
    with profile(activities=kinds) as found:
        train(kind, 256, steps, device)
    calls = Counter({event.key: event.count for event in found.key_averages()})
    kernels = sum(n for key, n in calls.items() if key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    waits = sum(n for key, n in calls.items() if "Synchronize" in key)
    print(f"{kind}: {kernels / steps:.0f} launches and {waits / steps:.1f} waits per step")


def agreement(device: torch.device) -> None:
    """Losses of 100 steps beside those of the CPU: the same batches, drawn there; largest relative difference."""
    own, other = (train("default", 256, 100, torch.device(d))[1] for d in (device, "cpu"))
    worst = max(
        float(np.nanmax(np.abs(np.subtract(own[k], other[k])) / np.maximum(np.abs(other[k]), 1e-3))) for k in other
    )
    print(f"losses of 100 steps, {device} and CPU: largest relative difference {worst:.1e} (asked: 1e-3)")


def whole(n: int, device: str) -> None:
    """n + n cells with 100 links, from values to written slots."""
    mdata = smm.datasets.toy(n_cells=n, n_features=[2_000, 100])
    start = time.perf_counter()
    smm.tl.align(mdata, links="gene", features=[], device=device, progress_bar=False)
    print(f"{n:,} + {n:,} cells end to end: {time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="few steps and 2,000 cells")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("scmmgan").setLevel(logging.ERROR)
    device = torch.device(args.device)
    print("torch", torch.__version__, torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU")
    steps = 10 if args.quick else 200
    for kind in ("default", "paper"):
        for batch in (256,) if args.quick else (256, 4_096):
            speed(kind, batch, device, steps)
        launches(kind, device)
    agreement(device)
    whole(2_000 if args.quick else 100_000, args.device)


if __name__ == "__main__":
    main()
