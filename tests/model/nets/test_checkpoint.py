"""The state of a training in a file: what goes on is what was not interrupted, and only that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scmmgan.model.defaults import LOSS_WEIGHTS
from scmmgan.model.nets import training
from scmmgan.model.nets.checkpoint import Checkpoint, digest
from scmmgan.model.nets.networks import Discriminator, Generator, NoisyGenerator, PaperDiscriminator, PaperGenerator
from scmmgan.model.nets.training import Recipe, TrainingData

PAIRS = [("a", "b"), ("b", "a")]


def data(seed: int = 0, **weights: float) -> TrainingData:
    rng = torch.Generator().manual_seed(seed)
    x = {m: torch.randn((64, p), generator=rng) for m, p in (("a", 3), ("b", 4))}
    anchors = {(s, t): torch.randn((64, x[t].shape[1]), generator=rng) for s, t in PAIRS}
    ones = {pair: torch.ones(64) for pair in PAIRS}
    rows = {m: torch.arange(50) for m in x}
    held_out = {m: torch.arange(50, 64) for m in x}
    return TrainingData(x, anchors, ones, {}, rows, held_out, {**LOSS_WEIGHTS, **weights})


def networks(kind: str = "default") -> tuple[dict, dict]:
    generator, critic = (PaperGenerator, PaperDiscriminator) if kind == "paper" else (Generator, Discriminator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        widths = {"a": 3, "b": 4}
        found: dict = {("a", "b"): generator(3, 4), ("b", "a"): NoisyGenerator(generator(4 + 2, 3), 2)}
        found["b", "a"].rng.manual_seed(5)
        return found, {m: critic(p) for m, p in widths.items()}


def train(where: Path | None, kind: str = "default", steps: int = 25, of: TrainingData | None = None, **how: Any):
    nets = networks(kind)
    recipe = Recipe(steps, 32, **{"lr": 1e-3, "plain": kind == "paper", **how})
    history = training.fit(
        *nets,
        of or data(),
        recipe,
        random_state=1,
        device=torch.device("cpu"),
        progress_bar=False,
        checkpoint_dir=where,
    )
    return [value.clone() for net in nets[0].values() for value in net.state_dict().values()], history


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    real = training._step

    def broken(step: int, *rest: Any) -> dict[str, float]:
        if step == at:
            raise error
        return real(step, *rest)

    monkeypatch.setattr(training, "_step", broken)


@pytest.mark.parametrize("kind", ["default", "paper"])
def test_a_training_goes_on_to_the_same_bits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Interrupted twice: weights, running means, history."""
    monkeypatch.setattr(training, "CHECK_EVERY", 4)
    monkeypatch.setattr(training, "RECORD_EVERY", 3)
    whole, history = train(None, kind, steps=10)
    for at, error in ((6, KeyboardInterrupt), (9, RuntimeError)):
        with monkeypatch.context() as patch:
            interrupt(patch, at, error)
            with pytest.raises(error):
                train(tmp_path / "sub", kind, steps=10)
        assert os.listdir(tmp_path / "sub") == ["training.npz"]
    steps: list[int] = []
    real = training._step
    monkeypatch.setattr(training, "_step", lambda step, *rest: steps.append(step) or real(step, *rest))
    again, their_history = train(tmp_path / "sub", kind, steps=10)
    assert steps == [8, 9]
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    np.testing.assert_equal(history, their_history)
    # what is done is not done again
    once_more, _ = train(tmp_path / "sub", kind, steps=10)
    assert len(steps) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole, once_more, strict=True))


def test_an_interruption_before_the_first_look_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "CHECK_EVERY", 10)
    with monkeypatch.context() as patch:
        interrupt(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, steps=12)
    assert os.listdir(tmp_path) == []
    whole, _ = train(None, steps=12)
    again, _ = train(tmp_path, steps=12)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "cells": ({"of": data(1)}, "other cells, couplings"),
    "weights": ({"of": data(cycle=2.0)}, "other `weights`"),
    "steps": ({"steps": 100}, "other `max_steps`"),
    "rate": ({"lr": 2e-3}, "other `lr`"),
    "networks": ({"kind": "paper"}, "other networks, `method`"),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("checkpoint")
    train(where, steps=50)
    return where


@pytest.mark.parametrize("case", OTHERS)
def test_another_training_is_refused(case: str, stored: Path):
    changes, message = OTHERS[case]
    before = (stored / "training.npz").read_bytes()
    with pytest.raises(ValueError, match=f"{message}. Name another `checkpoint_dir`, or delete it"):
        train(stored, **{"steps": 50, **changes})
    assert (stored / "training.npz").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_damaged_file_is_refused(content: bytes | None, stored: Path, tmp_path: Path):
    whole = (stored / "training.npz").read_bytes()
    (tmp_path / "training.npz").write_bytes(whole[:-200] if content is None else content)
    with pytest.raises(ValueError, match=r"checkpoint .* cannot be read"):
        train(tmp_path, steps=50)


def test_nothing_is_pickled_and_the_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = Checkpoint(tmp_path, {"cells": "1"})
    assert checkpoint.read() is None
    checkpoint.write({"step": 3, "best_score": 0.1 + 0.2}, {"x": np.arange(3.0)})
    with np.load(tmp_path / "training.npz", allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "biuf" for name in file)
    monkeypatch.setattr("scmmgan.model.nets.checkpoint.np.savez", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.write({"step": 4}, {})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["training.npz"]
    state, arrays = checkpoint.read()
    assert state == {"step": 3, "best_score": 0.1 + 0.2}
    np.testing.assert_array_equal(arrays["x"], np.arange(3.0))


def test_digests_see_every_bit():
    x = torch.arange(6.0)
    assert digest([x]) == digest([x.clone()]) != digest([x.nextafter(torch.tensor(9.0))])
    assert (
        len({digest(v) for v in ([x], [x.reshape(2, 3)], [x.double()], [x, "a"], ["a", x], [nn.Linear(1, 1).bias])})
        == 6
    )
