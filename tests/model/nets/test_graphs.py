"""Recorded steps: where they are used, and on a GPU the same training as step by step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers import needs_gpu
from scmmgan.model.defaults import STEPS_BEFORE_GRAPH
from scmmgan.model.nets import networks, training
from scmmgan.model.nets.graphs import Recorded
from scmmgan.model.nets.processes import ALONE, Processes
from trainings import data, fit, state

RECIPE = training.Recipe(20, 32, 1e-3)


def player(net: torch.nn.Module) -> training._Player:
    return training._Player({("a", "b"): net}, RECIPE)


@pytest.mark.parametrize(
    ("device", "processes", "net"),
    [
        ("cpu", ALONE, networks.Generator(3, 2)),
        ("cuda", Processes(0, 2), networks.Generator(3, 2)),
        ("cuda", ALONE, networks.NoisyGenerator(networks.Generator(3, 2), 1)),
    ],
)
def test_what_the_host_takes_part_in_is_not_recorded(device: str, processes: Processes, net: torch.nn.Module):
    nothing: Any = None
    take = training._taken(nothing, RECIPE, [player(net)], torch.device(device), processes)
    assert not isinstance(take, Recorded)


class Graph:
    """A recording of which nothing comes: it fails as some of CUDA's do, when it ends."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted\nCompile with ...")


@pytest.mark.parametrize("midway", [False, True])
def test_where_nothing_can_be_recorded_steps_are_taken_one_by_one(
    midway: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The same training as without any recording, and one warning; CUDA itself is replaced here."""
    stream = SimpleNamespace(device="cpu", wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda of: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    problem, taken = data(), training._taken
    expected = fit(*problem, max_steps=20)

    def recorded(cells: Any, recipe: Any, players: list, device: torch.device, processes: Processes) -> Recorded:
        plain, tried = taken(cells, recipe, players, device, processes), []

        def take(step: int, rows: dict) -> dict:
            # while a step is recorded nothing is computed, but updates are counted
            if step == STEPS_BEFORE_GRAPH and not tried:
                tried.append(step)
                players[1].steps += 1
                if midway:
                    # between the critics' step and that of the generators
                    players[1].freeze(True)
                    raise torch.OutOfMemoryError("CUDA error: operation not permitted")
                players[0].steps += 1
                return {"loss": torch.zeros(())}
            return plain(step, rows)

        return Recorded(take, lambda step: True, players, device)

    monkeypatch.setattr(training, "_taken", recorded)
    with caplog.at_level("WARNING", logger="scmmgan"):
        found = fit(*problem, max_steps=20)
    assert [of.message for of in caplog.records] == [
        "Steps could not be recorded (CUDA error: operation not permitted): they are taken one by one, which takes longer."
    ]
    # learning rates are in single precision here; a step that were counted twice would change them by 2 %
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-4, err_msg=name)
    for name, value in state(expected[0]).items():
        np.testing.assert_allclose(state(found[0])[name], value, atol=1e-5, err_msg=name)


# --- on a GPU ----------------------------------------------------------------------------------------------------


def both_ways(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> tuple[tuple, tuple]:
    """Trained parameters and history: recorded, and step by step."""
    problem = data()
    found = [fit(*problem, device="cuda", **arguments)]
    with monkeypatch.context() as patch:
        patch.setattr("scmmgan.model.nets.graphs.STEPS_BEFORE_GRAPH", 10**9)
        found.append(fit(*problem, device="cuda", **arguments))
    return tuple((state(aligner), history) for aligner, history in found)  # type: ignore[return-value]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that a graph was launched for."""
    found: list[int] = []
    original: Callable[..., Any] = Recorded._launch

    def spy(self: Recorded, kind: Any, step: int) -> Any:
        found.append(step)
        return original(self, kind, step)

    monkeypatch.setattr(Recorded, "_launch", spy)
    return found


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"geometry": "eigvec"},
        {"geometry": None, "cycle_as_real": True},
        {"weights": {"adversarial": 0.0}},
        {"networks": "paper", "plain": True, "betas": (0.9, 0.999), "lr": 1e-4},
        {"precision": "tf32"},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_the_same_training_as_step_by_step(arguments: dict, recorded: list[int], monkeypatch: pytest.MonkeyPatch):
    steps = 60
    (own, history), (other, expected) = both_ways(monkeypatch, max_steps=steps, **arguments)
    costly = [step for step in range(steps) if step % 4 == 0]
    cheap = [step for step in range(steps) if step % 4]
    never = costly if arguments.get("geometry") == "eigvec" else costly[:STEPS_BEFORE_GRAPH]
    assert recorded == sorted({*costly, *cheap} - {*never, *cheap[:STEPS_BEFORE_GRAPH]})
    assert history.keys() == expected.keys()
    # sums on a GPU are not taken in one order; lower precision makes more of it
    near = 1e-3 if "precision" not in arguments else 0.05
    for name in history:
        np.testing.assert_allclose(history[name], expected[name], rtol=near, atol=near, err_msg=name)
    for name in own:
        if name[0].isdigit():
            assert np.abs(own[name] - other[name]).max() < 0.02, name


