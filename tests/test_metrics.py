from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from scmmgan import metrics

PAIRED = [metrics.foscttm, metrics.recall_at_k, metrics.column_correlation, metrics.column_auroc]
SPACES = [metrics.mmd, metrics.two_sample_auc]


def brute_force_ranks(mapped: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mid-rank (0 best) of the partner, from mapped to measured and back, one pair of cells at a time."""
    n = len(mapped)
    distance = np.array([[np.linalg.norm(x - y) for y in measured] for x in mapped])
    forward = [stats.rankdata(distance[i])[i] - 1 for i in range(n)]
    backward = [stats.rankdata(distance[:, i])[i] - 1 for i in range(n)]
    return np.array(forward), np.array(backward)


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(83, 4))
    return measured + rng.normal(size=measured.shape), measured


@pytest.fixture(params=[2**22, 200], ids=["one block", "many blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_BLOCK", request.param)


@pytest.mark.usefixtures("block")
class TestRanks:
    def test_by_hand(self):
        measured, mapped = np.array([[0.0], [1.05], [3.0]]), np.array([[0.9], [1.1], [2.8]])
        # distances .9 .15 2.1 / 1.1 .05 1.9 / 2.8 1.75 .2: one of two others is nearer to the first mapped cell only
        assert metrics.foscttm(mapped, measured) == pytest.approx((1 / 2) / 3 / 2)
        assert metrics.recall_at_k(mapped, measured, k=1) == pytest.approx(2 / 3)
        assert metrics.recall_at_k(mapped, measured, k=2) == 1

    def test_ties_count_one_half(self):
        measured = np.array([[-1.0], [1.0], [5.0]])
        mapped = np.array([[0.0], [0.0], [5.0]])
        # forward: the first two cells are tied with each other (.5 of 2 others); backward: the same
        assert metrics.foscttm(mapped, measured) == pytest.approx((0.25 + 0.25 + 0) / 3)
        assert metrics.recall_at_k(mapped, measured, k=1) == 1

    @pytest.mark.parametrize("decimals", [0, 9], ids=["ties", "no ties"])
    def test_brute_force(self, noisy, decimals):
        mapped, measured = (np.round(x, decimals) for x in noisy)
        forward, backward = brute_force_ranks(mapped, measured)
        expected = (forward.mean() + backward.mean()) / 2 / (len(mapped) - 1)
        assert metrics.foscttm(mapped, measured) == pytest.approx(expected, abs=1e-12)
        for k in (1, 10, 83):
            assert metrics.recall_at_k(mapped, measured, k=k) == pytest.approx((forward < k).mean())

    def test_perfect_collapsed_and_random(self, noisy):
        measured = noisy[1]
        assert metrics.foscttm(measured, measured) == 0
        assert metrics.recall_at_k(measured, measured, k=1) == 1
        collapsed = np.repeat(measured.mean(0, keepdims=True), len(measured), axis=0)
        assert metrics.foscttm(collapsed, measured) == pytest.approx(0.5, abs=1e-12)
        shuffled = np.random.default_rng(1).permutation(np.repeat(measured, 10, axis=0))
        assert metrics.foscttm(shuffled, np.repeat(measured, 10, axis=0)) == pytest.approx(0.5, abs=0.03)

    def test_direction_of_roles_does_not_matter(self, noisy):
        mapped, measured = noisy
        assert metrics.foscttm(mapped, measured) == pytest.approx(metrics.foscttm(measured, mapped), abs=1e-12)


def test_memory_does_not_grow_with_the_square():
    cells = np.random.default_rng(0).normal(size=(5000, 2))
    full = 8 * len(cells) ** 2
    tracemalloc.start()
    try:
        metrics.foscttm(cells, cells)
        metrics.recall_at_k(cells, cells)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.35 * full


class TestLabelTransfer:
    cells = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    labels = ("T", "T", "T", "B", "B", "B")

    def test_by_hand(self):
        query = np.array([[0.5], [9.0], [13.0], [1.5]])
        truth = ["T", "B", "B", "B"]
        assert metrics.label_transfer(query, truth, self.cells, self.labels, k=3) == pytest.approx(3 / 4)

    def test_k_is_capped_at_the_reference(self):
        # all six vote: a draw, decided in favour of the first class
        assert metrics.label_transfer(self.cells, self.labels, self.cells, self.labels, k=50) == pytest.approx(0.5)

    def test_labels_of_other_types(self):
        numbers, categories = [0, 0, 0, 1, 1, 1], pd.Series(pd.Categorical(["0", "0", "0", "1", "1", "1"]))
        assert metrics.label_transfer(self.cells, numbers, self.cells, categories, k=1) == 1

    def test_brute_force(self):
        rng = np.random.default_rng(0)
        reference, query = rng.normal(size=(60, 3)), rng.normal(size=(40, 3))
        known, truth = rng.integers(0, 2, 60), rng.integers(0, 2, 40)
        near = np.argsort(((query[:, None] - reference[None]) ** 2).sum(2), axis=1)[:, :5]
        expected = ((known[near].mean(1) > 0.5) == truth).mean()
        assert metrics.label_transfer(query, truth, reference, known, k=5) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"query_labels": ["T"] * 5}, "5 entries"),
            ({"reference_labels": ["T", None, "T", "B", np.nan, "B"]}, "2 missing"),
            ({"query": np.zeros((6, 2))}, "2 columns"),
            ({"k": 0}, "at least one neighbour"),
        ],
    )
    def test_refused(self, change, message):
        good = {
            "query": self.cells,
            "query_labels": self.labels,
            "reference": self.cells,
            "reference_labels": self.labels,
        }
        with pytest.raises(ValueError, match=message):
            metrics.label_transfer(**(good | change))


class TestColumnCorrelation:
    def test_by_hand(self):
        measured = np.array([[0.0, 0.0, 5.0, 1.0], [1.0, 1.0, 5.0, 2.0], [2.0, 5.0, 5.0, 3.0]])
        mapped = np.array([[2.0, 1.0, 1.0, 7.0], [1.0, 2.0, 2.0, 7.0], [0.0, 3.0, 3.0, 7.0]])
        # column 2: truth constant; column 3: prediction constant
        pearson = [-1, 5 / np.sqrt(28), np.nan, 0]
        np.testing.assert_allclose(metrics.column_correlation(mapped, measured), pearson, atol=1e-12)
        spearman = [-1, 1, np.nan, 0]
        np.testing.assert_allclose(metrics.column_correlation(mapped, measured, method="spearman"), spearman)

    def test_constants_that_rounding_hides(self):
        measured = np.column_stack([np.full(30, 0.1), np.arange(30.0)])
        mapped = np.column_stack([np.arange(30.0), np.full(30, 0.1)])
        np.testing.assert_array_equal(metrics.column_correlation(mapped, measured), [np.nan, 0])

    @pytest.mark.usefixtures("block")
    @pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix, sp.csc_array, pd.DataFrame])
    @pytest.mark.parametrize("method", ["pearson", "spearman"])
    def test_scipy(self, convert, method):
        rng = np.random.default_rng(0)
        measured = rng.poisson(1.0, size=(50, 12)).astype(np.float32)
        mapped = measured + rng.poisson(1.0, size=measured.shape)
        reference = stats.pearsonr if method == "pearson" else stats.spearmanr
        expected = [reference(mapped[:, i], measured[:, i]).statistic for i in range(12)]
        result = metrics.column_correlation(convert(mapped), convert(measured), method=method)
        np.testing.assert_allclose(result, expected, atol=1e-6)

    def test_unknown_method(self, noisy):
        with pytest.raises(ValueError, match="'kendall'"):
            metrics.column_correlation(*noisy, method="kendall")


class TestMMD:
    def test_by_hand(self):
        mapped, measured = np.array([[0.0], [0.0]]), np.array([[0.0], [2.0]])
        # squared distances of the measured cells: 0 4 4 0, median 2
        far = np.mean([np.exp(-4 / (2 * s)) for s in (0.25, 0.5, 1, 2, 4)])
        expected = 1 + (1 + far) / 2 - 2 * (1 + far) / 2
        assert metrics.mmd(mapped, measured) == pytest.approx(expected, abs=1e-12)

    def test_orders(self):
        rng = np.random.default_rng(0)
        cells = rng.normal(size=(600, 3))
        same, shifted = metrics.mmd(cells[:300], cells[300:]), metrics.mmd(cells[:300] + 1, cells[300:])
        assert 0 <= same < 0.01
        assert shifted > 10 * same
        assert metrics.mmd(cells, rng.permutation(cells)) == pytest.approx(0, abs=1e-12)
        # two point masses far from each other, the largest value there is
        assert metrics.mmd(np.zeros((9, 1)), np.ones((9, 1))) == pytest.approx(2)

    def test_draws_cells(self):
        cells = np.random.default_rng(0).normal(size=(500, 2))
        first, again, other = (metrics.mmd(cells, cells + 1, n=50, random_state=seed) for seed in (1, 1, 2))
        assert first == again != other
        assert first == pytest.approx(metrics.mmd(cells, cells + 1), abs=0.15)


class TestTwoSampleAUC:
    cells = np.random.default_rng(0).normal(size=(1000, 3))

    def test_halves_of_the_same_data(self):
        assert metrics.two_sample_auc(self.cells[:500], self.cells[500:]) == pytest.approx(0.5, abs=0.06)

    def test_shifted(self):
        assert metrics.two_sample_auc(self.cells[:500] + 5, self.cells[500:]) > 0.99
        slightly = metrics.two_sample_auc(self.cells[:500] + 0.5, self.cells[500:])
        assert 0.6 < slightly < 0.9

    def test_true_partners_score_below_chance(self):
        assert metrics.two_sample_auc(self.cells, self.cells + 1e-6) < 0.4

    def test_sizes_are_made_equal(self):
        # without, one class would be nine times as frequent as the other
        assert metrics.two_sample_auc(self.cells[:100], self.cells[100:]) == pytest.approx(0.5, abs=0.12)

    def test_seed(self):
        first, again, other = (
            metrics.two_sample_auc(self.cells[:500], self.cells[500:], n=200, random_state=seed) for seed in (1, 1, 2)
        )
        assert first == again != other

    def test_too_few_cells(self):
        assert metrics.two_sample_auc(self.cells[:10] + 9, self.cells[10:20]) >= 0.5
        with pytest.raises(ValueError, match="at least 10 rows"):
            metrics.two_sample_auc(self.cells[:9], self.cells[10:20])
        with pytest.raises(ValueError, match="`n` is 9"):
            metrics.two_sample_auc(self.cells, self.cells, n=9)


@pytest.mark.parametrize("score", PAIRED + SPACES)
class TestInput:
    def test_nan(self, score, noisy):
        mapped, measured = noisy
        mapped[3, 1] = np.nan
        with pytest.raises(ValueError, match="`mapped` has 1 values that are NaN"):
            score(mapped, measured)
        with pytest.raises(ValueError, match="`measured` has 1 values"):
            score(measured, sp.csr_matrix(mapped))

    def test_one_dimension_or_one_cell(self, score, noisy):
        with pytest.raises(ValueError, match=r"must be a matrix .* shape \(83,\)"):
            score(noisy[0][:, 0], noisy[1][:, 0])
        with pytest.raises(ValueError, match="needs at least"):
            score(noisy[0][:1], noisy[1][:1])

    def test_text(self, score, noisy):
        with pytest.raises(ValueError, match="real numbers"):
            score(noisy[0].astype(str), noisy[1])

    def test_sparse_integer_and_inputs_untouched(self, score):
        rng = np.random.default_rng(0)
        mapped, measured = rng.poisson(2, (40, 5)), rng.poisson(2, (40, 5))
        before = mapped.copy(), measured.copy()
        dense = score(mapped, measured)
        np.testing.assert_allclose(score(sp.csr_matrix(mapped), sp.csc_array(measured)), dense)
        np.testing.assert_array_equal(mapped, before[0])
        np.testing.assert_array_equal(measured, before[1])

    def test_global_random_state_untouched(self, score, noisy):
        state = np.random.get_state()[1].copy()
        score(*noisy)
        np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("score", PAIRED)
def test_shape_mismatch(score, noisy):
    with pytest.raises(ValueError, match=r"\(82, 4\).*\(83, 4\)"):
        score(noisy[0][1:], noisy[1])


@pytest.mark.parametrize("score", SPACES)
def test_column_mismatch(score, noisy):
    with pytest.raises(ValueError, match="3 columns, `measured` 4"):
        score(noisy[0][:, 1:], noisy[1])


@pytest.mark.parametrize("k", [0, 84])
def test_recall_k_out_of_range(noisy, k):
    with pytest.raises(ValueError, match="between 1 and the number of cells, 83"):
        metrics.recall_at_k(*noisy, k=k)


class TestGiven:
    """Correlation of what covariates do not explain."""

    @staticmethod
    def cells(n: int = 200) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(0)
        depth, signal = rng.normal(size=n), rng.normal(size=n)
        measured = np.column_stack([depth + 0.5 * rng.normal(size=n), depth + signal])
        mapped = np.column_stack([depth + 0.5 * rng.normal(size=n), depth + signal + 0.3 * rng.normal(size=n)])
        return depth, mapped, measured

    @pytest.mark.parametrize("method", ["pearson", "spearman"])
    def test_against_the_formula(self, method):
        depth, mapped, measured = self.cells()
        rank = stats.rankdata if method == "spearman" else np.asarray
        found = metrics.column_correlation(mapped, sp.csr_matrix(measured), method=method, given=depth)
        for j in range(2):
            r = np.corrcoef([rank(mapped[:, j]), rank(measured[:, j]), rank(depth)])
            expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
            assert found[j] == pytest.approx(expected)
        plain = metrics.column_correlation(mapped, measured, method=method)
        # all that the first has is depth, the second has more
        assert plain.min() > 0.6
        assert abs(found[0]) < 0.15
        assert found[1] > 0.8

    def test_what_follows_from_the_covariates_is_nothing(self):
        depth, mapped, measured = self.cells()
        only = np.column_stack([3 * depth + 1, measured[:, 1]])
        np.testing.assert_array_equal(metrics.column_correlation(only, measured, given=depth)[:1], [0])
        assert np.isnan(metrics.column_correlation(mapped, only, given=depth)[0])

    def test_several_covariates(self):
        depth, mapped, measured = self.cells()
        more = np.column_stack([depth, mapped[:, 1] - depth])
        assert metrics.column_correlation(mapped, measured, given=more)[1] == 0
        # constant ones take nothing away
        np.testing.assert_allclose(
            metrics.column_correlation(mapped, measured, given=np.ones(200)),
            metrics.column_correlation(mapped, measured),
        )

    @pytest.mark.parametrize("given", [np.ones(3), np.full(200, np.nan), np.ones((200, 1, 1))])
    def test_refused(self, given):
        _, mapped, measured = self.cells()
        with pytest.raises(ValueError, match="given"):
            metrics.column_correlation(mapped, measured, given=given)


class TestMatchedLabels:
    def test_greedy_is_a_loop_in_the_order_of_rows(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(30, 2)), rng.normal(size=(40, 2))
        a, b = rng.integers(3, size=30), rng.integers(3, size=40)
        left, right = list(range(40)), 0
        for cell, label in zip(x, a):
            nearest = min(left, key=lambda j: np.linalg.norm(cell - y[j]))
            left.remove(nearest)
            right += int(b[nearest] == label)
        assert metrics.matched_label_accuracy(x, a, y, b) == right / 30
        nearest = np.linalg.norm(x[:, None] - y[None], axis=2).argmin(1)
        assert metrics.matched_label_accuracy(x, a, y, b, one_to_one=False) == (b[nearest] == a).mean()

    def test_those_that_find_none_left_are_not_counted(self):
        cells = np.array([[0.0], [0.1], [9.0]])
        assert metrics.matched_label_accuracy(cells, ["a", "b", "c"], cells[:1], ["a"]) == 1

    def test_blocks(self, monkeypatch):
        rng = np.random.default_rng(0)
        args = rng.normal(size=(30, 2)), rng.integers(3, size=30), rng.normal(size=(40, 2)), rng.integers(3, size=40)
        whole = metrics.matched_label_accuracy(*args)
        monkeypatch.setattr(metrics, "_BLOCK", 100)
        assert metrics.matched_label_accuracy(*args) == whole


def test_auroc_is_that_of_scikit_learn(noisy):
    from sklearn.metrics import roc_auc_score

    mapped, measured = noisy
    mapped[:, 0] = np.round(mapped[:, 0])  # ties
    expected = [roc_auc_score(y > np.median(y), x) for x, y in zip(mapped.T, measured.T)]
    np.testing.assert_allclose(metrics.column_auroc(mapped, measured), expected)
    # shuffled cells know nothing
    order = np.random.default_rng(0).permutation(len(mapped))
    assert abs(metrics.column_auroc(mapped[order], measured).mean() - 0.5) < 0.1


class TestJsDistance:
    def test_by_hand(self):
        x, y = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.0], [1.0], [1.0], [1.0]])
        p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
        m = (p + q) / 2
        expected = np.sqrt(((p * np.log2(p / m)).sum() + (q * np.log2(q / m)).sum()) / 2)
        assert metrics.column_js_distance(x, y, n_bins=2)[0] == pytest.approx(expected)

    def test_of_samples(self):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(2_000, 2)), rng.normal(loc=(0, 1), size=(1_500, 2))
        same, other = metrics.column_js_distance(a, b)
        assert same < 0.15 < 0.3 < other
        np.testing.assert_allclose(metrics.column_js_distance(b, sp.csr_matrix(a)), [same, other])
        assert metrics.column_js_distance(a[:, :1] * 0, a[:, :1] * 0)[0] == 0

    def test_refused(self, noisy):
        with pytest.raises(ValueError, match="3 columns, `measured` 4"):
            metrics.column_js_distance(noisy[0][:, 1:], noisy[1])
        with pytest.raises(ValueError, match="at least 2 bins"):
            metrics.column_js_distance(*noisy, n_bins=1)


def test_binomial_test():
    rng = np.random.default_rng(0)
    scores = rng.random(60)
    better = metrics.binomial_test(scores, scores - np.where(np.arange(60) < 45, 0.1, -0.1))
    assert better == {"wins": 45, "losses": 15, "share": 0.75, "p": pytest.approx(stats.binomtest(45, 60).pvalue)}
    tied = metrics.binomial_test([0.1, np.nan, 0.3], [0.1, 0.2, 0.3])
    assert (tied["wins"], tied["losses"], tied["p"]) == (0, 0, 1)
    assert np.isnan(tied["share"])
    with pytest.raises(ValueError, match="one number per feature"):
        metrics.binomial_test([1, 2], [1])
