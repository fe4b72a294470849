"""The state of a training in one file: nothing pickled, whole or not there, and only for the training that it came from."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Checkpoint:
    """One training's file in a directory. `made_of`: digests, by name, of all that decides the training."""

    # arrays, and JSON as bytes among them: one file is replaced in one step
    file, text = "training.npz", "json"

    def __init__(self, directory: str | os.PathLike[str], made_of: Mapping[str, str]) -> None:
        self.path = Path(directory, self.file)
        self.made_of = dict(made_of)

    def read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """What `write` was given last, None where nothing was; ValueError on another training's file, or a damaged one."""
        if not self.path.exists():
            return None
        way_out = "Name another `checkpoint_dir`, or delete it."
        try:
            # opened here: numpy leaves a damaged file open
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            found = json.loads(arrays.pop(self.text).tobytes().decode("utf-8"))
            made_of, state = dict(found["made_of"]), dict(found["state"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"The checkpoint {str(self.path)!r} cannot be read ({error}). {way_out}") from error
        if other := [name for name, of in self.made_of.items() if made_of.get(name) != of]:
            raise ValueError(
                f"The checkpoint {str(self.path)!r} is of a training with other {', '.join(other)}. {way_out}"
            )
        return state, arrays

    def write(self, state: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Replace the file: written beside it, and renamed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"made_of": self.made_of, "state": dict(state)}).encode("utf-8")
        beside = self.path.with_name(f".{self.file}.{os.getpid()}")
        try:
            with open(beside, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays, **{self.text: np.frombuffer(text, dtype=np.uint8)})
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)


def digest(values: Iterable[object]) -> str:
    """Of tensors to the last bit, and of anything else as it is written."""
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous()
            found.update(f"{array.dtype}{tuple(array.shape)}".encode())
            found.update(array.numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def arrays_of(players: Iterable[Any], **lists: list[Tensor]) -> dict[str, np.ndarray]:
    """The state of players (networks with moments, numbers of steps and noise), and lists of tensors."""
    found: dict[str, Tensor] = {}
    for i, player in enumerate(players):
        found |= {f"{i}:{j}": tensor for j, tensor in enumerate(_tensors(player))}
        found |= {f"{i}:noise:{j}": rng.get_state() for j, rng in enumerate(player.noise)}
        found[f"{i}:steps"] = torch.tensor(player.steps)
    found |= {f"{name}:{j}": tensor for name, of in lists.items() for j, tensor in enumerate(of)}
    # copies: the next step changes the tensors
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in found.items()}


@torch.no_grad()
def restore(arrays: Mapping[str, np.ndarray], players: Iterable[Any], **lists: list[Tensor]) -> None:
    """Put back, in place, what `arrays_of` gave."""
    for i, player in enumerate(players):
        for j, tensor in enumerate(_tensors(player)):
            tensor.copy_(torch.from_numpy(arrays[f"{i}:{j}"]))
        for j, rng in enumerate(player.noise):
            rng.set_state(torch.from_numpy(arrays[f"{i}:noise:{j}"]))
        player.steps = int(arrays[f"{i}:steps"])
    for name, of in lists.items():
        for j, tensor in enumerate(of):
            tensor.copy_(torch.from_numpy(arrays[f"{name}:{j}"]))


def _tensors(player: Any) -> list[Tensor]:
    return [*player.parameters, *player.buffers, *player.mean, *player.square, *player.counts]
