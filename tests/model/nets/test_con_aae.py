"""Con-AAE: its margin loss against a reference, and what is trained by which optimizer."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from helpers import check_slopes
from scmmgan.model.nets.con_aae import ConAAE, contrastive_loss, mmd_loss
from systems import check_terms, made, passed, with_gaps


def reference(z: np.ndarray, labels: np.ndarray, margin: float = 0.3) -> float:
    found = []
    for i in np.flatnonzero(labels >= 0):
        own = [np.sqrt(((z[i] - z[j]) ** 2).sum()) for j in np.flatnonzero(labels == labels[i]) if j != i]
        other = [np.sqrt(((z[i] - z[j]) ** 2).sum()) for j in np.flatnonzero((labels >= 0) & (labels != labels[i]))]
        # a lone cell is from itself as far as the root has a slope
        found.append(max(0.0, max(own, default=1e-6) - min(other) + margin))
    return float(np.mean(found))


def test_margin_between_labels():
    """One cell without a label, one label with a single cell."""
    labels = np.array([0, 0, 1, 1, 1, 0, -1, 2, 0, 1, 0, 1])
    z = np.random.default_rng(0).normal(size=(12, 3))
    check_slopes(lambda v: contrastive_loss(v, torch.as_tensor(labels)), lambda v: reference(v, labels), z)
    # near enough for the lone cell to count
    check_slopes(lambda v: contrastive_loss(v, torch.as_tensor(labels)), lambda v: reference(v, labels), z / 20)


@pytest.mark.parametrize(("labels", "expected"), [([0, 0, 1, 1], 0.3), ([0, 0, 0, 0], 0.0), ([-1, -1, -1, -1], 0.0)])
def test_margin_at_its_bounds(labels: list[int], expected: float):
    """All cells alike: the margin; a batch of one label, or of none, says nothing."""
    z = torch.ones(4, 5, dtype=torch.float64, requires_grad=True)
    found = contrastive_loss(z, torch.tensor(labels))
    assert float(found.detach()) == pytest.approx(expected)
    found.backward()
    assert torch.isfinite(z.grad).all()
    far = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
    assert float(contrastive_loss(far, torch.tensor([0, 0, 1, 1]))) == 0


def width(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared distance of two different cells of both sides."""
    z = np.vstack([a, b])
    return float(np.mean([((z[i] - z[j]) ** 2).sum() for i in range(len(z)) for j in range(len(z)) if i != j]))


def mmd(a: np.ndarray, b: np.ndarray, mean: float) -> float:
    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        return sum(np.exp(-((u - v) ** 2).sum() / (mean * of)) for of in (0.25, 0.5, 1, 2, 4))

    sides = [(a, a, 1), (b, b, 1), (a, b, -2)]
    return float(sum(sign * np.mean([kernel(p, q) for p in u for q in v]) for u, v, sign in sides))


def test_mmd():
    """Unequal sides; the widths of the kernels are constants for the slope."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 0.5
    mean = width(a, b)
    check_slopes(mmd_loss, lambda u, v: mmd(u, v, mean), a, b)
    same = torch.as_tensor(a)
    assert float(mmd_loss(same, same.flip(0))) == pytest.approx(0, abs=1e-12)
    # in units of the cells' own distances
    assert float(mmd_loss(9 * same, 9 * torch.as_tensor(b))) == pytest.approx(mmd(a, b, mean))
    assert float(mmd_loss(torch.ones(3, 2), torch.ones(4, 2))) == 0


@pytest.mark.parametrize("weights", [{}, {"mmd": 10.0}])
def test_losses_are_those_of_the_equations(weights: dict[str, float]):
    """Batches of unequal size, cells without a label on both sides, some of the known pairs drawn together."""
    system, pairs, labels, rows = with_gaps(ConAAE, weights=weights)
    start: list[float] = []
    assert len(next(system.drawn)) == 4
    drawn = np.array([8, 1, 5, 2])
    system.drawn = iter([torch.as_tensor(drawn)])
    net = partial(passed, slope=0.01)

    def expected(x: dict[str, np.ndarray]) -> dict[str, float]:
        z = {m: net(system.encoders[m], v) for m, v in x.items()}
        a, b = (net(system.critics["z"], z[m])[:, 0] for m in "ab")
        reconstruction = cycle = classes = 0.0
        for m, other in ("ab", "ba"):
            reconstruction += float(((x[m] - net(system.decoders[m], z[m])) ** 2).mean())
            back = net(system.encoders[other], net(system.decoders[other], z[m]))
            cycle += float(((z[m] - back) ** 2).mean())
            logits = net(system.others["labels"], z[m])
            known = [(v, y) for v, y in zip(logits, labels[m][rows[m]]) if y >= 0]
            classes += float(np.mean([np.log(np.exp(v).sum()) - v[y] for v, y in known])) / 2
        ends = [net(system.encoders[m], system.task.x[m].numpy()[pairs[drawn, i]]) for i, m in enumerate("ab")]
        start.append(start[0] if start else width(z["a"], z["b"]))
        return {
            **({"mmd": mmd(z["a"], z["b"], start[0])} if weights else {}),
            "reconstruction": reconstruction,
            "adversarial": float(np.mean((a - 1) ** 2) / 2 + np.mean(b**2) / 2),
            "cycle": cycle,
            "contrast": reference(np.vstack([z["a"], z["b"]]), np.concatenate([labels[m][rows[m]] for m in "ab"])),
            "labels": classes,
            "anchors": float(((ends[0] - ends[1]) ** 2).mean()),
            "critic": float(np.mean(a**2) / 2 + np.mean((b - 1) ** 2) / 2),
        }

    check_terms(system, rows, expected)


def test_optimizers_are_those_of_the_program():
    system = made(ConAAE, labels=True)
    main, critic = system.optimizers(1e-4)
    rest, classifier = main.param_groups
    assert (rest["betas"], rest["weight_decay"]) == ((0.5, 0.999), 1e-4)
    assert (classifier["betas"], classifier["weight_decay"]) == ((0.9, 0.999), 0)
    assert len(classifier["params"]) == 2
    assert len(rest["params"]) + 2 == len(system.parameters())
    assert (critic.param_groups[0]["betas"], critic.param_groups[0]["weight_decay"]) == ((0.9, 0.999), 0)


def test_networks_as_published():
    encoders, decoders = ConAAE.networks({"a": 30, "b": 700}, None)
    kinds = [type(layer).__name__ for layer in encoders["a"]]
    assert kinds[:6] == ["Linear", "LeakyReLU", "BatchNorm", "Linear", "BatchNorm", "LeakyReLU"]
    sizes = {m: [tuple(v.shape) for v in net.parameters() if v.ndim == 2] for m, net in encoders.items()}
    assert sizes["a"] == [(30, 30), (30, 30), (30, 30), (100, 30), (50, 100)]
    assert sizes["b"] == [(512, 700), (512, 512), (512, 512), (100, 512), (50, 100)]
    assert [tuple(v.shape) for v in decoders["a"].parameters() if v.ndim == 2] == [
        (100, 50),
        (30, 100),
        (30, 30),
        (30, 30),
        (30, 30),
    ]
    wide = ConAAE.networks({"b": 700}, "published")[0]["b"]
    assert tuple(next(iter(wide.parameters())).shape) == (700, 700)


def test_terms_by_what_is_known():
    assert set(made(ConAAE).step()) == {"reconstruction", "adversarial", "cycle"}
    assert set(made(ConAAE, labels=True, pairs=True).step()) == set(ConAAE.weights) - {"mmd"}
    assert "mmd" in made(ConAAE, weights={"mmd": 10.0}).step()
