"""JAMIE: every loss against a reference, averages over partners, batches of pairs, schedule and end of the training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers import check_slopes
from scmmgan.model.nets import jamie
from scmmgan.model.nets.autoencoder import Batch
from scmmgan.model.nets.jamie import JAMIE
from systems import check_terms, exact, made, passed, problem


@pytest.fixture
def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Correspondence is not inferred: that takes a second."""
    monkeypatch.setattr(jamie, "MAX_COVERED", -1)


def rows_to_one(c: np.ndarray) -> np.ndarray:
    return np.array([row / row.sum() if row.sum() else row for row in c])


def aggregated(a: np.ndarray, b: np.ndarray, c: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = []
    for own, other, of, (w, v) in ((a, b, c, weight), (b, a, c.T, weight[::-1])):
        share = rows_to_one(of)
        out.append(np.stack([(w * own[i] + v * share[i] @ other) / (w + v * share[i].sum()) for i in range(len(own))]))
    return out[0], out[1]


def partners() -> np.ndarray:
    """Some cells with one partner, one with two, some with none."""
    c = np.zeros((6, 5))
    c[0, 1] = c[2, 2] = c[3, 0] = 1
    c[4, 3], c[4, 4] = 1, 1
    return c


def test_average_over_partners():
    rng = np.random.default_rng(0)
    a, b, weight, c = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)), np.array([0.3, 0.8]), partners()
    for side in (0, 1):
        check_slopes(
            lambda *v, side=side: (jamie.aggregate(v[0], v[1], torch.as_tensor(c), v[2])[side] ** 3).sum(),
            lambda *v, side=side: float((aggregated(v[0], v[1], c, v[2])[side] ** 3).sum()),
            a, b, weight,
        )  # fmt: skip
    alone = jamie.aggregate(
        torch.as_tensor(a), torch.as_tensor(b), torch.zeros(6, 5, dtype=torch.float64), torch.as_tensor(weight)
    )
    np.testing.assert_allclose(alone[0].numpy(), a)
    np.testing.assert_allclose(alone[1].numpy(), b)
    # all paired with equal weights: both are the mean
    both = jamie.aggregate(
        torch.as_tensor(a[:5]),
        torch.as_tensor(b),
        torch.eye(5, dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
    )
    np.testing.assert_allclose(both[0].numpy(), (a[:5] + b) / 2)
    np.testing.assert_allclose(both[1].numpy(), both[0].numpy())
    # a row that sums to 2 is an average
    np.testing.assert_allclose(
        jamie.aggregate(torch.as_tensor(a), torch.as_tensor(b), torch.as_tensor(c), torch.ones(2, dtype=torch.float64))[
            0
        ][4].numpy(),
        (a[4] + b[3:].mean(0)) / 2,
    )


def test_divergence():
    rng = np.random.default_rng(0)
    check_slopes(
        jamie.kl_loss,
        lambda m, s: float(np.mean((m**2 + np.exp(s) - s - 1) / 2)),
        rng.normal(size=(7, 4)),
        rng.normal(size=(7, 4)),
    )
    # of N(2, 9) from N(0, 1): log(1/3) + (9 + 4) / 2 - 1 / 2
    known = jamie.kl_loss(torch.tensor([[2.0]]), torch.tensor([[np.log(9.0)]]))
    assert float(known) == pytest.approx(np.log(1 / 3) + 6.5 - 0.5, rel=1e-5)
    assert float(jamie.kl_loss(torch.zeros(3, 2), torch.zeros(3, 2))) == 0


def test_weight_of_the_divergence():
    assert [jamie.kl_weight(e) for e in (0, 1_250, 2_500)] == pytest.approx([0.0067, 0.5, 0.9933], abs=1e-4)


def test_terms_by_what_is_known():
    """Without pairs no cell is averaged; with all of them nothing is inferred."""
    alone = made(JAMIE)
    terms = alone.step()
    assert set(terms) == set(JAMIE.weights)
    assert float(terms["combination"].detach()) < 1e-12
    whole = problem()
    whole.known["a", "b"].__dict__["pairs"] = np.stack([np.arange(40)] * 2, axis=1)
    paired = made(JAMIE, whole)
    terms = paired.step()
    assert set(terms) == {"kl", "combination", "reconstruction"}
    assert float(terms["combination"].detach()) > 0


def test_inferred_correspondence_is_that_of_the_plan():
    system = made(JAMIE)
    share, label = system.plan
    a, b = (len(v) for v in system.task.x.values())
    whole = share[:, label]
    assert whole.shape == (a, b)
    # cells of a landmark share its mass
    np.testing.assert_allclose(whole.sum(1).numpy(), 1, rtol=1e-4)


@pytest.mark.usefixtures("no_plan")
@pytest.mark.parametrize("ratio", [1.0, 0.6, 0.0])
def test_losses_are_those_of_the_equations(ratio: float, monkeypatch: pytest.MonkeyPatch):
    """Partners with weights for some cells of the batch, a plan that leaves one out, the middle of the least epochs."""
    found = problem()
    known = found.known["a", "b"].__dict__
    known["pairs"] = np.array([[0, 9], [7, 1], [2, 30]])
    known["partners"] = np.array([[0, 9], [0, 8], [7, 1], [2, 30], [11, 1]]), np.array([0.5, 0.25, 1, 0.5, 1])
    system = exact(made(JAMIE, found, options={"ratio": ratio}))
    rng = np.random.default_rng(0)
    plan, landmark = rng.random((40, 6)), rng.integers(6, size=40)
    plan[11] = 0
    system.plan, system.per_epoch = (torch.as_tensor(plan), torch.as_tensor(landmark)), 2
    rows = {"a": [3, 0, 7, 11, 19, 2], "b": [9, 1, 30, 20, 8]}
    c = np.zeros((40, 40))
    for (i, j), weight in zip(*known["partners"]):
        c[i, j] = weight
    noise = {m: rng.normal(size=(len(of), 32)) for m, of in rows.items()}
    drawn = iter(torch.as_tensor(v) for v in noise.values())
    net = lambda of, v: passed(of, v, 0.01)  # noqa: E731

    def expected(x: dict[str, np.ndarray]) -> dict[str, float]:
        z, divergence = {}, 0.0
        for m in "ab":
            mean, log = np.split(net(system.encoders[m], x[m]), 2, axis=1)
            z[m] = mean + (np.sqrt(np.exp(log)) + 1e-7) * noise[m]
            divergence += float(-np.mean(1 + log - mean**2 - np.exp(log)) / 2)
        share = np.log1p(np.exp(system.others["share"].raw.detach().numpy()))
        inferred = np.array([[plan[i, landmark[j]] for j in rows["b"]] for i in rows["a"]])
        known = ratio * c[np.ix_(rows["a"], rows["b"])] + (1 - ratio) * inferred
        near = dict(zip("ab", aggregated(z["a"], z["b"], known, share)))
        return {
            "kl": 0.5 * divergence,
            "combination": float(sum(((z[m] - near[m]) ** 2).mean() for m in "ab")),
            "reconstruction": float(sum(((x[m] - net(system.decoders[m], near[m])) ** 2).mean() for m in "ab")),
            "alignment": float(((near["a"] - rows_to_one(inferred) @ near["b"]) ** 2).mean()),
        }

    monkeypatch.setattr(torch, "randn", lambda *_, **__: next(drawn))
    check_terms(system, rows, expected, at=2 * 1_250)


def test_inferred_partners_also_of_cells_that_are_known():
    """With a ratio below 1 the plan is made although all pairs are known."""
    whole = problem()
    whole.known["a", "b"].__dict__["pairs"] = np.stack([np.arange(40)] * 2, axis=1)
    system = made(JAMIE, whole, options={"ratio": 0.5})
    assert system.plan is not None
    assert set(system.step()) == set(JAMIE.weights)


@pytest.mark.usefixtures("no_plan")
def test_dropout_leaves_out_units_in_training_alone():
    plain, half = made(JAMIE), made(JAMIE, options={"dropout": 0.6})
    cells = plain.task.x["a"]
    for net in (plain.encoders["a"], half.encoders["a"]):
        assert [type(layer).__name__ for layer in net[1:3]] == ["BatchNorm", "_Activation"]
    units = half.encoders["a"][:3](cells)
    kept = units != 0
    assert float(kept.float().mean()) == pytest.approx(0.4, abs=0.1)
    # what is left is scaled up, so that means stay
    with torch.no_grad():
        np.testing.assert_allclose(units[kept] * 0.4, plain.encoders["a"][:3](cells)[kept], rtol=1e-5)
    for system in (plain, half):
        system.train(False)
    torch.testing.assert_close(half.encoders["a"](cells), plain.encoders["a"](cells))
    with pytest.raises(ValueError, match="`dropout` must be below 1"):
        made(JAMIE, options={"dropout": 1.0})


def test_dropout_is_in_all_hidden_layers():
    """Two in an encoder, two in a decoder."""
    system = made(JAMIE, options={"dropout": 0.5})
    for net, width in ((system.encoders["a"], 2), (system.decoders["b"], 2)):
        layers = [layer for layer in net if type(layer).__name__ == "_Activation"]
        assert len(layers) == width
        assert {layer.dropout for layer in layers} == {0.5}


@pytest.mark.usefixtures("no_plan")
def test_without_dropout_no_random_number_is_drawn():
    system = made(JAMIE)
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        system.encoders["a"](system.task.x["a"])
        torch.testing.assert_close(torch.get_rng_state(), before)


@pytest.mark.usefixtures("no_plan")
def test_equal_sizes_and_names_are_no_pairs():
    system = made(JAMIE)
    assert system.partners.nnz == 0
    drawn = system.batches()
    same = [float((rows["a"] == rows["b"]).float().mean()) for rows, _ in zip(drawn, range(50))]
    # chance is 1 in 40
    assert np.mean(same) < 0.06


@pytest.mark.usefixtures("no_plan")
def test_known_pairs_are_drawn_together():
    found = problem(200)
    found.known["a", "b"].__dict__["pairs"] = np.stack([np.arange(60), np.arange(60)[::-1] + 100], axis=1)
    system = made(JAMIE, found, batch_size=64)
    for rows, _ in zip(system.batches(), range(5)):
        assert len(rows["a"]) == len(rows["b"]) == 64
        assert len(set(rows["a"].tolist())) == len(set(rows["b"].tolist())) == 64
        known = system.partners[rows["a"].numpy()][:, rows["b"].numpy()].toarray() > 0
        assert known.sum() >= round(0.8 * 64)


@pytest.mark.usefixtures("no_plan")
@pytest.mark.parametrize("side", [0, 1])
def test_as_many_partners_as_cells_are_not_all_pairs(side: int):
    """Half of the cells of one side with two partners each: the others train, too."""
    found = problem(40)
    known = found.known["a", "b"].__dict__
    rows = np.stack([np.repeat(np.arange(20), 2), np.arange(40)], axis=1)[:, [side, 1 - side]]
    known["pairs"], known["partners"] = rows[::2], (rows, np.full(40, 0.5))
    m = "ab"[side]
    drawn = [of[m] for of, _ in zip(made(JAMIE, found, batch_size=20).batches(), range(30))]
    assert set(torch.cat(drawn).tolist()) == set(range(40))


@pytest.mark.usefixtures("no_plan")
def test_all_pairs_are_the_same_cells_on_both_sides():
    found = problem(40)
    found.known["a", "b"].__dict__["pairs"] = np.stack([np.arange(40), np.arange(40)[::-1]], axis=1)
    rows = next(made(JAMIE, found).batches())
    np.testing.assert_array_equal(rows["a"].numpy(), 39 - rows["b"].numpy())


@pytest.mark.usefixtures("no_plan")
def test_partners_with_weights_are_averaged_by_them():
    found = problem(60)
    known = found.known["a", "b"].__dict__
    rows, weight = np.array([[0, 5], [0, 6], [1, 7], [2, 7]]), np.array([0.25, 0.75, 1.0, 0.5])
    known["pairs"], known["partners"] = np.array([[0, 6], [1, 7]]), (rows, weight)
    system = made(JAMIE, found, batch_size=4)
    first = next(system.batches())
    assert {tuple(of) for of in np.stack([first["a"], first["b"]], 1)[:3].tolist()} <= {
        tuple(of) for of in rows.tolist()
    }
    # all seven cells in a batch
    at = {"a": torch.arange(3), "b": torch.tensor([5, 6, 7])}
    latent = {
        m: torch.as_tensor(np.random.default_rng(i).normal(size=(3, 32)), dtype=torch.float32)
        for i, m in enumerate("ab")
    }
    system.heads = {m: (z, torch.zeros_like(z)) for m, z in latent.items()}
    terms = system.terms(Batch(0, at, {m: system.task.x[m][rows] for m, rows in at.items()}, latent))
    c = np.array([[0.25, 0.75, 0], [0, 0, 1], [0, 0, 0.5]])
    share = system.others["share"]().detach().double().numpy()
    means = aggregated(latent["a"].numpy(), latent["b"].numpy(), c, share)
    wanted = sum(((z.numpy() - mean) ** 2).mean() for z, mean in zip(latent.values(), means))
    assert float(terms["combination"].detach()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.usefixtures("no_plan")
def test_training_ends_without_a_better_batch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jamie, "JAMIE_EPOCHS", 10)
    monkeypatch.setattr(jamie, "JAMIE_PATIENCE", 5)
    system = made(JAMIE, pairs=True)
    losses = [1.0] * 9 + [3.0, 2.0, 2.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    ends = [system.done(step, loss) for step, loss in enumerate(losses)]
    # the best from the 10th epoch on is that of the 11th
    assert ends.index(True) == 15


@pytest.mark.usefixtures("no_plan")
@pytest.mark.parametrize(("n", "m", "expected"), [(40, 500, 1), (1_023, 40, 1), (1_024, 40, 2), (40, 1_600, 3)])
def test_an_epoch_is_as_many_whole_batches_as_the_larger_side_has(n: int, m: int, expected: int):
    assert made(JAMIE, problem(n, m=m), batch_size=64).per_epoch == expected


@pytest.mark.usefixtures("no_plan")
def test_the_best_batch_of_an_epoch_counts(monkeypatch: pytest.MonkeyPatch):
    """Three batches an epoch, two epochs of patience after the second: training may end with an epoch alone."""
    monkeypatch.setattr(jamie, "JAMIE_EPOCHS", 2)
    monkeypatch.setattr(jamie, "JAMIE_PATIENCE", 2)
    system = made(JAMIE, pairs=True)
    system.per_epoch = 3
    losses = [[1, 1, 1], [9, 5, 9], [9, 9, 4], [9, 9, 9], [3, 9, 9], [9, 9, 3], [9, 9, 9], [1, 1, 1]]
    ends = [system.done(step, float(loss)) for step, loss in enumerate(np.ravel(losses))]
    assert ends.index(True) == 3 * 7 - 1
    assert sum(ends[: 3 * 7]) == 1


def test_networks_as_published():
    encoders, decoders = JAMIE.networks({"a": 30, "b": 300}, None)
    shapes = {
        m: [tuple(v.shape) for v in net.parameters() if v.ndim == 2]
        for m, net in {**encoders, "c": decoders["a"]}.items()
    }
    assert shapes["a"] == [(60, 30), (30, 60), (64, 30)]
    assert shapes["b"] == [(512, 300), (300, 512), (64, 300)]
    assert shapes["c"] == [(30, 32), (60, 30), (30, 60)]
    assert JAMIE.networks({"b": 300}, "published")[0]["b"][0].weight.shape == (600, 300)
