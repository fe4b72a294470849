"""What autoencoder methods share: losses, batches, the loop, best weights, state; and that none reads the order of rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import check_slopes
from scmmgan.metrics import foscttm
from scmmgan.model.nets import autoencoder, methods
from scmmgan.model.nets.autoencoder import Autoencoder, Batch, System
from scmmgan.model.nets.con_aae import ConAAE
from scmmgan.model.nets.latent import Fitted
from scmmgan.model.nets.networks import BatchNorm
from scmmgan.model.problem import Problem
from systems import made, problem

NAMES = ["cmae", "con-aae", "scmodal", "jamie"]
# what each is given
KNOWN: dict[str, dict[str, bool]] = {
    "cmae": {"labels": True}, "con-aae": {"labels": True}, "scmodal": {"links": True}, "jamie": {"pairs": True},
}  # fmt: skip


def fit(name: str, found: Problem, **changed: Any) -> Fitted:
    method = methods.lookup(name)
    own = {of: getattr(method, of) for of in ("weights", "lr", "geometry")}
    rest = {"max_steps": 5, "batch_size": 32, "hidden": 8, "random_state": 0, "device": "cpu", "progress_bar": False}
    return methods.fit_latent(name, found, {**own, **rest, "options": method.options, **changed})


# --- losses ------------------------------------------------------------------------------------------------------


def test_errors_and_least_squares():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    mean = lambda of: lambda *v: sum(of(*entries) for entries in zip(*(u.ravel() for u in v))) / v[0].size  # noqa: E731
    check_slopes(autoencoder.squared_error, mean(lambda u, v: (u - v) ** 2), a, b)
    check_slopes(autoencoder.absolute_error, mean(lambda u, v: abs(u - v)), a, b)
    first, second = rng.normal(size=(7, 1)), rng.normal(size=(5, 1))
    expected = lambda u, v: float(np.mean(u**2) + np.mean((v - 1) ** 2))  # noqa: E731
    check_slopes(autoencoder.least_squares, expected, first, second)
    assert float(autoencoder.least_squares(torch.zeros(3), torch.ones(3))) == 0


def test_cross_entropy_of_cells_with_labels():
    logits, labels = np.random.default_rng(0).normal(size=(8, 3)), np.array([0, 2, -1, 1, 1, -1, 0, 2])

    def expected(v: np.ndarray) -> float:
        return float(np.mean([math.log(np.exp(v[i]).sum()) - v[i][labels[i]] for i in np.flatnonzero(labels >= 0)]))

    check_slopes(lambda v: autoencoder.cross_entropy(v, torch.as_tensor(labels)), expected, logits)
    assert float(autoencoder.cross_entropy(torch.randn(4, 3), torch.full((4,), -1))) == 0


class Linear(System):
    """Linear maps without biases."""

    latent = 2
    weights = {"reconstruction": 1.0}

    @staticmethod
    def networks(widths: Mapping[str, int], hidden: int | str | None) -> tuple[dict, dict]:
        nets = [
            {m: nn.Linear(*of, bias=False).double() for m, of in sizes.items()}
            for sizes in ({m: (p, 2) for m, p in widths.items()}, {m: (2, p) for m, p in widths.items()})
        ]
        return nets[0], nets[1]


def test_reconstruction_and_latent_cycle():
    system, rng = made(Linear), np.random.default_rng(0)
    e, f = ({m: net.weight.detach().numpy() for m, net in nets.items()} for nets in (system.encoders, system.decoders))
    z, x = [rng.normal(size=(6, 2)) for _ in "ab"], [rng.normal(size=(6, width)) for width in (12, 8)]

    def cycle(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - a @ f["b"].T @ e["b"].T) ** 2).mean() + ((b - b @ f["a"].T @ e["a"].T) ** 2).mean())

    check_slopes(lambda *v: system.latent_cycle(dict(zip("ab", v)), [("a", "b")]), cycle, *z)

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(sum(((of - v @ f[m].T) ** 2).mean() for m, v, of in zip("ab", (a, b), x)))

    cells = {m: torch.as_tensor(v) for m, v in zip("ab", x)}
    check_slopes(lambda *v: system.reconstruction(Batch(0, {}, cells, dict(zip("ab", v)))), error, *z)


def test_known_pairs_of_both_sides():
    system = made(ConAAE, pairs=True)
    system.train(False)
    first, second = system.anchored(system.task.pairs[[4, 2]])
    for m, got in (("a", first), ("b", second)):
        np.testing.assert_allclose(got.detach(), system.encoders[m](system.task.x[m][[4, 2]]).detach(), rtol=1e-6)


@pytest.mark.parametrize(
    ("hidden", "expected"), [(None, (30, 512)), ("published", (30, 700)), (8, (8, 8)), (600, (30, 600))]
)
def test_width_of_hidden_layers(hidden: Any, expected: tuple[int, int]):
    assert (autoencoder.at_most(30, hidden), autoencoder.at_most(700, hidden)) == expected


# --- batches -----------------------------------------------------------------------------------------------------


def test_batches_are_drawn_without_replacement_and_by_their_seed():
    rows = torch.arange(10, 45)
    drawn = [found.tolist() for found, _ in zip(autoencoder.draw(rows, 12, 0), range(4))]
    assert all(len(set(of)) == 12 for of in drawn)
    assert len({i for of in drawn[:2] for i in of}) == 24
    assert {i for of in drawn for i in of} <= set(range(10, 45))
    assert drawn == [found.tolist() for found, _ in zip(autoencoder.draw(rows, 12, 0), range(4))]
    assert drawn != [found.tolist() for found, _ in zip(autoencoder.draw(rows, 12, 1), range(4))]
    assert len(next(autoencoder.draw(rows, 99, 0))) == 35


@pytest.mark.parametrize("name", ["cmae", "con-aae", "scmodal"])
def test_sides_are_drawn_independently(name: str):
    """Of equal numbers of cells with equal names: as often the same as chance has it."""
    system = made(methods.lookup(name).fit.args[0], **KNOWN[name])
    same = [float((rows["a"] == rows["b"]).float().mean()) for rows, _ in zip(system.batches(), range(60))]
    assert np.mean(same) < 0.05


def test_generated_input_counts_in_no_batch_norm():
    system = made(ConAAE, labels=True, pairs=True)
    norm = next(layer for layer in system.encoders["b"] if isinstance(layer, BatchNorm))
    inputs = []
    before = system.encoders["b"][1].register_forward_hook(lambda _, __, out: inputs.append(out.detach().clone()))
    system.step()
    before.remove()
    # the cells themselves, cells of the other side that come back, known pairs
    assert len(inputs) == 3
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * inputs[0].mean(0).numpy(), atol=1e-6)


# --- schedules ---------------------------------------------------------------------------------------------------

CRITIC, REST = "critic", "rest"
ORDERS = {"cmae": [CRITIC, REST], "con-aae": [REST, CRITIC], "scmodal": [CRITIC] * 5 + [REST], "jamie": [REST]}


def of_method(name: str) -> System:
    return made(methods.lookup(name).fit.args[0], **KNOWN[name])


def one_step(system: System, look: Callable[[str], None]) -> None:
    """One step of the training; `look` is called before each step of an optimizer, with what it trains."""
    main, critic = system.optimizers(1e-3)
    for of, name in ((main, REST), (critic, CRITIC)):
        if of is not None:
            of.register_step_pre_hook(lambda *_, name=name: look(name))
    autoencoder._step(0, next(system.batches()), system, system.weights, main, critic)


def slopes(nets: Iterable[nn.Module]) -> list[torch.Tensor]:
    return [p.grad.clone() for net in nets for p in net.parameters() if p.grad is not None]


@pytest.fixture
def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAMIE infers no correspondence: that takes a second."""
    monkeypatch.setattr("scmmgan.model.nets.jamie.MAX_COVERED", -1)


