"""Links as cells show them or smoothed: the choice, on links whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from scmmgan.model.evidence.linked import least_noisy

Values = dict[str, np.ndarray]


def problem(noise: float, blur: float, n_links: int = 20, seed: int = 0) -> tuple[Values, Values, Values]:
    """Cells, their links as measured (with `noise` of every value) and smoothed (cells taken for others, by `blur`)."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(size=(3, n_links))
    x, own, smoothed = {}, {}, {}
    for m in ("a", "b"):
        common = rng.normal(size=(400, 3))
        x[m] = np.hstack([common, rng.normal(size=(400, 3))]).astype(np.float32)
        own[m] = common @ slopes + noise * rng.normal(size=(400, n_links))
        smoothed[m] = (common + blur * rng.normal(size=(400, 3))) @ slopes
    z = [{m: ((v - v.mean(0)) / v.std(0)).astype(np.float32) for m, v in d.items()} for d in (own, smoothed)]
    return x, z[0], z[1]


@pytest.mark.parametrize(
    ("noise", "blur", "n_links", "measured"),
    [
        (0.3, 1.0, 20, True),
        (0.3, 0.1, 20, True),
        (3.0, 0.1, 20, False),
        (3.0, 1.0, 20, False),
        (0.3, 1.0, 4, True),
        (4.0, 0.1, 4, False),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_own_values_serve_where_they_are_no_noise(noise: float, blur: float, n_links: int, measured: bool, seed: int):
    x, own, smoothed = problem(noise, blur, n_links, seed)
    kept = {m: v.copy() for m, v in own.items()}
    found = least_noisy(x, own, smoothed, np.arange(n_links), random_state=seed)
    assert found is (own if measured else smoothed)
    for m, v in own.items():
        np.testing.assert_array_equal(v, kept[m])


def test_noise_of_one_feature_is_no_agreement_of_its_links():
    """A gene with many peaks: its noise is in all of their links, and must not bear itself out."""
    rng = np.random.default_rng(0)
    x, own, smoothed = problem(0.1, 0.1, 20)
    for values, noise in ((own, 2.0), (smoothed, 0.1)):
        # four genes of modality a, five links each; the other side is measured well
        gene = np.repeat(x["a"][:, :3] @ rng.normal(size=(3, 4)) + noise * rng.normal(size=(400, 4)), 5, axis=1)
        values["a"] = (gene / gene.std(0)).astype(np.float32)
    # every gene's peaks vary together
    slopes = np.linalg.lstsq(x["a"][:, :3], smoothed["a"][:, ::5], rcond=None)[0]
    peaks = np.repeat(x["b"][:, :3] @ slopes, 5, axis=1) + 0.1 * rng.normal(size=(400, 20))
    own["b"] = smoothed["b"] = (peaks / peaks.std(0)).astype(np.float32)
    groups = np.repeat(np.arange(4), 5)
    assert least_noisy(x, own, smoothed, groups) is smoothed
    # as if they had nothing in common
    assert least_noisy(x, own, smoothed, np.arange(20)) is own


def test_the_same_every_time():
    x, own, smoothed = problem(1.0, 0.5)
    state = np.random.get_state()[1].copy()
    assert least_noisy(x, own, smoothed, np.arange(20)) is least_noisy(x, own, smoothed, np.arange(20))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
