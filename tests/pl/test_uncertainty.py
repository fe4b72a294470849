"""The three panels of an uncertainty, read back from the artists."""

from __future__ import annotations

import mudata as md
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from scmmgan import pl

SCORES = [0.9, 0.1, np.nan, 0.5, 0.2, 0.8, 0.3, 0.7]


@pytest.fixture
def scored(aligned: md.MuData) -> md.MuData:
    """Scores of the eight genes, one missing, G0 and G3 linked; the calibration of two."""
    var = aligned["spots"].var
    var["scmmgan_uncertainty"], var["scmmgan_uncertainty_coupling"] = SCORES, SCORES
    var["scmmgan_detection"] = np.linspace(0.2, 0.9, 8)
    aligned.uns["scmmgan"]["uncertainty"] = {
        "cells": {
            "spots": {
                "method": "coupling",
                "linked": np.array(["G0", "G3"], dtype=object),
                "calibration": pd.DataFrame({"feature": ["G0", "G3"], "predicted": [0.9, 0.5], "observed": [0.8, 0.6]}),
                "calibration_source": "held-out links",
            }
        }
    }
    return aligned


def labels(ax: plt.Axes) -> list[str]:
    return [tick.get_text() for tick in ax.get_yticklabels()]


def test_extremes_by_name(scored):
    axes = pl.uncertainty(scored, "cells", "spots", n_features=2, show=False)
    assert labels(axes[0]) == ["G1", "G4", "G5", "G0"]
    np.testing.assert_allclose([bar.get_width() for bar in axes[0].patches], [0.1, 0.2, 0.8, 0.9])
    assert axes[0].patches[0].get_facecolor() != axes[0].patches[3].get_facecolor()
    assert axes[0].texts[0].get_text() == "… 3 between …"
    assert axes[0].figure.get_suptitle() == "cells → spots: uncertainty of 7 features (coupling)"


def test_few_features_are_all_named(scored):
    axes = pl.uncertainty(scored, "cells", "spots", show=False)
    assert labels(axes[0]) == ["G1", "G4", "G6", "G3", "G7", "G5", "G0"]
    assert not axes[0].texts


def test_scores_against_detection(scored):
    ax = pl.uncertainty(scored, "cells", "spots", show=False)[1]
    drawn = {c.get_label(): np.asarray(c.get_offsets()) for c in ax.collections}
    assert set(drawn) == {"without linked feature (5)", "with linked feature (2)"}
    linked = drawn["with linked feature (2)"]
    np.testing.assert_allclose(linked[np.argsort(linked[:, 0])], [[0.2, 0.9], [0.5, 0.5]])
    assert "(1 rarely seen: no score)" in ax.get_xlabel()
    assert ax.get_xscale() == "linear"
    scored["spots"].var["scmmgan_detection"] = np.geomspace(1e-3, 1, 8)
    assert pl.uncertainty(scored, "cells", "spots", show=False)[1].get_xscale() == "log"


def test_calibration_of_few_and_of_many(scored):
    ax = pl.uncertainty(scored, "cells", "spots", show=False)[2]
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_offsets()), [[0.9, 0.8], [0.5, 0.6]])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0, 0], [1, 1]])
    assert len(ax.lines) == 1
    assert ax.get_ylabel() == "1 − r², held-out linked features"
    predicted = np.linspace(0, 1, 100)
    record = scored.uns["scmmgan"]["uncertainty"]["cells"]["spots"]
    record["calibration"] = pd.DataFrame({"feature": "G0", "predicted": predicted, "observed": 2 * predicted})
    record |= {"calibration_source": "known pairs", "coverage": 0.9, "coverage_reached": 0.895}
    ax = pl.uncertainty(scored, "cells", "spots", show=False)[2]
    medians = ax.lines[1].get_xydata()
    assert len(medians) == 10
    np.testing.assert_allclose(medians[:, 1], 2 * medians[:, 0])
    # errors beyond the population's variance are in the picture
    assert ax.get_ylim()[1] > 1.9
    assert ax.get_ylabel() == "error / variance, known pairs"
    assert "90% intervals cover 89.5%" in ax.get_xlabel()


def test_nothing_to_calibrate_on(scored):
    record = scored.uns["scmmgan"]["uncertainty"]["cells"]["spots"]
    for name in ("calibration", "calibration_source", "linked"):
        del record[name]
    axes = pl.uncertainty(scored, "cells", "spots", show=False)
    assert axes[2].texts[0].get_text() == "No pairs and no links:\nnothing to calibrate on."
    assert [c.get_label() for c in axes[1].collections] == ["without linked feature (7)"]
    record["n_with"] = 12
    axes = pl.uncertainty(scored, "cells", "spots", show=False)
    assert axes[2].texts[0].get_text() == "Too few links to hold some out:\nnothing to calibrate on."


def test_long_names_are_cut(scored):
    scored["spots"].var.index = ["a-very-long-name-of-a-feature", *scored["spots"].var_names[1:]]
    assert labels(pl.uncertainty(scored, "cells", "spots", show=False)[0])[-1] == "a-very-long-name-…"


def test_axes_and_show(scored, monkeypatch):
    _, axes = plt.subplots(1, 3)
    assert list(pl.uncertainty(scored, "cells", "spots", ax=axes, show=False)) == list(axes)
    assert axes[0].get_title() == "cells → spots: uncertainty of 7 features (coupling)"
    with pytest.raises(ValueError, match="needs 3 matplotlib axes"):
        pl.uncertainty(scored, "cells", "spots", ax=axes[0])
    assert isinstance(pl.uncertainty(scored, "cells", "spots", return_fig=True), Figure)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert pl.uncertainty(scored, "cells", "spots", show=True) is None
    assert shown == [1]


def test_refused_with_reasons(scored):
    with pytest.raises(KeyError, match=r"tl\.uncertainty\(mdata, 'spots', 'cells'\)"):
        pl.uncertainty(scored, "spots", "cells")
    with pytest.raises(ValueError, match="n_features"):
        pl.uncertainty(scored, "cells", "spots", n_features=0)
    scored["spots"].var["scmmgan_uncertainty"] = np.nan
    with pytest.raises(ValueError, match="No feature of 'spots' has a score"):
        pl.uncertainty(scored, "cells", "spots")