@pytest.mark.usefixtures("no_plan")
@pytest.mark.parametrize("name", NAMES)
def test_order_of_steps_and_what_each_moves(name: str):
    """Losses of the critics leave encoders and decoders alone, and the other losses leave the critics alone."""
    system, steps, critics = of_method(name), [], []

    def look(what: str) -> None:
        steps.append(what)
        if what == CRITIC and system.critic_first:
            assert not slopes((*system.encoders.values(), *system.decoders.values()))
        if what == CRITIC:
            critics[:] = slopes(system.critics.values())
            assert critics
        else:
            now = slopes(system.critics.values())
            assert len(now) == len(critics)
            assert all(torch.equal(*two) for two in zip(now, critics))

    one_step(system, look)
    assert steps == ORDERS[name]


@pytest.mark.usefixtures("no_plan")
@pytest.mark.parametrize(("name", "most"), [("cmae", None), ("con-aae", None), ("scmodal", 5.0), ("jamie", 1.0)])
def test_how_long_a_gradient_may_be(name: str, most: float | None):
    """Of losses that are a million times as large, over encoders, decoders and other networks at once."""
    system, lengths = of_method(name), []
    system.weights = {of: 1e6 * weight for of, weight in system.weights.items()}

    def look(what: str) -> None:
        if what == REST:
            lengths.append(math.sqrt(sum(float((p.grad**2).sum()) for p in system.parameters() if p.grad is not None)))

    one_step(system, look)
    assert lengths[0] == pytest.approx(most, rel=1e-4) if most else lengths[0] > 1e4


