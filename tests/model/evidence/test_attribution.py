"""Integrated gradients: against captum on the whole chain of features, and against what they must add up to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from scmmgan.model.evidence import attribution
from scmmgan.model.nets.networks import BarycentricMap, Generator

P, P_OUT, E, F, N = 6, 5, 11, 3, 40


@pytest.fixture
def chain() -> dict:
    """A bent generator between linear maps: features (n × e) → z-scores → p → G → p' → mapped features."""
    rng = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        generator = Generator(P, P_OUT)
        for parameter in generator.body[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    features = rng.gamma(2.0, size=(N, E))
    mean = features.mean(0)
    weights = np.linalg.qr(rng.normal(size=(E, P)))[0].T / features.std(0)
    return {
        "generator": generator.eval(),
        "features": features,
        "mean": mean,
        "weights": weights,
        "x": ((features - mean) @ weights.T).astype(np.float32),
        "loadings": rng.normal(size=(P_OUT, F)),
    }


def by_cell(chain: dict, paths: attribution.PathGradients) -> np.ndarray:
    """Attributions (mapped features × n × e), all at once."""
    return (paths.gradient @ chain["weights"]) * (chain["features"] - chain["mean"])


def test_is_captum_on_the_whole_chain(chain: dict):
    paths = attribution.path_gradients(chain["generator"], chain["x"], chain["loadings"])
    weights, decoder, mean = (torch.tensor(chain[k], dtype=torch.float32) for k in ("weights", "loadings", "mean"))

    def whole(features: torch.Tensor) -> torch.Tensor:
        return chain["generator"]((features - mean) @ weights.T) @ decoder

    features = torch.tensor(chain["features"], dtype=torch.float32)
    for f in range(F):
        expected = IntegratedGradients(whole).attribute(
            features, baselines=mean[None], target=f, n_steps=64, method="gausslegendre"
        )
        np.testing.assert_allclose(by_cell(chain, paths)[f], expected.detach().numpy(), atol=1e-4)


def test_attributions_add_up_to_the_difference_of_predictions(chain: dict):
    paths = attribution.path_gradients(chain["generator"], chain["x"], chain["loadings"])
    with torch.inference_mode():
        at = [chain["generator"](torch.tensor(x)).numpy() @ chain["loadings"] for x in (chain["x"], 0 * chain["x"])]
    np.testing.assert_allclose(by_cell(chain, paths).sum(2).T, at[0] - at[1], atol=0.05 * np.abs(at[0] - at[1]).mean())
    np.testing.assert_allclose(paths.mapped.T, at[0], rtol=1e-4, atol=1e-4)
    assert (paths.gap(chain["x"]) < 0.02).all()


def test_coordinates_after_the_features_are_no_features(chain: dict):
    """A generator into a tissue emits places, too."""
    paths = attribution.path_gradients(chain["generator"], chain["x"], chain["loadings"])
    wide = Generator(P, P_OUT + 2)
    with torch.no_grad():
        for (name, value), own in zip(wide.named_parameters(), chain["generator"].parameters()):
            if value.shape == own.shape:
                value.copy_(own)
            else:
                assert name in ("skip.weight", "skip.bias", "body.6.weight", "body.6.bias")
                value[:P_OUT] = own
                value[P_OUT:] = 7
    found = attribution.path_gradients(wide, chain["x"], chain["loadings"])
    np.testing.assert_allclose(found.gradient, paths.gradient, atol=1e-5)
    np.testing.assert_allclose(found.mapped, paths.mapped, atol=1e-4)
    np.testing.assert_allclose(found.baseline, paths.baseline, atol=1e-5)


def test_gap_sees_what_is_missing(chain: dict):
    paths = attribution.path_gradients(chain["generator"], chain["x"], chain["loadings"])
    half = attribution.PathGradients(paths.gradient / 2, paths.mapped, paths.baseline)
    np.testing.assert_allclose(half.gap(chain["x"]), 0.5, atol=0.05)


def test_weights_of_the_model_stay_as_they_are(chain: dict):
    before = {k: v.clone() for k, v in chain["generator"].state_dict().items()}
    attribution.path_gradients(chain["generator"], chain["x"], chain["loadings"])
    assert all(torch.equal(before[k], v) for k, v in chain["generator"].state_dict().items())
    assert all(p.grad is None for p in chain["generator"].parameters())


@pytest.mark.parametrize("block", [1, 4, 100])
def test_pull_back_in_blocks(chain: dict, block: int):
    paths = attribution.path_gradients(chain["generator"], chain["x"], chain["loadings"])
    away = chain["features"] - chain["mean"]
    found = attribution.pull_back(paths.gradient, chain["x"], chain["weights"], lambda at: away[:, at], block=block)
    each = by_cell(chain, paths)
    np.testing.assert_allclose(found.size, np.abs(each).mean(1), rtol=1e-6)
    total = each.sum(2)
    np.testing.assert_allclose(
        found.share, np.einsum("fn,fne->fe", total, each) / (total**2).sum(1)[:, None], atol=1e-5
    )
    np.testing.assert_allclose(found.share.sum(1), 1, atol=1e-5)
    slope = [[np.polynomial.polynomial.polyfit(away[:, e], each[f, :, e], [1])[1] for e in range(E)] for f in range(F)]
    np.testing.assert_allclose(found.slope, np.array(slope) * away.std(0), rtol=1e-5, atol=1e-7)


def test_a_linear_map_has_its_coefficients(chain: dict):
    generator = Generator(P, P_OUT)  # starts without a bend
    paths = attribution.path_gradients(generator, chain["x"], chain["loadings"])
    slope = chain["loadings"].T @ generator.skip.weight.detach().numpy()
    np.testing.assert_allclose(
        paths.gradient, np.broadcast_to(slope[:, None], paths.gradient.shape), rtol=1e-4, atol=1e-5
    )
    away = chain["features"] - chain["mean"]
    found = attribution.pull_back(paths.gradient, chain["x"], chain["weights"], lambda at: away[:, at])
    np.testing.assert_allclose(found.slope, slope @ chain["weights"] * away.std(0), rtol=1e-4, atol=1e-5)


def test_a_feature_that_never_varies(chain: dict):
    paths = attribution.path_gradients(chain["generator"], chain["x"], np.zeros((P_OUT, 1)))
    found = attribution.pull_back(paths.gradient, chain["x"], chain["weights"], lambda at: 0 * chain["features"][:, at])
    assert np.isfinite(paths.gap(chain["x"])).all()
    for values in (found.size, found.share, found.slope):
        assert (values == 0).all()


def test_the_coupling_as_a_map(chain: dict):
    """Between remembered cells it bends a lot, and attributions still nearly add up."""
    generator = BarycentricMap(P, P_OUT)
    rng = np.random.default_rng(1)
    cells = torch.tensor(chain["x"])
    generator.start_from(torch.tensor(rng.normal(size=(P_OUT, P)), dtype=torch.float32), torch.zeros(P_OUT))
    generator.remember(
        cells[::2], torch.tensor(rng.normal(size=(N // 2, P_OUT)), dtype=torch.float32), torch.ones(N // 2)
    )
    paths = attribution.path_gradients(generator, chain["x"][1::2], chain["loadings"])
    assert (paths.gap(chain["x"][1::2]) < 0.3).all()