@pytest.mark.gpu
@needs_gpu
def test_steps_without_anything_to_do_are_not_recorded(recorded: list[int]):
    only = dict.fromkeys(("adversarial", "cycle", "anchors", "links", "identity"), 0.0)
    _, history = fit(*data(), device="cuda", max_steps=40, weights=only)
    assert recorded
    assert {step % 4 for step in recorded} == {0}
    assert history["geometry"][-1] < history["geometry"][0]


@pytest.mark.gpu
@needs_gpu
def test_recorded_steps_that_are_not_finite_change_nothing(recorded: list[int], monkeypatch: pytest.MonkeyPatch):
    trained = training.fit

    def broken(nets: Any, critics: Any, cells: training.TrainingData, *args: Any, **kwargs: Any) -> Any:
        cells.anchors["a", "b"][cells.rows["a"][7]] = torch.nan
        return trained(nets, critics, cells, *args, **kwargs)

    monkeypatch.setattr(training, "fit", broken)
    taken: list[list[np.ndarray]] = []
    original = training.Recorded.__call__

    def spy(self: Recorded, step: int, at: dict) -> Any:
        terms = original(self, step, at)
        bad = not np.isfinite(float(terms["anchors"]))
        now = [p.detach().cpu().numpy() for p in self.players[0].parameters]
        if taken and step in recorded:
            changed = any(not np.array_equal(a, b) for a, b in zip(taken[-1], now))
            assert changed != bad, step
            seen.add(bad)
        taken.append(now)
        return terms

    seen: set[bool] = set()
    monkeypatch.setattr(training.Recorded, "__call__", spy)
    aligner, history = fit(*data(), device="cuda", max_steps=60)
    assert seen == {True, False}
    assert all(np.isfinite(values).all() for values in history.values())
    assert all(np.isfinite(v).all() for v in state(aligner).values())


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_no_step_on_a_gpu_waits_for_it(precision: str, monkeypatch: pytest.MonkeyPatch):
    original, steps = training._step, []

    def step(*args: Any) -> Any:
        steps.append(args[0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(training, "_step", step)
    fit(*data(), device="cuda", max_steps=30, precision=precision)
    # 3 of each kind, and each kind while it is recorded
    assert steps == [0, 1, 2, 3, 4, 5, 8, 12]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            float(torch.ones((), device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_geometry_is_in_full_precision_beside_products_of_tf32():
    from scmmgan.model.nets import losses
    from scmmgan.model.nets.pinned import products

    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn((256, 20), generator=rng).cuda() for _ in range(2))
    found: dict[str, list[torch.Tensor]] = {}
    for precision in ("float32", "tf32"):
        at = y.clone().requires_grad_(True)
        with products(precision):
            value = losses.geometry_loss("heat", x, at)
            value.backward()
            found[precision] = [value.detach(), at.grad, x @ y.T]  # type: ignore[list-item]
    for own, expected in zip(found["tf32"][:2], found["float32"][:2]):
        assert float((own - expected).norm() / expected.norm()) < 1e-5
    # what it is protected from
    error = (found["tf32"][2] - found["float32"][2]).norm() / found["float32"][2].norm()
    assert 1e-5 < float(error) < 1e-2


@pytest.mark.gpu
@needs_gpu
def test_an_interrupted_training_goes_on(tmp_path: Any):
    problem = data()
    _, whole = fit(*problem, device="cuda", max_steps=100)
    original = training._record

    with pytest.MonkeyPatch.context() as patch:

        def stop(history: dict, first: int, steps: list) -> None:
            if first:
                raise KeyboardInterrupt
            original(history, first, steps)

        patch.setattr(training, "_record", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(*problem, device="cuda", max_steps=100, checkpoint_dir=tmp_path)
    _, rest = fit(*problem, device="cuda", max_steps=100, checkpoint_dir=tmp_path)
    assert rest["step"] == whole["step"]
    np.testing.assert_allclose(rest["anchors"], whole["anchors"], rtol=1e-2)