@pytest.mark.parametrize("name", ["cmae", "con-aae", "scmodal"])
def test_a_critic_that_nothing_follows_does_not_train(name: str):
    weights = {**methods.lookup(name).weights, "adversarial": 0.0}
    found = fit(name, problem(**KNOWN[name]), weights=weights)
    assert "discriminator" not in found.history
    assert "discriminator" in fit(name, problem(**KNOWN[name])).history
    assert np.isfinite(found.embeddings["a"]).all()


def test_a_critic_whose_term_has_another_name_trains(monkeypatch: pytest.MonkeyPatch):
    class Critic(Linear):
        @staticmethod
        def networks(widths: Mapping[str, int], hidden: int | str | None) -> tuple[dict, dict]:
            nets = Linear.networks(widths, hidden)
            return tuple({m: net.float() for m, net in of.items()} for of in nets)  # type: ignore[return-value]

        def terms(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"reconstruction": self.reconstruction(batch)}

        def build(self) -> None:
            self.critics["z"] = nn.Linear(2, 1)

        def critic_loss(self, batch: Batch) -> torch.Tensor:
            return (self.critics["z"](batch.z["a"]) ** 2).mean()

    monkeypatch.setitem(methods.METHODS, "critic", methods.of_system(Critic))
    history = fit("critic", problem(), lr=0.1, max_steps=60).history
    assert history["discriminator"][-1] < history["discriminator"][0]


@pytest.mark.parametrize("name", ["cmae", "con-aae", "scmodal"])
def test_latent_cells_that_the_critic_sees(name: str):
    """Those of the same step; of con-aae what encoders make of them after it, in inference."""
    system, seen = of_method(name), []
    encode, loss = system.encode, system.critic_loss
    system.encode = lambda x: seen.append(encode(x)) or seen[-1]
    shown, batches = [], []
    system.critic_loss = lambda batch: batches.append(batch) or shown.append(batch.z) or loss(batch)
    one_step(system, lambda _: None)
    drawn = next(system.batches())
    for batch in batches[: system.critic_steps]:
        for m in "ab":
            torch.testing.assert_close(batch.rows[m], drawn[m])
            torch.testing.assert_close(batch.x[m], system.task.x[m][drawn[m]])
    if name == "con-aae":
        system.train(False)
        wanted = encode({m: system.task.x[m][rows] for m, rows in drawn.items()})
        assert not any(torch.allclose(shown[0][m], seen[0][m]) for m in "ab")
    else:
        wanted = seen[0]
    assert not any(z[m].requires_grad for z in shown[: system.critic_steps] for m in "ab")
    for z in shown:
        for m in "ab":
            np.testing.assert_allclose(z[m].detach(), wanted[m].detach(), rtol=1e-6)


@pytest.mark.usefixtures("no_plan")
@pytest.mark.parametrize(
    ("name", "betas", "decay"),
    [("cmae", (0.5, 0.999), 1e-4), ("scmodal", (0.9, 0.999), 1e-3), ("jamie", (0.9, 0.999), 0)],
)
def test_optimizers_of_both_sides(name: str, betas: tuple[float, float], decay: float):
    system = of_method(name)
    main, critic = system.optimizers(1e-3)
    assert (critic is None) == (name == "jamie")
    nets = [p for net in system.critics.values() for p in net.parameters()]
    for of, trained in ((main, system.parameters()), (critic, nets)):
        if of is not None:
            (group,) = of.param_groups
            assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, betas, decay)
            assert {id(p) for p in group["params"]} == {id(p) for p in trained}


@pytest.mark.parametrize(
    ("name", "lr", "batch_size", "weights"),
    [
        ("cmae", 1e-4, 32, {"reconstruction": 10, "adversarial": 10, "labels": 10, "anchors": 0.1}),
        ("con-aae", 1e-4, 32, {"reconstruction": 10, "adversarial": 10, "mmd": 0, "cycle": 10, "contrast": 10, "labels": 1, "anchors": 0.1}),
        ("scmodal", 1e-3, 500, {"adversarial": 1, "reconstruction": 10, "cycle": 10, "links": 1, "geometry": 10}),
        ("jamie", 1e-3, 512, {"kl": 0.032, "combination": 32, "reconstruction": 1, "alignment": 1}),
    ],
)  # fmt: skip
def test_settings_are_those_of_the_programs(name: str, lr: float, batch_size: int, weights: dict[str, float]):
    method = methods.lookup(name)
    assert (method.lr, method.batch_size, method.weights) == (lr, batch_size, weights)


# --- the loop ----------------------------------------------------------------------------------------------------


def test_history_and_best_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(autoencoder, "CHECK_EVERY", 5)
    result = fit("con-aae", problem(120), max_steps=32)
    history, used = result.history, result.info["steps_used"]
    assert history["step"] == [5, 10, 15, 20, 25, 30, 32]
    assert len({len(of) for of in history.values()}) == 1
    assert {"reconstruction", "adversarial", "cycle", "discriminator", "loss", "held out"} < set(history)
    assert used == history["step"][int(np.argmin(history["held out"]))]
    assert result.info["steps"] == 32
    assert history["reconstruction"][-1] < history["reconstruction"][0]


