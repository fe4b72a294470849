"""Links that tell the target by regression alone, and which of them, their neighbours' or a plan tells more."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from scmmgan.model.evidence import readout
from scmmgan.model.space.linear import OUTLINE

Values = dict[str, np.ndarray]


def test_normal_scores():
    values = np.array([[3.0, 1.0], [1.0, 1.0], [9.0, 5.0], [2.0, 1.0]])
    found = readout.normal_scores(values)
    np.testing.assert_allclose(found[:, 0], norm.ppf([0.625, 0.125, 0.875, 0.375]))
    # the three that are alike share rank 2
    np.testing.assert_allclose(found[:, 1], norm.ppf([0.375, 0.375, 0.875, 0.375]))
    np.testing.assert_array_equal(readout.normal_scores(np.exp(values)), found)
    np.testing.assert_array_equal(readout.normal_scores(np.ones((5, 2))), np.zeros((5, 2)))


def test_neighbors_in_the_tissue_are_other_cells_of_the_same_sample():
    line = np.c_[np.arange(80.0), np.zeros(80)]
    found = readout.tissue_neighbors(line)
    assert found.shape == (80, 15)
    assert set(found[0]) == set(range(1, 16))
    # two samples in the same frame, one cell after the other
    places = np.repeat(line[:40], 2, axis=0)
    rows = [np.arange(0, 80, 2), np.arange(1, 80, 2)]
    found = readout.tissue_neighbors(places, rows)
    assert (found % 2 == np.arange(80)[:, None] % 2).all()
    assert not (found == np.arange(80)[:, None]).any()
    assert set(found[1]) == set(range(3, 33, 2))


def test_over_tissue_is_half_the_neighbors():
    rng = np.random.default_rng(0)
    values, neighbors = rng.normal(size=(6, 3)), rng.integers(0, 6, size=(6, 4))
    expected = [
        [0.5 * values[i, j] + 0.5 * np.mean([values[k, j] for k in neighbors[i]]) for j in range(3)] for i in range(6)
    ]
    np.testing.assert_allclose(readout.over_tissue(values, neighbors), expected)


def test_image_is_a_ridge_regression_in_the_target():
    rng = np.random.default_rng(1)
    target, x, source = rng.normal(size=(200, 4)), rng.normal(size=(200, 3)), rng.normal(size=(50, 4))
    x = x + target @ rng.normal(size=(4, 3))
    found = readout.image(source, target, x)
    centred = target - target.mean(0)
    gram = centred.T @ centred / 200
    slope = np.linalg.solve(gram + OUTLINE * np.trace(gram) / 4 * np.eye(4), centred.T @ (x - x.mean(0)) / 200)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x.mean(0) + (source - target.mean(0)) @ slope, atol=1e-5)


def weak(noise: float, groups: int = 0, seed: int = 0) -> tuple[Values, Values, Values]:
    """Cells of two modalities, places in the tissue, and 9 links: of two gradients over the tissue or of cells in `groups`."""
    rng = np.random.default_rng(seed)
    slopes, centres = rng.normal(size=(2, 9)), rng.normal(size=(max(groups, 1), 9))
    x, places, links = {}, {}, {}
    for m in ("a", "b"):
        places[m] = rng.uniform(size=(600, 2))
        if groups:
            of = rng.integers(groups, size=600)
            told, common = centres[of], np.eye(groups)[of]
        else:
            common = np.c_[np.sin(3 * places[m][:, 0]), np.cos(4 * places[m][:, 1])]
            common = (common - common.mean(0)) / common.std(0)
            told = common @ slopes
        links[m] = told + noise * rng.normal(size=(600, 9))
        x[m] = np.hstack([5 * common, rng.normal(size=(600, 4))]).astype(np.float32)
    return x, places, links


def tell(x: Values, links: Values, neighbors: Values, seed: int = 0) -> dict[str, float]:
    scores = {m: readout.normal_scores(v) for m, v in links.items()}
    linked = {m: ((v - v.mean(0)) / v.std(0)).astype(np.float32) for m, v in links.items()}
    told = readout.told(x, linked, scores, np.arange(9), neighbors, random_state=seed)["a", "b"]
    assert {v.shape for v in told.values()} == {(9,)}
    return {name: float(v.mean()) for name, v in told.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neighbors_tell_where_links_follow_the_tissue(seed: int):
    x, places, links = weak(noise=2.0, seed=seed)
    found = tell(x, links, {m: readout.tissue_neighbors(v) for m, v in places.items()}, seed)
    assert found["tissue"] > 1.1 * found["links"] > 1.1 * found["coupling"]
    # cells whose places say nothing have neighbours that say nothing
    rng = np.random.default_rng(seed)
    shuffled = tell(x, links, {m: readout.tissue_neighbors(rng.permutation(v)) for m, v in places.items()}, seed)
    assert shuffled["tissue"] < shuffled["links"]
    assert shuffled["links"] == found["links"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_coupling_tells_more_of_populations(seed: int):
    x, _, links = weak(noise=0.3, groups=12, seed=seed)
    found = tell(x, links, {}, seed)
    assert set(found) == {"coupling", "links"}
    assert found["coupling"] > found["links"] + 0.1


def test_links_of_one_feature_are_held_out_together():
    """Its noise in several links would bear itself out."""
    rng = np.random.default_rng(0)
    x, _, links = weak(noise=0.5)
    one = rng.normal(size=600)
    links["a"][:, :3] = one[:, None]
    links["b"][:, :3] = rng.normal(size=600)[:, None]
    scores = {m: readout.normal_scores(v) for m, v in links.items()}
    linked = {m: v.astype(np.float32) for m, v in links.items()}
    apart = readout.told(x, linked, scores, np.arange(9), {})["a", "b"]["links"]
    together = readout.told(x, linked, scores, np.array([0, 0, 0, 1, 2, 3, 4, 5, 6]), {})["a", "b"]["links"]
    assert apart[:3].min() > 0.5
    assert np.abs(together[:3]).max() < 0.2


def test_every_link_is_told_by_all_others():
    """Against one regression each; of more cells than are asked, and of links that vary against the others, too."""
    rng = np.random.default_rng(0)
    x, scores = {}, {}
    for m in ("a", "b"):
        common = rng.normal(size=(2_500, 1))
        links = common @ np.ones((1, 9)) + rng.normal(size=(2_500, 9))
        # the ninth link runs the other way in the source only
        links[:, 8] *= -1 if m == "a" else 1
        x[m], scores[m] = (
            np.hstack([common, rng.normal(size=(2_500, 2))]).astype(np.float32),
            readout.normal_scores(links),
        )
    found = readout.told(x, scores, scores, np.arange(9), {})
    for a, b in (("a", "b"), ("b", "a")):
        for f in range(9):
            rest = np.arange(9) != f
            told = readout.image(scores[a][:, rest], scores[b][:, rest], scores[b][:, [f]])[:, 0]
            expected = np.corrcoef(told, scores[a][:, f])[0, 1]
            # 2,000 of the 2,500 cells
            assert found[a, b]["links"][f] == pytest.approx(expected, abs=0.02)
        assert found[a, b]["links"][8] < -0.3
        assert found[a, b]["coupling"][8] < -0.3
