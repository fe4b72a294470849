"""Several processes that train one model: each takes its share of every batch, and gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from scmmgan.model.defaults import JOIN_TIMEOUT, MIN_CELLS, STEP_TIMEOUT


@dataclass(frozen=True)
class Processes:
    """One process among those that train together: its number, and how many there are; alone by default.

    `steps` and `waits`: groups of torch; the first gives up soon, the second waits for a process that is still coupling.
    """

    rank: int = 0
    size: int = 1
    steps: Any = None
    waits: Any = None

    def device(self, name: str) -> torch.device:
        """The device of this process: of several GPUs, the one of its number on this machine."""
        own = self.size > 1 and name == "cuda"
        return torch.device(f"cuda:{_number('LOCAL_RANK') or 0}" if own else name)

    def share(self, batch_size: int, cells: int, modality: str) -> int:
        """Cells that each process takes of a batch, all alike; ValueError where they would be too few."""
        found = min(batch_size, cells // self.size)
        if self.size > 1 and found < MIN_CELLS:
            raise ValueError(
                f"`devices={self.size}` leaves {found} of the {cells} cells of {modality!r} that train to each process, and "
                f"{MIN_CELLS} are needed. Use fewer processes."
            )
        return found

    def mean(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its mean over all processes."""
        self._together(tensors, lambda flat: distributed.all_reduce(flat.div_(self.size), group=self.steps))

    def first(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by that of the first process."""
        self._together(tensors, lambda flat: distributed.broadcast(flat, src=0, group=self.steps))

    def number(self, value: float, device: torch.device) -> float:
        """The number that the first process found."""
        if self.size == 1:
            return value
        self.first([found := torch.tensor(value, device=device)])
        return float(found)

    def check_alike(self, made_of: Mapping[str, str], device: torch.device) -> None:
        """ValueError unless what the training is made of (digests by name) is the same in all processes, to the last bit."""
        if self.size == 1:
            return
        own = torch.tensor([list(of.encode()) for of in made_of.values()], dtype=torch.uint8, device=device)
        of_all = [torch.empty_like(own) for _ in range(self.size)]
        _watched(lambda: distributed.all_gather(of_all, own, group=self.waits))
        equal = torch.stack(of_all).eq(of_all[0]).all(2).all(0).tolist()
        if other := [name for name, same in zip(made_of, equal) if not same]:
            raise ValueError(
                f"The {self.size} processes differ in {', '.join(other)}. All must call `tl.align` on the same data with the "
                "same arguments, on the same kind of machine."
            )

    @torch.no_grad()
    def _together(self, tensors: list[Tensor], exchange: Callable[[Tensor], Any]) -> None:
        """One exchange for all tensors, in place."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([of.reshape(-1) for of in tensors])
        _watched(lambda: exchange(flat))
        parts = flat.split([of.numel() for of in tensors])
        torch._foreach_copy_(tensors, [part.view_as(of) for part, of in zip(parts, tensors)])


ALONE = Processes()


def _watched(exchange: Callable[[], Any]) -> None:
    try:
        exchange()
    except RuntimeError as error:
        raise RuntimeError(
            "Another process of this training has ended, or has not answered for "
            f"{STEP_TIMEOUT} seconds. Nothing was written. Start all of them again; with `checkpoint_dir` they go on."
        ) from error


def named(device: str | torch.device) -> str:
    """The name of a device that is there, or an error that lists those that are."""
    if not isinstance(device, str | torch.device):
        raise TypeError(
            f"`device` must be 'auto', 'cpu', 'cuda' or 'mps' (one GPU: 'cuda:1'), or a torch.device, got {device!r}."
        )
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    here = [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *["mps"][: torch.backends.mps.is_available()],
    ]
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"Device {device!r} is not available. Here: {here}.") from None
    first = f"{found.type}:{found.index or 0}" if found.type == "cuda" else found.type
    if first not in here or (found.type != "cuda" and found.index):
        raise ValueError(f"Device {str(device)!r} is not available. Here: {here}.")
    return str(found) if found.type == "cuda" else found.type


def check(devices: int, device: str) -> None:
    """ValueError unless torchrun started as many processes, each with a device of its own."""
    if devices == 1:
        return
    if not distributed.is_available():
        raise ValueError(f"`devices={devices}` needs torch.distributed, which this PyTorch lacks. Leave `devices` out.")
    found = distributed.get_world_size() if distributed.is_initialized() else _number("WORLD_SIZE")
    how = f"`torchrun --nproc-per-node={devices} script.py`"
    if found is None or found == 1:
        raise ValueError(
            f"`devices={devices}` needs as many processes, and this one is alone, as in a notebook. Start a script with {how}, "
            "or leave `devices` out."
        )
    if found != devices:
        raise ValueError(
            f"`devices={devices}`, but {found} processes were started. Give `devices={found}`, or start them with {how}."
        )
    if device not in ("cpu", "cuda"):
        raise ValueError(
            f"`devices={devices}` needs `device='cuda'` (every process takes one of its own) or 'cpu', got {device!r}."
        )
    here, gpus = _number("LOCAL_WORLD_SIZE") or devices, torch.cuda.device_count()
    if device == "cuda" and here > gpus:
        raise ValueError(f"{here} processes on this machine, and {gpus} GPUs. Start fewer, or give `device='cpu'`.")


@contextmanager
def joined(devices: int, device: str) -> Iterator[Processes]:
    """The process among `devices` that it runs in, which meet here; alone where that is 1."""
    if devices == 1:
        yield Processes()
        return
    backend = "nccl" if device == "cuda" else "gloo"
    if not distributed.is_initialized():
        # where and who: the environment that torchrun makes. Until the process ends: no address can be joined twice
        try:
            distributed.init_process_group("gloo", timeout=timedelta(seconds=JOIN_TIMEOUT))
        except RuntimeError as error:
            raise RuntimeError(
                f"The {devices} processes did not meet in `tl.align`, where each waits {JOIN_TIMEOUT} seconds for the others "
                f"({error}). Nothing was written. Start all of them again."
            ) from error
    groups = {
        "steps": distributed.new_group(backend=backend, timeout=timedelta(seconds=STEP_TIMEOUT)),
        "waits": distributed.new_group(backend=backend),
    }
    try:
        yield Processes(distributed.get_rank(), devices, **groups)
    finally:
        for group in groups.values():
            distributed.destroy_process_group(group)


def _number(name: str) -> int | None:
    """A whole number from the environment."""
    found = os.environ.get(name, "")
    return int(found) if found.isdigit() else None
