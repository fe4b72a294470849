"""The training loop: weights of the terms, history, guard against non-finite steps, best weights, repeatability."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import needs_gpu
from scmmgan.model.defaults import LOSS_WEIGHTS, MIN_CELLS
from scmmgan.model.nets import losses, training
from scmmgan.model.nets.aligner import Aligner, split
from trainings import data, fit, state

AB = [("a", "b"), ("b", "a")]
TERMS = ("adversarial", "cycle", "anchors", "links", "geometry")
# the loss function of each term
FUNCTIONS = {
    "adversarial": "adversarial_loss",
    "cycle": "cycle_loss",
    "anchors": "anchor_loss",
    "links": "link_loss",
    "geometry": "heat_loss",
}


def differences(first: Aligner, second: Aligner) -> list[str]:
    a, b = state(first), state(second)
    assert a.keys() == b.keys()
    return [name for name in a if not np.array_equal(a[name], b[name])]


@pytest.fixture(scope="module")
def problem() -> tuple[dict, dict, dict]:
    return data()


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The generators of the next training, while it runs."""
    found: dict = {}
    original = training.fit

    def spy(nets: dict, *args: Any, **kwargs: Any) -> Any:
        found.update(nets)
        return original(nets, *args, **kwargs)

    monkeypatch.setattr(training, "fit", spy)
    return found