def test_no_finite_loss_is_an_error():
    with pytest.raises(ValueError, match=r"times in a row a loss was not finite.*Lower `lr`"):
        fit("cmae", problem(40), lr=1e30, max_steps=40)


def test_weights_that_leave_nothing_to_train_are_an_error():
    """What is left needs labels, and there are none."""
    weights = dict.fromkeys(ConAAE.weights, 0.0) | {"contrast": 1.0}
    with pytest.raises(
        ValueError, match=r"All `weights` of what is known are 0, of \['reconstruction', 'adversarial', 'cyc"
    ):
        fit("con-aae", problem(40), weights=weights, max_steps=2)
    assert fit("con-aae", problem(40, labels=True), weights=weights, max_steps=2).info["steps"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bits(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scmmgan.model.nets.jamie.MAX_COVERED", -1)
    found = problem(40, **KNOWN[name])
    state, numbers = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = fit(name, found)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)
    torch.manual_seed(9)
    second, third = fit(name, found), fit(name, found, random_state=1)
    for m in "ab":
        np.testing.assert_array_equal(first.embeddings[m], second.embeddings[m])
        assert not np.array_equal(first.embeddings[m], third.embeddings[m])
    assert first.history == second.history


@pytest.mark.parametrize("name", NAMES)
def test_one_cell_alone_and_state(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scmmgan.model.nets.jamie.MAX_COVERED", -1)
    found = problem(40, m=37, **KNOWN[name])
    result = fit(name, found)
    model = result.model
    config, arrays = model.state()
    assert all(type(v) is np.ndarray for v in arrays.values())
    config = json.loads(json.dumps({**config, "modalities": ["a", "b"]}))
    again = methods.rebuilt(name, config, arrays)
    for s, t, width in (("a", "b", 8), ("b", "a", 12)):
        x = again.read(found.modalities[s].values, np.arange(12 if s == "a" else 8), s)
        np.testing.assert_allclose(again.embed(x, s), result.embeddings[s], atol=1e-5)
        there = model.translate(x, s, t)
        assert there.shape == (len(x), again.readings[t].width)
        np.testing.assert_allclose(model.translate(x[3:4], s, t), there[3:4], atol=1e-5)
        features = np.arange(width)[::-1]
        values = model.decode(result.embeddings[s], t, features)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(again.decode(result.embeddings[s], t, features), values)
        np.testing.assert_allclose(model.decode(result.embeddings[s], t, features[:2]), values[:, :2], rtol=1e-5)


def test_damaged_states_are_refused():
    model = fit("cmae", problem(40)).model
    config, arrays = model.state()
    config |= {"modalities": ["a", "b"]}
    name = next(of for of in arrays if of.startswith("encoder"))
    for damage in (np.full_like(arrays[name], np.nan), arrays[name][:1]):
        with pytest.raises(ValueError, match="weights"):
            Autoencoder.from_state(methods.CMAE, config, {**arrays, name: damage})


# --- the order of rows -------------------------------------------------------------------------------------------


def permuted(found: Problem, order: np.ndarray) -> Problem:
    """The cells of b in another order."""
    known = found.known["a", "b"]
    place = np.argsort(order)
    b = replace(found.modalities["b"], values=found.modalities["b"].values[order])
    pairs = None if known.pairs is None else np.stack([known.pairs[:, 0], place[known.pairs[:, 1]]], axis=1)
    labels = None if known.labels is None else {**known.labels, "b": known.labels["b"][order]}
    return replace(
        found, modalities={**found.modalities, "b": b}, known={("a", "b"): replace(known, pairs=pairs, labels=labels)}
    )


@pytest.mark.parametrize("name", NAMES)
def test_order_of_rows_says_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    """Row i is the same cell in both, or b is shuffled: as near to the truth, up to what seeds differ by."""
    monkeypatch.setattr("scmmgan.model.nets.jamie.MAX_COVERED", -1)
    found, scores = problem(120, **KNOWN[name]), {}
    order = np.random.default_rng(1).permutation(120)
    for way, of in (("in order", found), ("shuffled", permuted(found, order))):
        place = np.arange(120) if way == "in order" else np.argsort(order)
        scores[way] = []
        for seed in range(2):
            z = fit(name, of, max_steps=25, lr=1e-3, random_state=seed).embeddings
            scores[way].append(foscttm(z["a"], z["b"][place]))
    noise = max(np.std(of) for of in scores.values())
    assert abs(np.mean(scores["in order"]) - np.mean(scores["shuffled"])) < 3 * noise + 0.05
