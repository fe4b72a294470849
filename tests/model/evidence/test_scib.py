"""Scores of scib-metrics: high where modalities mix and labels stay apart."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import extra
from scmmgan.model.evidence.scib import check_scib, scib_scores


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "scib_metrics", None)
    with pytest.raises(ImportError, match=r"scmmgan\[scib\]"):
        check_scib()


def test_a_good_embedding_scores_higher_than_one_that_knows_nothing():
    extra("scib", "scib_metrics")
    rng = np.random.default_rng(0)
    codes = rng.integers(3, size=120)
    z = 6 * np.eye(3)[codes] + rng.normal(size=(120, 3))
    good = scib_scores((z[:60], z[60:]), (codes[:60], codes[60:]), random_state=0)
    bad = scib_scores((z[:60], rng.permutation(z[60:]) + 20), (codes[:60], codes[60:]), random_state=0)
    assert set(good) == set(bad)
    assert all(0 <= value <= 1 + 1e-6 for value, *_ in good.values())
    for name in ("scib iLISI", "scib silhouette label", "scib BRAS", "scib NMI", "scib ARI", "scib graph connectivity"):
        assert good[name][0] > bad[name][0]
    # without labels what needs none; cells without a label count where none is needed
    assert set(scib_scores((z[:60], z[60:]), None, random_state=0)) == {"scib iLISI"}
    codes[:30] = -1
    few = scib_scores((z[:60], z[60:]), (codes[:60], codes[60:]), random_state=0)
    assert (few["scib iLISI"][1], few["scib NMI"][1]) == (120, 90)
