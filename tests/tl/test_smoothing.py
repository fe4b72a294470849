"""Steps of smoothing follow what is known; held-out pairs choose where they decide."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.tl import _smoothing

AUTO = {"a": "auto", "b": "auto"}
TABLE = {("a", "b"): pd.DataFrame()}
MANY, FEW = ({("a", "b"): np.zeros((k, 2), dtype=int)} for k in (100, 99))


@pytest.mark.parametrize(
    ("smooth", "fine", "tables", "pairs", "expected"),
    [
        (AUTO, [], {}, {}, [{"a": 3, "b": 3}]),
        (AUTO, ["b"], {}, FEW, [{"a": 3, "b": 3}]),
        (AUTO, [], TABLE, {}, [{"a": 2, "b": 2}]),
        (AUTO, ["b"], TABLE, {}, [{"a": 2, "b": 1}]),
        (AUTO, ["b"], TABLE, MANY, [{"a": 2, "b": 1}]),
        (AUTO, ["b"], {}, MANY, [{"a": 1, "b": 1}, {"a": 3, "b": 3}]),
        ({"a": 5, "b": "auto"}, [], {}, MANY, [{"a": 5, "b": 1}, {"a": 5, "b": 3}]),
        ({"a": 5, "b": None}, [], {}, MANY, [{"a": 5, "b": None}]),
    ],
)
def test_what_is_known_decides(smooth: Any, fine: Any, tables: Any, pairs: Any, expected: Any):
    assert _smoothing.candidates(smooth, fine, tables, pairs) == expected


def test_of_three_modalities_all_must_be_known():
    smooth = dict.fromkeys("abc", "auto")
    linked = {pair: pd.DataFrame() for pair in (("a", "b"), ("a", "c"))}
    assert _smoothing.candidates(smooth, [], linked, {}) == [dict.fromkeys("abc", 3)]
    paired = {("b", "c"): MANY["a", "b"]}
    assert _smoothing.candidates(smooth, [], linked, paired) == [dict.fromkeys("abc", t) for t in (1, 3)]


def spaces(noise: float, n: int = 300) -> list[Any]:
    """Two views of the same cells, in model space."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 4))
    views = {m: z @ rng.normal(size=(4, 12)) + noise * rng.normal(size=(n, 12)) for m in "ab"}
    return [SimpleNamespace(name=m, x=x.astype(np.float32)) for m, x in views.items()]


def test_held_out_pairs_choose(caplog: pytest.LogCaptureFixture):
    pairs = {("a", "b"): np.repeat(np.random.default_rng(1).permutation(300)[:150, None], 2, axis=1)}
    clear, vague = spaces(0.1), spaces(3.0)
    with caplog.at_level(logging.INFO, logger="scmmgan"):
        assert _smoothing.fewest_mistakes([clear, vague], pairs) == 0
    assert _smoothing.fewest_mistakes([vague, clear], pairs) == 1
    assert "after 1 and 3 steps of smoothing" in caplog.text
    # nothing to choose between: the pairs are not asked
    assert _smoothing.fewest_mistakes([vague], {}) == 0


def test_mistakes_are_those_of_pairs_held_out():
    """Partners that are none are found by chance: a map that saw the pairs it is judged by would do better."""
    x = {d.name: d.x for d in spaces(0.1)}
    rows = np.arange(150)
    right = {("a", "b"): np.stack([rows, rows], axis=1)}
    wrong = {("a", "b"): np.stack([rows, np.random.default_rng(2).permutation(rows)], axis=1)}
    assert _smoothing.held_out_mistakes(x, right) < 0.01
    assert _smoothing.held_out_mistakes(x, wrong) == pytest.approx(0.5, abs=0.05)
    # too few pairs of other modalities have no say
    assert _smoothing.held_out_mistakes(x, {**wrong, ("b", "a"): right["a", "b"][:99]}) > 0.4


def test_steps_as_used_are_stored_and_read_again():
    mdata = smm.datasets.toy()
    smm.tl.align(mdata, links="gene", max_steps=20, progress_bar=False)
    assert mdata.uns["scmmgan"]["params"]["smooth"] == {"rna": 2, "protein": 1}
    smm.tl.diagnose(mdata)
    equal = smm.datasets.toy(shared_genes=True)
    smm.tl.align(equal, max_steps=20, progress_bar=False)
    assert equal.uns["scmmgan"]["params"]["shared_space"]
    assert equal.uns["scmmgan"]["params"]["smooth"] == {"rna": 1, "protein": 1}
    smm.tl.align(mdata, links=None, max_steps=20, progress_bar=False)
    assert mdata.uns["scmmgan"]["params"]["smooth"] == {"rna": 3, "protein": 3}
