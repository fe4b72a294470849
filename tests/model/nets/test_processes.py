"""Several processes that train one model: shares of a batch, averages, the same end; what cannot be is refused."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from helpers import interrupted, needs_gpu
from scmmgan.model.defaults import LOSS_WEIGHTS, STEP_TIMEOUT
from scmmgan.model.nets import processes, training
from scmmgan.model.nets.networks import Discriminator, Generator, NoisyGenerator, PaperDiscriminator, PaperGenerator
from scmmgan.model.nets.pinned import pinned
from scmmgan.model.nets.processes import Processes
from scmmgan.model.nets.training import Recipe, TrainingData

PAIRS = [("a", "b"), ("b", "a")]
CPU = torch.device("cpu")


@dataclass
class Table:
    """Where threads that stand for processes exchange tensors."""

    size: int
    barrier: threading.Barrier = field(init=False)
    laid: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=60)

    def exchange(self, rank: int, own: torch.Tensor) -> list[torch.Tensor]:
        self.laid[rank] = own.clone()
        self.barrier.wait()
        found = [self.laid[i] for i in range(self.size)]
        self.barrier.wait()
        return found


@dataclass(frozen=True)
class Thread(Processes):
    """One of them."""

    table: Any = None

    def mean(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.detach().copy_(torch.stack(self.table.exchange(self.rank, tensor.detach())).mean(0))

    def first(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(self.table.exchange(self.rank, tensor)[0])

    def check_alike(self, made_of: Any, device: torch.device) -> None:
        assert len({str(sorted(of.items())) for of in self.table.exchange(self.rank, _Text(made_of))}) == 1


class _Text(dict):
    def clone(self) -> _Text:
        return self


def data() -> TrainingData:
    rng = torch.Generator().manual_seed(0)
    x = {m: torch.randn((100, p), generator=rng) for m, p in (("a", 3), ("b", 4))}
    anchors = {(s, t): torch.randn((100, x[t].shape[1]), generator=rng) for s, t in PAIRS}
    ones = {pair: torch.ones(100) for pair in PAIRS}
    rows = {m: torch.arange(80) for m in x}
    held_out = {m: torch.arange(80, 100) for m in x}
    # what compares cells with each other is of a share, not of the whole batch
    weights = {**LOSS_WEIGHTS, "geometry": 0.0, "links": 0.0}
    return TrainingData(x, anchors, ones, {}, rows, held_out, weights)


def networks(kind: str) -> tuple[dict, dict]:
    generator, critic = (PaperGenerator, PaperDiscriminator) if kind == "paper" else (Generator, Discriminator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        found: dict = {("a", "b"): generator(3, 4), ("b", "a"): NoisyGenerator(generator(4 + 2, 3), 2)}
        found["b", "a"].rng.manual_seed(5)
        return found, {m: critic(p) for m, p in {"a": 3, "b": 4}.items()}


def train(
    size: int, batch_size: int, kind: str = "default", where: Path | None = None, steps: int = 10
) -> list[tuple[dict, dict]]:
    """State of the generators and history, of every process."""
    nets, table = networks(kind), Table(size)
    recipe = Recipe(steps, batch_size, 1e-3, plain=kind == "paper")

    def run(rank: int) -> tuple[dict, dict]:
        generators, critics = copy.deepcopy(nets)
        for of in generators.values():
            if isinstance(of, NoisyGenerator):
                of.rng = torch.Generator().manual_seed(5)
        group = Thread(rank, size, table=table) if size > 1 else processes.ALONE
        history = training.fit(
            generators, critics, data(), recipe, random_state=1, device=CPU, progress_bar=False, processes=group,
            checkpoint_dir=where,
        )  # fmt: skip
        return {(*p, k): v.clone() for p, net in generators.items() for k, v in net.state_dict().items()}, history

    # threads restore each other's global state: outside it is as it was
    with pinned(), ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def check_same(found: list[tuple[dict, dict]]) -> None:
    for state, history in found[1:]:
        assert history == found[0][1]
        for name, value in state.items():
            assert torch.equal(value, found[0][0][name]), name


def test_two_train_as_one_does_with_twice_the_batch(monkeypatch: pytest.MonkeyPatch):
    """Terms that are means over cells: the same but for rounding. Batches, noise, gradients, history, best weights."""
    monkeypatch.setattr(training, "CHECK_EVERY", 5)
    # measured cells of the penalty: half of them in each share
    monkeypatch.setattr(training, "PENALTY_WEIGHT", 0.0)
    two, (one,) = train(2, 32), train(1, 64)
    check_same(two)
    start = {(*p, k): v for p, net in networks("default")[0].items() for k, v in net.state_dict().items()}
    moved = max(float((one[0][name] - value).abs().max()) for name, value in start.items())
    for name, value in one[0].items():
        assert float((two[0][0][name] - value).abs().max()) < 1e-3 * moved, name
    for name, values in one[1].items():
        np.testing.assert_allclose(two[0][1][name], values, rtol=1e-3, err_msg=name)
    other = train(2, 40)[0][0]
    assert max(float((other[name] - value).abs().max()) for name, value in one[0].items()) > 1e-2 * moved


def test_running_statistics_are_averaged(monkeypatch: pytest.MonkeyPatch):
    name = ("a", "b", "body.1.running_mean")
    two, (one,) = train(2, 32, "paper", steps=2), train(1, 64, "paper", steps=2)
    check_same(two)
    torch.testing.assert_close(two[0][0][name], one[0][name], atol=1e-3, rtol=1e-2)


def test_they_go_on_from_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "CHECK_EVERY", 5)
    whole = train(2, 32)
    with interrupted(7):
        train(2, 32, where=tmp_path)
    again = train(2, 32, where=tmp_path)
    check_same([*whole, *again])
    with pytest.raises(ValueError, match="of a training with other `devices`"):
        train(1, 32, where=tmp_path)


def test_shares():
    assert processes.ALONE.share(128, 40, "rna") == 40
    assert Processes(0, 2).share(128, 500, "rna") == 128
    assert Processes(1, 2).share(128, 101, "rna") == 50
    with pytest.raises(ValueError, match="leaves 31 of the 63 cells of 'rna' that train to each process, and 32"):
        Processes(0, 2).share(128, 63, "rna")


def test_devices():
    assert processes.ALONE.device("cuda") == torch.device("cuda")
    assert Processes(3, 4).device("cpu") == CPU


def test_each_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Processes(3, 4).device("cuda") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("started", "devices", "device", "said"),
    [
        ({}, 2, "cpu", "this one is alone, as in a notebook. Start a script with `torchrun --nproc-per-node=2"),
        ({"WORLD_SIZE": "3"}, 2, "cpu", "3 processes were started. Give `devices=3`"),
        ({"WORLD_SIZE": "2"}, 2, "mps", "needs `device='cuda'`"),
        ({"WORLD_SIZE": "2"}, 2, "cuda:1", r"every process takes one of its own\) or 'cpu', got 'cuda:1'"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 4, "cuda", "2 processes on this machine, and 1 GPUs"),
    ],
)
def test_what_cannot_be_is_said(started: dict, devices: int, device: str, said: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    processes.check(1, device)
    with pytest.raises(ValueError, match=said):
        processes.check(devices, device)


def test_other_data_in_one_process_is_said(monkeypatch: pytest.MonkeyPatch):
    def gathered(of_all: list[torch.Tensor], own: torch.Tensor, group: Any) -> None:
        for of in of_all:
            of.copy_(own)
        of_all[1][0, 0] += 1

    monkeypatch.setattr(distributed, "all_gather", gathered)
    with pytest.raises(ValueError, match=r"2 processes differ in cells. All must call `tl.align` on the same data"):
        Processes(0, 2).check_alike({"cells": "0a", "networks": "0b"}, CPU)


# --- real processes ----------------------------------------------------------------------------------------------

SETTING = """
import os, signal, sys, time
import numpy as np, scmmgan as smm
from scmmgan.model.nets import training
rng = np.random.default_rng(0)
mdata = smm.datasets.toy(n_cells=120, n_features=[30, 20])
mdata.mod["protein"] = mdata["protein"][rng.permutation(120)].copy()
"""
TRAIN = """
for key, seed in (("first", 0), ("second", 1)):
    smm.tl.align(mdata, links="gene", max_steps=60, batch_size=32, devices=2, random_state=seed, key_added=key)
