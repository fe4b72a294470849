"""How many steps of smoothing suit what is known (benchmarks/accuracy.md, "How much is smoothed")."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from scmmgan import metrics
from scmmgan.data import modality as _domain
from scmmgan.model.coupling import couple as _prior

if TYPE_CHECKING:
    import pandas as pd
    from mudata import MuData

    from scmmgan.data.modality import Domain

logger = logging.getLogger("scmmgan")

Pair = tuple[str, str]
LINKED = 2  # steps where links decide
FINE, COARSE = 1, 3  # between which known pairs choose; shapes are matched over what many cells share
OWN_SHARE = 0.3  # of a cell's own values in model space (benchmarks/accuracy.md, "What model space keeps of a cell")
FOLDS = 5
MAX_PAIRS = 1_000  # that are held out in turn


def read_domains(
    mdata: MuData,
    names: list[str],
    *,
    smooth: Mapping[str, int | str | None],
    links: Mapping[Pair, pd.DataFrame],
    pairs: Mapping[Pair, np.ndarray],
    denoise: bool | None = None,
    own_share: float | None = None,
    **how: Any,
) -> tuple[list[Domain], bool, dict[str, Any]]:
    """Modalities in model space, whether it is a shared one, and how they were read.

    `denoise`, `own_share`: by default yes and .3 where links or pairs decide, else no and 0.
    """
    shared = _domain.shared_names(mdata, names, links=links, use_rep=how["use_rep"], mask_var=how["mask_var"])
    # a panel is measured deeply, and in a shared space a cell keeps much of what it is
    fine = [m for m in names if shared is not None or mdata[m].n_vars < _domain.PANEL]
    steps = candidates(smooth, fine, links, pairs)
    known = _prior.all_known(names, links, pairs)
    # shapes are matched over coarse neighbourhoods, of cells that are alike
    how["denoise"] = known if denoise is None else denoise
    how["own_share"] = OWN_SHARE * known if own_share is None else own_share
    found = [_domain.read_domains(mdata, names, smooth=of, links=links, **how) for of in steps]
    best = fewest_mistakes([domains for domains, _ in found], pairs)
    kept = max(d.own_share for d in found[best][0])
    return *found[best], {"smooth": steps[best], "denoise": how["denoise"], "own_share": kept}


def candidates(
    smooth: Mapping[str, int | str | None],
    fine: Sequence[str],
    tables: Mapping[Pair, pd.DataFrame],
    pairs: Mapping[Pair, np.ndarray],
) -> list[dict[str, Any]]:
    """Steps by modality that come into question where `smooth` says "auto": two where pairs decide, which can choose.

    `fine`: modalities of which links take one step only.
    """
    if "auto" not in smooth.values():
        return [dict(smooth)]
    if not _prior.all_known(list(smooth), tables, pairs):
        steps = [dict.fromkeys(smooth, COARSE)]
    elif all(_prior.links_decide(*pair, tables, pairs) for pair in combinations(smooth, 2)):
        steps = [{m: FINE if m in fine else LINKED for m in smooth}]
    else:
        steps = [dict.fromkeys(smooth, t) for t in (FINE, COARSE)]
    return [{m: of[m] if own == "auto" else own for m, own in smooth.items()} for of in steps]


def fewest_mistakes(candidates: Sequence[Sequence[Domain]], pairs: Mapping[Pair, np.ndarray]) -> int:
    """Which of some model spaces lets known pairs be found again best, each of them held out once."""
    if len(candidates) == 1:
        return 0
    mistakes = [held_out_mistakes({d.name: d.x for d in domains}, pairs) for domains in candidates]
    told = ", ".join(f"{100 * share:.1f} %" for share in mistakes)
    logger.info(
        "Cells nearer than the partner of a held-out pair, after %d and %d steps of smoothing: %s.", FINE, COARSE, told
    )
    return int(np.argmin(mistakes))


def held_out_mistakes(x: Mapping[str, np.ndarray], pairs: Mapping[Pair, np.ndarray]) -> float:
    """FOSCTTM of known pairs that ridge regressions on four fifths of the others map, mean over pairs of modalities."""
    from scmmgan.model.coupling.views import MIN_PROFILES
    from scmmgan.model.space.linear import OUTLINE, ridge

    found = []
    for of, rows in pairs.items():
        if len(rows) < MIN_PROFILES:
            continue
        rows = rows[np.random.default_rng(0).permutation(len(rows))[:MAX_PAIRS]]
        own = [(x[m][at] / x[m].std()).astype(np.float64) for m, at in zip(of, rows.T)]
        mapped = [np.empty_like(v) for v in own]
        fold = np.arange(len(rows)) % FOLDS
        for out in (fold == f for f in range(FOLDS)):
            for i in (0, 1):
                weight, bias = ridge(own[1 - i][~out], own[i][~out], np.ones((~out).sum()), penalty=OUTLINE)
                mapped[i][out] = own[1 - i][out] @ weight.T + bias
        found.append(metrics.foscttm(np.hstack([own[0], mapped[1]]), np.hstack([mapped[0], own[1]])))
    return float(np.mean(found))