def break_term(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[[int], bool], value: float = np.nan
) -> list:
    """Make a loss function `value` in steps where `broken`; returns the steps that were seen (2 calls each)."""
    original, calls = getattr(losses, name), []

    def loss(*args: Any) -> torch.Tensor:
        out = original(*args)
        if not out.requires_grad:  # held-out cells
            return out
        calls.append(len(calls) // 2)
        return out * value if broken(calls[-1]) else out

    monkeypatch.setattr(losses, name, loss)
    return calls


# --- history -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [1, 9, 10, 11, 13, 52])
def test_history_has_one_value_per_term_and_entry(problem: tuple, max_steps: int):
    _, history = fit(*problem, max_steps=max_steps)
    steps = sorted({*range(10, max_steps + 1, 10), max_steps})
    assert list(history["step"]) == steps
    assert {*TERMS, "discriminator", "step"} <= set(history)
    assert {name: len(values) for name, values in history.items()} == dict.fromkeys(history, len(steps))
    for name in TERMS:
        assert np.isfinite(history[name]).any()


def test_history_is_the_mean_over_steps(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    seen = []
    original = losses.cycle_loss

    def spy(*args: Any) -> torch.Tensor:
        out = original(*args)
        if out.requires_grad:
            seen.append(float(out.detach()))
        return out

    monkeypatch.setattr(losses, "cycle_loss", spy)
    _, history = fit(*problem, max_steps=30)
    per_step = np.array(seen).reshape(30, 2).sum(1)
    np.testing.assert_allclose(history["cycle"], per_step.reshape(3, 10).mean(1), rtol=1e-6)


def test_training_learns(problem: tuple):
    # anchors of this toy do not come back exactly
    _, history = fit(*problem, max_steps=60, weights={"anchors": 0.0})
    assert history["cycle"][-1] < history["cycle"][0] / 2
    assert history["links"][-1] < 0.2
    assert 0 < history["geometry"][-1] < 0.5


# --- weights of the terms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", ["ab", "abc"])
def test_terms_have_the_weights_of_the_method(modalities: str, monkeypatch: pytest.MonkeyPatch):
    """The slope of what is minimised with respect to each term, step by step."""
    slopes: dict[str, list[tuple[int, float]]] = defaultdict(list)
    clock = {"step": -1}
    n_pairs = len(modalities) * (len(modalities) - 1)

    def spied(name: str, original: Callable) -> Callable:
        counter = {"calls": 0}

        def loss(*args: Any) -> torch.Tensor:
            out = original(*args)
            if out.requires_grad:
                if name == "adversarial":
                    clock["step"] = counter["calls"] // n_pairs
                    counter["calls"] += 1
                step = clock["step"]
                out.register_hook(lambda slope: slopes[name].append((step, float(slope))))
            return out

        return loss

    for name, function in FUNCTIONS.items():
        monkeypatch.setattr(losses, function, spied(name, getattr(losses, function)))
    fit(*data(modalities=modalities), max_steps=16)
    scale = len(modalities) - 1
    for name, weight in {"adversarial": 0.5, "cycle": 1, "anchors": 5, "links": 1}.items():
        np.testing.assert_allclose([s for _, s in slopes[name]], weight / scale, rtol=1e-6)
        assert len(slopes[name]) == 16 * n_pairs
    # every 4th step with fourfold weight
    assert {step for step, _ in slopes["geometry"]} == set(range(0, 16, 4))
    np.testing.assert_allclose([s for _, s in slopes["geometry"]], 4 * 0.1 / scale, rtol=1e-6)


def test_anchors_are_followed_to_the_end(problem: tuple):
    """Anchors of some cells moved away from where links and cycle lead."""
    x, couplings, loadings = problem
    moved = {pair: c.anchors.copy() for pair, c in couplings.items()}
    for anchors in moved.values():
        anchors[:60] += np.float32(1.0)
    found = {pair: dataclasses.replace(c, anchors=moved[pair]) for pair, c in couplings.items()}
    errors = {}
    for weight in (0.0, 5.0):
        aligner, _ = fit(x, found, loadings, max_steps=60, lr=5e-3, weights={"anchors": weight})
        errors[weight] = ((aligner.translate(x["a"], "a", "b") - moved["a", "b"])[:60] ** 2).mean()
    assert errors[5.0] < errors[0.0] / 2


def test_cells_without_a_partner_are_left_out(problem: tuple):
    """Anchors that make no sense, but of weight 0, change nothing."""
    x, couplings, loadings = problem
    rng = np.random.default_rng(0)
    runs = []
    for noise in (0.0, 10.0):
        found = {}
        for pair, c in couplings.items():
            alone = np.arange(len(c.anchors)) % 3 == 0
            anchors = np.where(alone[:, None], c.anchors + noise * rng.normal(size=c.anchors.shape), c.anchors)
            found[pair] = dataclasses.replace(c, anchors=anchors.astype(np.float32), weight=1.0 - alone)
        runs.append(fit(x, found, loadings))
    (first, history), (second, again) = runs
    assert history == again
    assert differences(first, second) == []
    other, _ = fit(x, couplings, loadings)
    assert differences(first, other)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_can_be_left_out(problem: tuple, name: str):
    aligner, history = fit(*problem, max_steps=8, weights={name: 0.0})
    assert name not in history
    assert set(TERMS) - {name} <= set(history)
    assert ("discriminator" in history) == (name != "adversarial")
    assert all(np.isfinite(v).all() for v in state(aligner).values())


@pytest.mark.parametrize("name", TERMS)
def test_each_term_alone(problem: tuple, name: str):
    aligner, history = fit(*problem, max_steps=30, weights={**dict.fromkeys(TERMS, 0.0), name: 1.0})
    assert set(TERMS) & set(history) == {name}
    assert all(np.isfinite(v).all() for v in state(aligner).values())
    if name in ("cycle", "links"):
        assert history[name][-1] < history[name][0]


def test_no_links_no_link_term(problem: tuple):
    x, couplings, _ = problem
    assert "links" not in fit(x, couplings, {}, max_steps=4)[1]


def test_weights_steer(problem: tuple):
    """A heavy cycle term gives a better round trip than none."""
    x = problem[0]["a"]
    errors = []
    for weight in (0.0, 10.0):
        # what costs time and has no part in it is left out
        weights = {"cycle": weight, "adversarial": 0.0, "geometry": 0.0}
        aligner, _ = fit(*problem, max_steps=60, lr=2e-3, weights=weights)
        errors.append(((aligner.translate(aligner.translate(x, "a", "b"), "b", "a") - x) ** 2).mean())
    assert errors[1] < errors[0] / 2


def consistency(x: dict, maps: dict) -> float:
    """Of linear maps, in numpy: over ordered pairs, the mean over third modalities."""
    total = 0.0
    for s, t in maps:
        ways = [x[s] @ maps[s, k].T @ maps[k, t].T for k in x if (s, k) in maps and (k, t) in maps]
        total += sum(((way - x[s] @ maps[s, t].T) ** 2).mean() for way in ways) / max(len(ways), 1)
    return total


@pytest.mark.parametrize("modalities", ["abc", "abcd"])
def test_consistency_and_its_slope(modalities: str):
    """Against central differences in float64; the generator from b to a is missing, and every way that needs it."""
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(9 + i, 2 + i)) for i, m in enumerate(modalities)}
    pairs = [(s, t) for s in x for t in x if s != t and (s, t) != ("b", "a")]
    maps = {(s, t): rng.normal(size=(x[t].shape[1], x[s].shape[1])) for s, t in pairs}
    nets: dict = {p: nn.Linear(*w.shape[::-1], bias=False).double() for p, w in maps.items()}
    for p, net in nets.items():
        net.weight.data = torch.as_tensor(maps[p].copy())
    rows = {m: torch.as_tensor(rng.permutation(len(v))[:5]) for m, v in x.items()}
    data = training.TrainingData(
        {m: torch.as_tensor(v) for m, v in x.items()}, {}, {}, {}, {}, rows,
        weights={**dict.fromkeys(LOSS_WEIGHTS, 0.0), "consistency": 3.0},
    )  # fmt: skip
    batch, scale = {m: v[rows[m].numpy()] for m, v in x.items()}, len(x) - 1
    recipe = training.Recipe(10, 5, 1e-3, plain=True)
    score = training._held_out_score(nets, list(params := [n.weight for n in nets.values()]), params, data)
    assert score == pytest.approx(consistency(batch, maps), rel=1e-6)
    out = training._step(1, rows, data, recipe, training._Player(nets, recipe), training._Player({}, recipe))
    assert float(out["consistency"]) == pytest.approx(consistency(batch, maps) / scale, rel=1e-12)
    for p, net in nets.items():
        expected = np.zeros_like(maps[p])
        for at in np.ndindex(expected.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {**maps, p: maps[p].copy()}
                moved[p][at] += step
                ends.append(consistency(batch, moved))
            expected[at] = 3 * (ends[0] - ends[1]) / 2e-5 / scale
        np.testing.assert_allclose(net.weight.grad, expected, rtol=1e-6, atol=1e-8)


def test_consistent_maps_are_learnt_where_asked():
    """Three modalities whose couplings disagree: the direct maps come nearer to those round about."""
    x, couplings, loadings = data(modalities="abc")
    turned = dataclasses.replace(couplings["a", "c"], anchors=couplings["a", "c"].anchors[:, ::-1].copy())
    errors = {}
    for weight in (0.0, 5.0):
        # what costs time and has no part in it is left out
        weights = {"consistency": weight, "adversarial": 0.0, "geometry": 0.0}
        aligner, history = fit(x, {**couplings, ("a", "c"): turned}, loadings, max_steps=30, weights=weights)
        assert ("consistency" in history) == (weight > 0)
        direct, first = (aligner.translate(x["a"], "a", m) for m in "cb")
        errors[weight] = ((direct - aligner.translate(first, "b", "c")) ** 2).mean()
    assert errors[5.0] < errors[0.0] / 2
    # without a third modality there is nothing to compare
    two = data(modalities="ab")
    assert "consistency" not in fit(*two, max_steps=4, weights={"consistency": 5.0})[1]


# --- geometry, published rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", ["heat", "subspace", "eigvec", None])
def test_geometry_is_chosen(problem: tuple, geometry: str | None, monkeypatch: pytest.MonkeyPatch):
    called = set()
    for name in ("heat", "subspace", "eigvec"):

        def spy(*args: Any, name: str = name) -> torch.Tensor:
            called.add(name)
            return losses.GEOMETRIES[name](*args)

        monkeypatch.setattr(losses, f"{name}_loss", spy)
    aligner, history = fit(*problem, max_steps=10, geometry=geometry)
    assert called == ({geometry} if geometry else set())
    assert ("geometry" in history) == (geometry is not None)
    assert all(np.isfinite(v).all() for v in state(aligner).values())


def test_networks_in_bf16_and_nothing_else(problem: tuple, generators: dict, monkeypatch: pytest.MonkeyPatch):
    """Products of the networks have 8 bits; weights, losses, geometry and what is written have 24."""
    inside, outside = set(), set()
    linear, heat = torch.nn.functional.linear, losses.heat_loss

    def product(x: torch.Tensor, *args: Any) -> torch.Tensor:
        out = linear(x, *args)
        inside.add((out.dtype, torch.is_grad_enabled()))
        return out

    def geometry(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        outside.add((x.dtype, y.dtype, torch.is_autocast_enabled("cpu")))
        return heat(x, y)

    full, expected = fit(*problem, max_steps=50)
    monkeypatch.setattr(torch.nn.functional, "linear", product)
    monkeypatch.setattr(losses, "heat_loss", geometry)
    low, history = fit(*problem, max_steps=50, precision="bf16")
    # held-out cells choose the weights, and are mapped as they will be
    assert inside == {(torch.bfloat16, True), (torch.float32, False)}
    assert outside == {(torch.float32, torch.float32, False)}
    assert {p.dtype for net in generators.values() for p in net.parameters()} == {torch.float32}
    assert len(differences(full, low)) > 10
    np.testing.assert_allclose(history["anchors"], expected["anchors"], rtol=0.05)
    moved = full.translate(problem[0]["a"], "a", "b")
    assert ((low.translate(problem[0]["a"], "a", "b") - moved) ** 2).mean() < 1e-3 * moved.var()


def test_published_networks_in_bf16(problem: tuple):
    rules = {"networks": "paper", "geometry": "eigvec", "plain": True, "lr": 1e-4}
    _, expected = fit(*problem, **rules)
    _, history = fit(*problem, precision="bf16", **rules)
    np.testing.assert_allclose(history["anchors"], expected["anchors"], rtol=0.05)


@pytest.mark.parametrize("geometry", ["subspace", "eigvec"])
def test_geometry_is_learnt(problem: tuple, geometry: str):
    only = {**dict.fromkeys(TERMS, 0.0), "geometry": 1.0}
    _, history = fit(*problem, max_steps=80, lr=2e-3, geometry=geometry, weights=only)
    assert min(history["geometry"][-5:]) < 0.9 * history["geometry"][0]


@pytest.mark.parametrize("modalities", ["ab", "abc"])
@pytest.mark.parametrize("cycle_as_real", [False, True])
def test_round_trips_count_as_real_where_asked(modalities: str, cycle_as_real: bool, monkeypatch: pytest.MonkeyPatch):
    x, couplings, loadings = data(modalities=modalities)
    sizes = []
    original = losses.discriminator_loss

    def spy(real: torch.Tensor, fakes: list[torch.Tensor]) -> torch.Tensor:
        sizes.append((len(real), [len(fake) for fake in fakes]))
        return original(real, fakes)

    monkeypatch.setattr(losses, "discriminator_loss", spy)
    # without a cycle term, too
    fit(x, couplings, loadings, max_steps=2, cycle_as_real=cycle_as_real, weights={"cycle": 0.0})
    others = len(modalities) - 1
    assert set(map(str, sizes)) == {str((32 * (1 + others * cycle_as_real), [32] * others))}


def test_round_trips_change_the_discriminator(problem: tuple):
    first, second = (fit(*problem, cycle_as_real=value)[0] for value in (False, True))
    assert len(differences(first, second)) > 10


def test_plain_rules(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    """Constant rate, no clipping, no gradient penalty; Adam as asked."""
    slopes, rates, norms = [], [], []
    original, adam = losses.anchor_loss, training.adam

    def loss(*args: torch.Tensor) -> torch.Tensor:
        out = original(*args)
        if out.requires_grad:
            out.register_hook(lambda slope: slopes.append(float(slope)))
        return out

    def optimizer(*lists: Any, lr: float, beta1: float, beta2: float, **arguments: Any) -> None:
        rates.append((lr, beta1, beta2))
        adam(*lists, lr=lr, beta1=beta1, beta2=beta2, **arguments)

    def penalty(*args: Any) -> torch.Tensor:
        raise RuntimeError("penalty")

    clip = torch.nn.utils.clip_grad_norm_

    def clipped(parameters: list[torch.Tensor], most: float) -> torch.Tensor:
        norms.append(most)
        return clip(parameters, most)

    monkeypatch.setattr(losses, "anchor_loss", loss)
    monkeypatch.setattr(losses, "gradient_penalty", penalty)
    monkeypatch.setattr(training, "adam", optimizer)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    fit(*problem, plain=True, betas=(0.9, 0.999), lr=1e-4)
    np.testing.assert_allclose(slopes, 5)
    assert len(slopes) == 40
    assert rates == [(1e-4, 0.9, 0.999)] * 40
    assert set(norms) == {float("inf")}
    with pytest.raises(RuntimeError, match="penalty"):
        fit(*problem)


# --- published networks: batch norm -------------------------------------------------------------------------------


def paper(*args: Any, **arguments: Any) -> tuple[Aligner, dict[str, list[float]]]:
    return fit(*args, networks="paper", plain=True, **arguments)


def first_layer(problem: tuple, rows: list[torch.Tensor], weights: list[np.ndarray], m: str = "a") -> np.ndarray:
    """Running means of the first batch norm of the generator that leaves m, had it counted these rows only."""
    x, mean = problem[0][m].astype(np.float64), np.zeros(128)
    for at, weight in zip(rows, weights):
        mean = 0.9 * mean + 0.1 * (x[at.numpy()] @ weight.T).mean(0)
    return mean


def test_statistics_are_those_of_measured_cells(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    """One count per step, of the real batch; round trips, held-out cells and the critic's fakes leave no trace."""
    seen: list[torch.Tensor] = []
    original = training._batches

    def batches(*args: Any) -> Any:
        for rows in original(*args):
            seen.append(rows["a"])
            yield rows

    looks: list[float] = []
    held_out = training._held_out_score

    def later_is_better(*args: Any) -> float:
        looks.append(held_out(*args))
        return -float(len(looks))

    monkeypatch.setattr(training, "_batches", batches)
    monkeypatch.setattr(training, "_held_out_score", later_is_better)
    monkeypatch.setattr(training, "CHECK_EVERY", 5)
    # weights hardly move, so the statistics can be recomputed
    aligner, _ = paper(*problem, lr=1e-12, max_steps=20)
    assert len(looks) == 4
    net = aligner.generators["a", "b"].body
    weight, bias = (p.detach().double().numpy() for p in (net[0].weight, net[0].bias))
    expected = first_layer(problem, seen[:20], [weight] * 20) + (1 - 0.9**20) * bias
    np.testing.assert_allclose(net[1].running_mean.numpy(), expected, atol=1e-5)
    # the cells that it maps in a round trip are elsewhere
    other = aligner.generators["b", "a"].body[1].running_mean.numpy()
    assert np.abs(other - expected).max() > 0.05


def test_averaged_weights_come_with_the_statistics_of_their_step(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    scores: list[list[torch.Tensor]] = []
    original = training._held_out_score

    def scored(nets: Any, parameters: Any, average: list[torch.Tensor], *args: Any) -> float:
        score = original(nets, parameters, average, *args)
        assert all(net.training for net in nets.values())
        scores.append([b.clone() for net in nets.values() for b in net.buffers()])
        # the second of three looks is the best
        return score + 100 * (len(scores) != 2)

    monkeypatch.setattr(training, "_held_out_score", scored)
    monkeypatch.setattr(training, "CHECK_EVERY", 5)
    aligner, _ = paper(*problem, max_steps=15, geometry=None)
    kept = [b for net in aligner.generators.values() for b in net.buffers()]
    assert len(kept) == 12
    assert all(torch.equal(a, b) for a, b in zip(kept, scores[1]))
    assert not any(torch.equal(a, b) for a, b in zip(kept, scores[2]))


def test_held_out_cells_are_scored_as_new_cells_are_mapped(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    """With running statistics, not with those of the held-out cells."""
    modes = []
    original = losses.cycle_loss

    def spy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        modes.append((y.requires_grad, len(x)))
        return original(x, y)

    monkeypatch.setattr(losses, "cycle_loss", spy)
    aligner, _ = paper(*problem, max_steps=10)
    assert (False, 7) in modes
    assert not any(net.training for net in aligner.generators.values())


def test_published_networks_learn(problem: tuple):
    _, history = paper(*problem, max_steps=40, lr=5e-3, betas=(0.9, 0.999))
    assert history["links"][-1] < 0.5 * history["links"][0]
    assert history["anchors"][-1] < history["anchors"][0] / 3
    assert all(np.isfinite(values).all() for values in history.values())


# --- batches -----------------------------------------------------------------------------------------------------


def drawn(sizes: dict[str, int], batch_size: int, n: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rows = {m: torch.arange(size) for m, size in sizes.items()}
    problem: Any = SimpleNamespace(rows=rows, x={m: torch.zeros(size, 1) for m, size in sizes.items()})
    source = training._batches(problem, batch_size, seed)
    return [{m: at.numpy() for m, at in next(source).items()} for _ in range(n)]


def test_batches_visit_every_cell_once_per_epoch():
    found = drawn({"a": 120, "b": 120}, 40, 6)
    for m in "ab":
        for epoch in (found[:3], found[3:]):
            assert sorted(np.concatenate([rows[m] for rows in epoch])) == list(range(120))
    # never index-aligned, and re-drawn
    assert all((rows["a"] == rows["b"]).mean() < 0.2 for rows in found)
    assert not np.array_equal(found[0]["a"], found[3]["a"])


def test_batches_that_do_not_divide_the_cells():
    """What is left of an epoch is dropped: every cell once in it at most, all of them in turn."""
    found = drawn({"a": 100}, 40, 40)
    for start in range(0, 40, 2):
        assert len(set(np.concatenate([rows["a"] for rows in found[start : start + 2]]))) == 80
    assert set(np.concatenate([rows["a"] for rows in found])) == set(range(100))


def test_smallest_batch(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    """32 cells of each modality, which is the least, are taken as they were asked for."""
    sizes = []
    original = losses.cycle_loss
    monkeypatch.setattr(losses, "cycle_loss", lambda x, y: (sizes.append((y.requires_grad, len(x))), original(x, y))[1])
    for geometry in ("heat", "subspace", "eigvec"):
        _, history = fit(*problem, batch_size=MIN_CELLS, max_steps=5, geometry=geometry)
        assert np.isfinite([history[name][-1] for name in TERMS]).all()
    assert {size for grad, size in sizes if grad} == {32}


def test_batches_of_unequal_modalities():
    found = drawn({"a": 500, "b": 35}, 256, 5)
    assert [len(rows["a"]) for rows in found] == [256] * 5
    assert [len(rows["b"]) for rows in found] == [35] * 5
    assert all(len(set(rows["b"])) == 35 for rows in found)


@pytest.mark.parametrize("n", [42, 130])
def test_batch_larger_than_the_data(n: int):
    aligner, history = fit(*data(n), batch_size=10_000, max_steps=5)
    assert np.isfinite(history["cycle"]).all()
    assert all(np.isfinite(v).all() for v in state(aligner).values())


# --- the rate of learning ----------------------------------------------------------------------------------------


def player(max_steps: int, *, plain: bool = False) -> tuple[Any, nn.Linear]:
    net = nn.Linear(2, 1)
    recipe = training.Recipe(max_steps, 32, 0.01, plain=plain)
    return training._Player({"net": net}, recipe), net


@pytest.mark.parametrize("max_steps", [40, 200])
@pytest.mark.parametrize("plain", [False, True])
def test_rate_of_learning(max_steps: int, plain: bool):
    """Up over 50 steps, down to 0 over the last 40 %; constant by the published rules."""
    found, net = player(max_steps, plain=plain)
    rates = []
    for _ in range(max_steps):
        rates.append(found.rate)
        found.update(net(torch.ones(4, 2)).square().mean())
    at = np.arange(max_steps)
    expected = np.minimum(1, np.minimum((at + 1) / 50, (1 - at / max_steps) / 0.4))
    np.testing.assert_allclose(rates, 0.01 * (np.ones(max_steps) if plain else expected), rtol=1e-6)
    if not plain and max_steps == 200:
        assert [rates[0], rates[24], rates[160], rates[199]] == pytest.approx([2e-4, 5e-3, 5e-3, 1.25e-4])
        assert set(np.round(rates[49:121], 12)) == {0.01}


def test_steps_that_are_not_finite_change_nothing():
    found, net = player(200)
    fresh, other = player(200)
    other.load_state_dict(net.state_dict())
    weight = net.weight.detach().clone()
    assert not bool(torch.isfinite(found.update(net(torch.ones(4, 2)).mean() * np.nan)))
    # a root at 0: the loss is finite, its slope is not
    assert not bool(torch.isfinite(found.update((net(torch.ones(4, 2)) * 0).square().sum().sqrt())))
    assert bool(torch.isfinite(found.update(net(torch.ones(4, 2)).mean(), torch.tensor(True))))
    assert torch.equal(net.weight, weight)
    # neither weights nor moments nor their count have seen these steps
    rate, fresh.steps = found.rate, found.steps
    for of, network in ((found, net), (fresh, other)):
        of.update(network(torch.ones(4, 2)).mean(), torch.tensor(False))
    assert torch.equal(net.weight, other.weight)
    assert float((net.weight.detach() - weight).abs().max()) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("plain", [False, True])
def test_gradients_are_clipped(plain: bool):
    """To a norm of 5; what is recorded is the norm as it was."""
    found, net = player(200, plain=plain)
    norm = float(found.update(1e3 * net(torch.ones(4, 2)).mean()))
    assert norm == pytest.approx(1e3 * 3**0.5, rel=1e-5)
    left = torch.cat([net.weight.grad.ravel(), net.bias.grad]).norm()
    assert float(left) == pytest.approx(norm if plain else 5, rel=1e-4)


# --- the best weights --------------------------------------------------------------------------------------------


def by_hand(name: str, x: np.ndarray, y: np.ndarray, *rest: np.ndarray) -> float:
    """Terms of the checkpoint score in float64."""
    if name in ("cycle", "identity"):
        return float(((x - y) ** 2).mean())
    if name == "anchors":
        anchors, weight = rest
        return float((weight * ((y - anchors) ** 2).mean(1)).sum() / weight.sum())
    source, target, sign, weight = rest
    r = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip((x @ source).T, (y @ target).T)])
    return float((weight * (1 - sign * r)).sum() / weight.sum())


@pytest.mark.parametrize("names", [("cycle",), ("anchors",), ("identity",), ("links",), TERMS, ("adversarial",)])
@pytest.mark.parametrize("shared", [True, False])
def test_score_of_a_checkpoint(names: tuple[str, ...], shared: bool):
    """Cycle, anchor, identity and link errors that are trained on, of the validation cells, under the averaged weights."""
    rng = np.random.default_rng(0)
    x = {m: rng.normal(size=(30, 3)) for m in "ab"}
    pairs = [("a", "b"), ("b", "a")]
    anchors = {pair: rng.normal(size=(30, 3)) for pair in pairs}
    weight = {pair: rng.random(30) for pair in pairs}
    links = {
        p: (rng.normal(size=(3, 2)), rng.normal(size=(3, 2)), np.array([1.0, -1]), np.array([1, 0.3])) for p in pairs
    }
    rows = {"a": np.arange(20, 28), "b": np.arange(9)}
    nets = {pair: nn.Linear(3, 3).double() for pair in pairs}
    maps = {pair: (rng.normal(size=(3, 3)), rng.normal(size=3)) for pair in pairs}
    tensors = {p: [torch.as_tensor(v) for v in found] for p, found in maps.items()}
    data = training.TrainingData(
        x={m: torch.as_tensor(v) for m, v in x.items()},
        anchors={p: torch.as_tensor(v) for p, v in anchors.items()},
        anchor_weight={p: torch.as_tensor(v) for p, v in weight.items()},
        links={p: training.LinkLoadings(*(torch.as_tensor(v) for v in found)) for p, found in links.items()},
        rows={},
        held_out={m: torch.as_tensor(at) for m, at in rows.items()},
        weights={name: 2.0 * (name in (*names, *("identity",) * ("cycle" in names))) for name in LOSS_WEIGHTS},
        shared=tuple(pairs) if shared else (),
    )
    parameters = [p for net in nets.values() for p in net.parameters()]
    before = [p.detach().clone() for p in parameters]
    found = training._held_out_score(nets, parameters, [v for p in pairs for v in tensors[p]], data)
    expected = 0.0
    for s, t in pairs:
        at = rows[s]
        y = x[s][at] @ maps[s, t][0].T + maps[s, t][1]
        back = y @ maps[t, s][0].T + maps[t, s][1]
        if data.weights["cycle"]:
            expected += by_hand("cycle", x[s][at], back)
        if data.weights["anchors"]:
            expected += by_hand("anchors", x[s][at], y, anchors[s, t][at], weight[s, t][at])
        if data.weights["identity"] and shared:
            expected += by_hand("identity", x[s][at], y)
        if data.weights["links"]:
            expected += by_hand("links", x[s][at], y, *links[s, t])
    assert found == pytest.approx(expected, rel=1e-6)
    # nothing is left of the look
    assert all(torch.equal(p, v) for p, v in zip(parameters, before))
    assert all(net.training for net in nets.values())


def moved(couplings: dict, rows: dict[str, np.ndarray]) -> dict:
    """Anchors of these cells far from where they were."""
    out = {}
    for (s, t), c in couplings.items():
        anchors = c.anchors.copy()
        anchors[rows[s]] = 5 + 3 * np.random.default_rng(0).normal(size=anchors[rows[s]].shape)
        out[s, t] = dataclasses.replace(c, anchors=anchors)
    return out


def scored(problem: tuple, couplings: dict, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> tuple:
    """Aligner, history, and the scores of the checkpoints."""
    scores: list[float] = []
    original = training._held_out_score

    def spy(*args: Any) -> float:
        scores.append(original(*args))
        return scores[-1]

    with monkeypatch.context() as patch:
        patch.setattr(training, "_held_out_score", spy)
        patch.setattr(training, "CHECK_EVERY", 10)
        return *fit(problem[0], couplings, problem[2], max_steps=20, **arguments), scores


@pytest.mark.parametrize("shared", [True, False])
def test_test_cells_choose_nothing(problem: tuple, shared: bool, monkeypatch: pytest.MonkeyPatch):
    """Wherever the coupling sends them, the weights are the same to the last bit."""
    parts = split({m: len(v) for m, v in problem[0].items()}, 0)
    elsewhere = moved(problem[1], {m: of.test for m, of in parts.items()})
    first, history, scores = scored(problem, problem[1], monkeypatch, shared=AB if shared else ())
    second, again, other = scored(problem, elsewhere, monkeypatch, shared=AB if shared else ())
    assert history == again
    assert scores == other
    assert differences(first, second) == []


def test_validation_cells_choose_the_weights_and_train_nothing(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    parts = split({m: len(v) for m, v in problem[0].items()}, 0)
    elsewhere = moved(problem[1], {m: of.validation for m, of in parts.items()})
    # a start that does not see the anchors
    _, history, scores = scored(problem, problem[1], monkeypatch, shared=AB)
    _, again, other = scored(problem, elsewhere, monkeypatch, shared=AB)
    assert history == again
    assert len(scores) == len(other) == 2
    assert all(b > a + 1 for a, b in zip(scores, other))
    # those that are trained on change the training
    trained = moved(problem[1], {m: of.train[:5] for m, of in parts.items()})
    assert scored(problem, trained, monkeypatch, shared=AB)[1] != history


# --- guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["adversarial", "geometry", "cycle"])
def test_non_finite_steps_are_skipped(
    problem: tuple, generators: dict, name: str, value: float, monkeypatch: pytest.MonkeyPatch
):
    # geometry is evaluated in steps 0, 4, 8, …: of these, 4 and 12
    function, bad = FUNCTIONS[name], [1, 3] if name == "geometry" else list(range(16, 22))
    snapshots: list[list[np.ndarray]] = []
    break_term(monkeypatch, function, lambda step: step in bad, value)
    broken = getattr(losses, function)

    def spy(*args: Any) -> torch.Tensor:
        out = broken(*args)
        if out.requires_grad:
            snapshots.append([p.detach().numpy().copy() for net in generators.values() for p in net.parameters()])
        return out

    monkeypatch.setattr(losses, function, spy)
    aligner, history = fit(*problem, max_steps=30)
    assert history["step"][-1] == 30
    assert all(np.isfinite(values).all() for values in history.values())
    assert all(np.isfinite(v).all() for v in state(aligner).values())

    def moved(step: int) -> bool:
        return any(not np.array_equal(a, b) for a, b in zip(snapshots[2 * step], snapshots[2 * step + 2]))

    if name != "geometry":  # seen in every step
        assert not any(moved(step) for step in bad)
        assert moved(bad[0] - 1)
        assert moved(bad[-1] + 1)


def test_non_finite_gradient_is_skipped(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    original, calls = losses.adversarial_loss, []

    def loss(logits: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        value = original(logits)
        if len(calls) // 2 in range(5, 12):
            # finite here, but the slope of a root at 0 is not
            value = value + (logits - logits.detach()).sum().abs().sqrt()
        return value

    monkeypatch.setattr(losses, "adversarial_loss", loss)
    aligner, history = fit(*problem, max_steps=30)
    assert history["step"][-1] == 30
    assert all(np.isfinite(v).all() for v in state(aligner).values())


def test_non_finite_discriminator_skips_the_whole_step(
    problem: tuple, generators: dict, monkeypatch: pytest.MonkeyPatch
):
    original, snapshots = losses.discriminator_loss, []

    def loss(*args: Any) -> torch.Tensor:
        snapshots.append([p.detach().numpy().copy() for net in generators.values() for p in net.parameters()])
        return original(*args) * (np.nan if len(snapshots) // 2 in range(10, 15) else 1)

    monkeypatch.setattr(losses, "discriminator_loss", loss)
    fit(*problem, max_steps=20)
    first, last = snapshots[2 * 11], snapshots[2 * 15]
    assert all(np.array_equal(a, b) for a, b in zip(first, last))


@pytest.mark.parametrize("name", ["adversarial", "cycle", "links"])
def test_ten_broken_steps_stop_the_training_with_the_best_weights(
    problem: tuple, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    scores: list[tuple[float, list[torch.Tensor]]] = []
    original = training._held_out_score

    def scored(nets: Any, parameters: Any, average: list[torch.Tensor], *args: Any) -> float:
        score = original(nets, parameters, average, *args)
        scores.append((score, [v.clone() for v in average]))
        return score

    monkeypatch.setattr(training, "_held_out_score", scored)
    monkeypatch.setattr(training, "CHECK_EVERY", 20)
    calls = break_term(monkeypatch, FUNCTIONS[name], lambda step: step >= 25)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        aligner, history = fit(*problem, max_steps=500)
    assert max(calls) == 39  # ten, seen at the next look
    assert history["step"][-1] == 20
    assert len(scores) == 1
    message = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(message) == 1
    assert name in message[0]
    kept = [p.detach() for net in aligner.generators.values() for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, scores[0][1]))


@pytest.mark.parametrize(
    ("name", "max_steps"),
    [
        *((n, 5) for n in TERMS[:4]),
        ("cycle", 100),
        ("geometry", 100),
        *(pytest.param(n, 100, marks=pytest.mark.slow) for n in ("adversarial", "anchors", "links")),
    ],
)
def test_a_term_that_never_works_is_an_error(
    problem: tuple, name: str, max_steps: int, monkeypatch: pytest.MonkeyPatch
):
    """Geometry, too, which is looked at every 4th step only; and trainings shorter than ten steps."""
    break_term(monkeypatch, FUNCTIONS[name], lambda step: True)
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match=name):
        fit(*problem, max_steps=max_steps)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("max_steps", "bad"), [(20, [19]), (30, range(22, 30)), (55, range(48, 55))])
def test_broken_last_steps_keep_what_was_learnt(
    problem: tuple, max_steps: int, bad: list[int], monkeypatch: pytest.MonkeyPatch
):
    """Fewer than ten in a row are skipped, also where no look at the held-out cells follows or went before."""
    start, _ = fit(*problem, max_steps=1, lr=1e-12)
    break_term(monkeypatch, "cycle_loss", lambda step: step in bad)
    aligner, history = fit(*problem, max_steps=max_steps)
    assert all(np.isfinite(v).all() for v in state(aligner).values())
    assert len(differences(start, aligner)) > 10
    assert len({len(values) for values in history.values()}) == 1
    assert history["step"][-1] >= 10


def test_the_best_weights_are_restored(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    scores: list[tuple[float, list[torch.Tensor]]] = []
    original = training._held_out_score

    def scored(nets: Any, parameters: Any, average: list[torch.Tensor], *args: Any) -> float:
        score = original(nets, parameters, average, *args)
        # the third of five looks is the best
        score = score + 100 * (len(scores) != 2)
        scores.append((score, [v.clone() for v in average]))
        return score

    monkeypatch.setattr(training, "_held_out_score", scored)
    monkeypatch.setattr(training, "CHECK_EVERY", 10)
    aligner, _ = fit(*problem, max_steps=50)
    assert len(scores) == 5
    kept = [p.detach() for net in aligner.generators.values() for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, scores[2][1]))
    assert not all(torch.equal(a, b) for a, b in zip(kept, scores[4][1]))


def test_looking_at_held_out_cells_changes_nothing(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    first, history = fit(*problem, max_steps=20)
    monkeypatch.setattr(training, "CHECK_EVERY", 10)
    second, again = fit(*problem, max_steps=20)
    assert history == again
    assert differences(first, second) == []


def test_no_step_waits_for_the_device(problem: tuple, monkeypatch: pytest.MonkeyPatch):
    """What makes the host wait on a GPU (a number read, a size that values decide) happens at looks only: every 50th step, not within."""
    from torch.utils._python_dispatch import TorchDispatchMode

    ops = torch.ops.aten
    waits = {ops._local_scalar_dense, ops.nonzero, ops.equal, ops.masked_select, ops._unique2, ops.unique_dim}
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            by_mask = func.overloadpacket in (ops.index, ops.index_put_, ops.index_put) and any(
                at is not None and at.dtype in (torch.bool, torch.uint8) for at in args[1]
            )
            if by_mask or func.overloadpacket in waits:
                seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def noted(name: str) -> Any:
        real = getattr(torch.Tensor, name)
        return lambda self, *args, **kwargs: seen.append(name) or real(self, *args, **kwargs)

    original, steps = training._step, []

    def step(*args: Any) -> Any:
        steps.append(args[0])
        with Watch(), monkeypatch.context() as patch:
            # these are no work for PyTorch where tensors are on the CPU already
            for name in ("cpu", "numpy", "tolist"):
                patch.setattr(torch.Tensor, name, noted(name))
            return original(*args)

    monkeypatch.setattr(training, "_step", step)
    for geometry in ("heat", "subspace", "eigvec"):
        fit(*problem, max_steps=5, geometry=geometry)
    assert (seen, steps) == ([], [0, 1, 2, 3, 4] * 3)
    # the watch sees what it should
    x = torch.ones(3)
    for waiting in (
        float,
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
    ):
        seen.clear()
        original = waiting
        training._step(x[0] if waiting is float else x)
        assert len(seen) == 1, waiting


# --- randomness --------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_whatever_the_threads(problem: tuple):
    threads = torch.get_num_threads()
    first, history = fit(*problem, max_steps=12)
    torch.manual_seed(99)
    try:
        torch.set_num_threads(2)
        second, again = fit(*problem, max_steps=12)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert differences(first, second) == []
    assert history == again
    other, _ = fit(*problem, max_steps=12, random_state=1)
    assert len(differences(first, other)) > 10


def test_global_random_states_are_untouched(problem: tuple):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    aligner, _ = fit(*problem, max_steps=5)
    Aligner.from_state(*aligner.state())
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


@pytest.mark.gpu
@needs_gpu
def test_global_random_state_of_the_device_is_untouched(problem: tuple):
    torch.cuda.manual_seed(1)
    before = torch.cuda.get_rng_state()
    fit(*problem, max_steps=5)
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_inputs_are_left_alone(problem: tuple):
    x, couplings, loadings = data()
    fit(x, couplings, loadings, max_steps=5)
    expected = data()
    for m in x:
        np.testing.assert_array_equal(x[m], expected[0][m])
    for pair in couplings:
        np.testing.assert_array_equal(couplings[pair].anchors, expected[1][pair].anchors)
        for a, b in zip(loadings[pair], expected[2][pair]):
            np.testing.assert_array_equal(a, b)


def test_progress_bar(problem: tuple, capfd: pytest.CaptureFixture[str]):
    fit(*problem, max_steps=20)
    assert capfd.readouterr() == ("", "")
    fit(*problem, max_steps=20, progress_bar=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "20/20" in err
    assert "cycle=" in err


def test_identity_counts_in_a_shared_space_only(problem: tuple):
    """Images stay near their cells where the space is shared; elsewhere the term is not there at all."""
    # beside anchors it is one of two
    for anchors, most in ((0.0, 0.5), (5.0, 0.9)):
        moved = {}
        for weight in (0.0, 10.0):
            weights = {"identity": weight, "anchors": anchors}
            aligner, history = fit(*problem, max_steps=30, shared=AB, weights=weights)
            moved[weight] = ((aligner.translate(problem[0]["a"], "a", "b") - problem[0]["a"]) ** 2).mean()
            assert ("identity" in history) == (weight > 0)
        assert moved[10.0] < most * moved[0.0]
    assert "identity" not in fit(*problem, max_steps=4, weights={"identity": 10.0})[1]