slots = {f"{key}_{m}": mdata[m].obsm[f"X_{key}"] for key in ("first", "second") for m in mdata.mod}
np.savez(sys.argv[1] + os.environ["RANK"], **slots)
"""
DIE = """
real = training._step
def step(i, *rest):
    if i == 3 and os.environ["RANK"] == "1":
        print(time.time(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(i, *rest)
training._step = step
try:
    smm.tl.align(mdata, links="gene", max_steps=60, batch_size=32, devices=2)
except RuntimeError as error:
    assert "scmmgan" not in mdata.uns
    print(time.time(), error)
"""


@pytest.mark.slow
def test_two_real_processes_are_within_noise_of_one(tmp_path: Path):
    """Slow: torchrun and two processes. Noise is what another `random_state` changes; all differ less than half of it."""
    import scmmgan as smm

    (tmp_path / "train.py").write_text(SETTING + TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*command, str(tmp_path / "train.py"), str(tmp_path / "found")], check=True, capture_output=True)
    ranks = [np.load(tmp_path / f"found{rank}.npz") for rank in (0, 1)]
    namespace: dict[str, Any] = {}
    exec(SETTING, namespace)
    mdata = namespace["mdata"]
    for key, seed in (("first", 0), ("second", 1)):
        smm.tl.align(
            mdata, links="gene", max_steps=60, batch_size=64, random_state=seed, key_added=key, progress_bar=False
        )
    for m in mdata.mod:
        one = {key: mdata[m].obsm[f"X_{key}"] for key in ("first", "second")}
        noise = np.sqrt(((one["first"] - one["second"]) ** 2).mean())
        for key, x in one.items():
            two = ranks[0][f"{key}_{m}"]
            np.testing.assert_array_equal(two, ranks[1][f"{key}_{m}"])
            assert 0 < np.sqrt(((two - x) ** 2).mean()) < noise / 2, (m, key, noise)


def started_by_hand() -> dict[str, str]:
    """What torchrun tells two processes, but for their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_never_comes_is_not_waited_for(rank: int, monkeypatch: pytest.MonkeyPatch):
    for name, value in (started_by_hand() | {"RANK": str(rank)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "JOIN_TIMEOUT", 1)
    with (
        pytest.raises(
            RuntimeError,
            match=r"The 2 processes did not meet in `tl.align`, where each waits 1 seconds .*Start all of them",
        ),
        processes.joined(2, "cpu"),
    ):
        pass
    assert not distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_dead_process_is_an_error_in_the_other(how: str, tmp_path: Path):
    """Slow: two processes, one of which is killed, or hangs, while it trains; no torchrun, which would end the other."""
    assert STEP_TIMEOUT <= 30
    (tmp_path / "die.py").write_text(SETTING + DIE.replace("SIGKILL", how))
    there = os.environ | started_by_hand()
    both = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "die.py")], env=there | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said, errors = both[0].communicate(timeout=300)
        both[1].kill()
        died, _ = both[1].communicate(timeout=300)
        assert (both[0].returncode, both[1].returncode) == (0, -signal.SIGKILL), errors
        assert "Another process of this training has ended" in said
        # a process that hangs is given the time, one that has ended is not waited for
        assert float(said.split()[0]) - float(died) < (10 if how == "SIGKILL" else STEP_TIMEOUT + 10)
    finally:
        for process in both:
            process.kill()
            process.communicate()


@pytest.mark.gpu
@needs_gpu
def test_exchange_by_nccl():
    """One process that says it is one of two: every mean is half of what it has."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        group = distributed.new_group(backend="nccl")
        tensors = [torch.full((3, 2), 4.0, device="cuda"), torch.ones((), device="cuda")]
        alike = Processes(0, 2, steps=group, waits=group)
        alike.mean(tensors)
        assert [t.unique().tolist() for t in tensors] == [[2.0], [0.5]]
        alike.first(tensors)
        assert alike.number(3.5, torch.device("cuda")) == 3.5
    finally:
        distributed.destroy_process_group()
