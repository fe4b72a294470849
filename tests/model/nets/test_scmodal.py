"""scMODAL: every loss against a reference, mutual neighbours, links, geometry that a collapse does not win."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import check_slopes
from scmmgan.model.nets import scmodal
from scmmgan.model.nets.autoencoder import Batch
from scmmgan.model.nets.scmodal import ScMODAL
from scmmgan.model.problem import Links
from systems import check_terms, exact, made, passed, problem


def softplus(v: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, v)


def test_critic():
    rng = np.random.default_rng(0)
    check_slopes(
        scmodal.critic_loss,
        lambda a, b: float(softplus(-a).mean() + softplus(b).mean()),
        *(3 * rng.normal(size=(n, 1)) for n in (7, 5)),
    )
    assert float(scmodal.critic_loss(torch.zeros(4), torch.zeros(4))) == pytest.approx(2 * np.log(2))


def mutual(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    angle = np.array([[u @ v / np.sqrt((u @ u) * (v @ v)) for v in b] for u in a])
    found = np.zeros(angle.shape, dtype=bool)
    for p, q in np.ndindex(*angle.shape):
        found[p, q] = (angle[p] > angle[p, q]).sum() < k and (angle[:, q] > angle[p, q]).sum() < k
    return found


@pytest.mark.parametrize("k", [1, 3, 99])
def test_mutual_neighbors(k: int):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 4)), rng.normal(size=(15, 4))
    np.testing.assert_array_equal(
        scmodal.mutual_neighbors(torch.as_tensor(a), torch.as_tensor(b), k).numpy(), mutual(a, b, k)
    )


def test_neighbors_come_close():
    rng = np.random.default_rng(0)
    chosen = rng.random((8, 6)) < 0.3

    def reference(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([((a[p] - b[q]) ** 2).mean() for p, q in np.argwhere(chosen)]))

    check_slopes(
        lambda a, b: scmodal.neighbor_loss(a, b, torch.as_tensor(chosen)),
        reference,
        rng.normal(size=(8, 3)),
        rng.normal(size=(6, 3)),
    )
    nobody = torch.zeros(8, 6, dtype=torch.bool)
    assert float(scmodal.neighbor_loss(torch.randn(8, 3), torch.randn(6, 3), nobody)) == 0


def kernel(u: np.ndarray) -> np.ndarray:
    return np.array([[np.exp(-((p - q) ** 2).mean() / 2) for q in u] for p in u])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def off_diagonal(k: np.ndarray) -> np.ndarray:
    rows = np.stack([np.delete(row, i) for i, row in enumerate(k)])
    return rows - rows.mean(1, keepdims=True)


def test_geometry_as_published_and_centred():
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(10, 5)), 2 * rng.normal(size=(10, 3))
    published = lambda v: -float(np.minimum(cosine(kernel(x), kernel(v)), 0.975).mean())  # noqa: E731
    check_slopes(lambda v: scmodal.kernel_loss(torch.as_tensor(x), v), published, z)
    centred = lambda v: -float(cosine(off_diagonal(kernel(x)), off_diagonal(kernel(v))).mean())  # noqa: E731
    check_slopes(lambda v: scmodal.centred_loss(torch.as_tensor(x), v), centred, z)


def test_a_collapse_wins_the_published_geometry_only():
    """On a thousand features of noise all cells at one place have a cosine of more than .97."""
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.normal(size=(60, 1_000)))
    flat, good = torch.zeros(60, 20, dtype=torch.float64), x[:, :900]
    assert float(scmodal.kernel_loss(x, flat)) == pytest.approx(-0.975, abs=0.01)
    assert float(scmodal.centred_loss(x, flat)) == pytest.approx(0, abs=1e-6)
    assert float(scmodal.centred_loss(x, good)) < -0.8
    assert float(scmodal.centred_loss(x, x)) == pytest.approx(-1)


def test_networks_as_published():
    encoders, decoders = ScMODAL.networks({"a": 30}, None)
    assert [tuple(v.shape) for v in encoders["a"].parameters()] == [(512, 30), (512,), (20, 512), (20,)]
    assert [tuple(v.shape) for v in decoders["a"].parameters()] == [(512, 20), (512,), (30, 512), (30,)]
    assert all(0.07 < float(v.detach().std()) < 0.13 for v in encoders["a"].parameters() if len(v) > 20)


def test_links_are_needed_and_few_are_named(caplog: pytest.LogCaptureFixture):
    with pytest.raises(ValueError, match=r"method='scmodal'` needs links of 'a' and 'b'.*'scmodal-cca'"):
        made(ScMODAL)
    with caplog.at_level(logging.WARNING, logger="scmmgan"):
        made(ScMODAL, links=True)
    assert "'a' and 'b' have 6 links" in caplog.text


def test_columns_signs_and_weights_of_links():
    found = problem(links=True)
    known = found.known["a", "b"]
    links = replace(
        known.links,
        first=np.array([3, 0, 1, 2, 4, 5]),
        sign=np.array([1, -1, 1, 1, 1, 1.0]),
        weight=np.linspace(0.5, 1, 6),
    )
    system = made(ScMODAL, replace(found, known={("a", "b"): replace(known, links=links)}))
    columns, factor = system.linked["a", "b"]
    assert columns["a"].tolist() == [3, 0, 1, 2, 4, 5]
    assert columns["b"].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(factor.numpy(), np.linspace(0.5, 1, 6) * [1, -1, 1, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("geometry", ["kernel", "centred", None])
def test_terms(geometry: str | None):
    system = made(ScMODAL, links=True, geometry=geometry)
    terms = system.step()
    assert set(terms) == set(ScMODAL.weights) - ({"geometry"} if geometry is None else set())
    z = {m: system.encoders[m](v) for m, v in system.task.x.items()}
    assert float(system.critic_loss(Batch(0, {}, {}, z)).detach()) >= 0
    assert float(terms["adversarial"].detach()) <= 0


@pytest.mark.parametrize("geometry", ["kernel", "centred"])
def test_losses_are_those_of_the_equations(geometry: str):
    """More cells than neighbours, links of both signs and several weights, the first features in another order."""
    found = problem(links=True)
    known = found.known["a", "b"]
    links = Links(np.array([3, 0, 1, 2, 4, 5]), np.arange(6), np.array([1, 0.25, 1, 0.5, 1, 1]), np.array([1, -1, 1, -1, 1, 1.0]))  # fmt: skip
    found = replace(found, known={("a", "b"): replace(known, links=links)})
    system = exact(made(ScMODAL, found, geometry=geometry))
    rng = np.random.default_rng(0)
    rows = {m: rng.permutation(40)[:size].tolist() for m, size in (("a", 38), ("b", 36))}
    blocks = {m: system.task.x[m].numpy()[rows[m]] for m in "ab"}
    root = np.sqrt(links.weight)
    close = mutual(blocks["a"][:, links.first] * root * links.sign, blocks["b"][:, links.second] * root, 30)
    assert 0 < close.sum() < close.size
    compared = {m: kernel(v) for m, v in blocks.items()}

    def expected(x: dict[str, np.ndarray]) -> dict[str, float]:
        z = {m: passed(system.encoders[m], v) for m, v in x.items()}
        a, b = (passed(system.critics["a, b"], z[m]) for m in "ab")
        critic = float(softplus(-a).mean() + softplus(b).mean())
        reconstruction = cycle = shape = 0.0
        for m, other in ("ab", "ba"):
            reconstruction += float(((x[m] - passed(system.decoders[m], z[m])) ** 2).mean())
            back = passed(system.encoders[other], passed(system.decoders[other], z[m]))
            cycle += float(((z[m] - back) ** 2).mean())
            two = compared[m], kernel(z[m])
            if geometry == "kernel":
                shape -= float(np.minimum(cosine(*two), 0.975).mean())
            else:
                shape -= float(cosine(*map(off_diagonal, two)).mean())
        return {
            "adversarial": -critic,
            "reconstruction": reconstruction,
            "cycle": cycle,
            "links": float(np.mean([((z["a"][p] - z["b"][q]) ** 2).mean() for p, q in np.argwhere(close)])),
            "geometry": shape,
            "critic": critic,
        }

    check_terms(system, rows, expected)


def test_three_modalities_are_a_chain():
    """One critic, one latent cycle and one set of links for each two in a row: none of the first and the last."""
    found = problem(links=True)
    known, third = found.known["a", "b"], replace(found.modalities["b"], name="c")
    three = {("a", "b"): known, ("b", "c"): replace(known, names=("b", "c"))}
    system = exact(made(ScMODAL, replace(found, modalities={**found.modalities, "c": third}, known=three)))
    assert list(system.critics) == ["a, b", "b, c"]
    rng = np.random.default_rng(0)
    rows = {m: torch.as_tensor(rng.permutation(40)[:35]) for m in "abc"}
    x = {m: system.task.x[m][of] for m, of in rows.items()}
    z = system.encode(x)
    batch = Batch(0, rows, x, z)
    terms, wanted = system.terms(batch), dict.fromkeys(("adversarial", "cycle", "links"), 0.0)
    for a, b in ("ab", "bc"):
        critic = system.critics[f"{a}, {b}"]
        wanted["adversarial"] -= float(scmodal.critic_loss(critic(z[a]), critic(z[b])).detach())
        wanted["links"] += float(
            scmodal.neighbor_loss(z[a], z[b], scmodal.mutual_neighbors(x[a][:, :6], x[b][:, :6])).detach()
        )
        for s, t in ((a, b), (b, a)):
            wanted["cycle"] += float(((z[s] - system.encoders[t](system.decoders[t](z[s]))) ** 2).mean().detach())
    for name, value in wanted.items():
        assert float(terms[name].detach()) == pytest.approx(value, rel=1e-9), name
    assert float(system.critic_loss(batch).detach()) == pytest.approx(-wanted["adversarial"], rel=1e-9)


def test_logits_are_cut_off():
    system = made(ScMODAL, links=True)
    far = {"a": torch.full((4, 20), -1e6), "b": torch.full((4, 20), 1e6)}
    assert float(system.critic_loss(Batch(0, {}, {}, far)).detach()) <= 100 + 1e-4
