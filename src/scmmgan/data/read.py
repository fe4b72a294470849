"""What an alignment starts from: the modalities and all that is known about them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import known as _known
from scmmgan.data import modality as _domain
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.coupling import couple as _prior
from scmmgan.model.evidence import populations as _evidence
from scmmgan.model.evidence import readings as _smoothing

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.data.modality import Domain
    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.nets.aligner import Aligner, Loadings

Pair = tuple[str, str]
DEFAULTS: dict[str, Any] = {"smooth": "auto", "n_pcs": 50, "noise_dim": 0}  # of modalities that a dict leaves out


@dataclass(frozen=True)
class Problem:
    """Modalities in model space, link tables, row numbers of known pairs, label codes and their vocabulary.

    `read_by`: diffusion steps by modality (`smooth`), whether on graphs of denoised components (`denoise`), and the share of
    own values (`own_share`).
    """

    domains: list[Domain]
    shared: bool
    tables: Mapping[Pair, pd.DataFrame]
    pairs: Mapping[Pair, np.ndarray]
    labels: Mapping[str, np.ndarray] | None
    label_names: Sequence[str]
    known: str  # hash of links, pairs and labels
    read_by: dict[str, Any]

    @property
    def x(self) -> dict[str, np.ndarray]:
        """Model-space cells of every modality."""
        return {d.name: d.x for d in self.domains}

    @property
    def as_used(self) -> dict[str, Any]:
        """What `params` keep of how it was read."""
        return {"known": self.known, **self.read_by}

    def couple(
        self, random_state: int, n_landmarks: int | None = None
    ) -> tuple[dict[Pair, Coupling], dict[Pair, Loadings]]:
        """Couplings of all ordered pairs, and the linked features' loadings."""
        return _prior.couplings(
            self.domains, self.tables, self.pairs, self.labels, shared=self.shared, random_state=random_state,
            n_landmarks=n_landmarks,
        )  # fmt: skip

    def diagnose(
        self, couplings: Mapping[Pair, Coupling], random_state: int
    ) -> tuple[dict[Pair, dict[str, Any]], dict[Pair, np.ndarray]]:
        """Records of what supports the couplings, and ambiguous cells."""
        return _evidence.diagnose_couplings(
            self.domains, couplings, self.tables, self.pairs, self.labels, self.label_names,
            shared=self.shared, random_state=random_state,
        )  # fmt: skip


def read(
    mdata: MuData,
    names: list[str],
    per_modality: Mapping[str, dict[str, Any]],
    *,
    links: str | pd.DataFrame | None,
    pairs: str | pd.DataFrame | None,
    random_state: int,
    denoise: bool | None = None,
    own_share: float | None = None,
) -> Problem:
    """Check and read what `per_modality` (arguments of `tl.align` by modality) and the other arguments name.

    `denoise`, `own_share`: as for `_smoothing.read_domains`.
    """
    tables = _prior.tables(mdata, names, links, per_modality["use_rep"])
    known = _known.read_pairs(mdata, names, pairs)
    codes = _known.read_labels(mdata, names, per_modality["labels"])
    label_names = _known.label_names(mdata, names, per_modality["labels"])
    batches = _known.read_batches(mdata, names, per_modality["batch"])
    how: dict[str, Any] = {name: per_modality[name] for name in ("layer", "use_rep", "mask_var", "smooth", "n_pcs")}
    how |= {"pairs": known, "batches": batches, "labels": codes, "denoise": denoise, "own_share": own_share}
    how["random_state"] = random_state
    explicit = not (isinstance(links, str) and links == "auto")
    hashed = _hash(tables, known, codes, label_names)
    found = _smoothing.read_domains(mdata, names, links=tables, **how)
    told = _prior.telling(tables, {d.name: d for d in found[0]}, explicit=explicit)
    if set(told) != set(tables):
        # links of constant features decide nothing, nor how much is smoothed
        found = _smoothing.read_domains(mdata, names, links=told, **how)
    domains, shared, read_by = found
    return Problem(domains, shared, told, known, codes, label_names, hashed, read_by)


def _hash(
    tables: Mapping[Pair, pd.DataFrame],
    pairs: Mapping[Pair, np.ndarray],
    labels: Mapping[str, np.ndarray] | None,
    label_names: Sequence[str],
) -> str:
    """What is known beside the values, as a hash: the same after a file, on any machine."""
    parts: list[object] = [[str(name) for name in label_names]]
    for (source, target), table in tables.items():
        names = [[str(name) for name in table[m]] for m in (source, target)]
        parts += [source, target, *names, table["sign"].tolist(), table["weight"].round(6).tolist()]
    parts += [[pair, rows.tolist()] for pair, rows in pairs.items()]
    parts += [[name, codes.tolist()] for name, codes in (labels or {}).items()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def reread(mdata: MuData, keys: Keys) -> Problem:
    """The problem of an alignment that is there, from its stored arguments; its seed gives the same model space."""
    params = _slots.record(mdata, keys)["params"]
    names = [str(m) for m in params["modalities"]]
    _slots.check_aligned(mdata, names, keys)
    read_by = ("layer", "use_rep", "mask_var", "smooth", "n_pcs", "labels", "batch")
    per = {name: {m: argument(params, name, m) for m in names} for name in read_by}
    for name in ("smooth", "n_pcs"):
        per[name] = {m: None if v is None else int(v) for m, v in per[name].items()}
    prior: dict[str, Any] = {name: given(params[name]) for name in ("links", "pairs")}
    # files from before there was a choice have none
    prior |= {"denoise": bool(params.get("denoise", False)), "own_share": float(params.get("own_share", 0.0))}
    problem = read(mdata, names, per, random_state=int(params["random_state"]), **prior)
    if problem.known != str(params["known"]):
        raise ValueError(
            f"Links, pairs or labels are no longer those that {keys.key!r} was aligned with. Restore their columns, or align "
            "again."
        )
    for d in problem.domains:
        before = _slots.model_space(mdata, d.name, d.name, keys)
        # another machine may round otherwise
        if before.shape != d.x.shape or np.abs(before - d.x).max() > 0.01:
            raise ValueError(f"{d.name!r} is no longer what was aligned as {keys.key!r}: align it again.")
    return problem


def given(stored: Any) -> Any:
    """An argument as it was before it was made storable."""
    if isinstance(stored, np.generic):
        return stored.item()
    return None if isinstance(stored, str) and stored == "None" else stored


def training_settings(params: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """What `methods.fit` takes to train once more as with these stored arguments, without a progress bar."""
    from scmmgan.model.nets import methods

    found = {name: given(params[name]) for name in signature(methods.fit).parameters if name in params}
    weights = {str(name): float(weight) for name, weight in params["weights"].items()}
    return {**found, "weights": weights, "device": "cpu", "shared": problem.shared, "progress_bar": False}


def coupling_map(problem: Problem, params: Mapping[str, Any]) -> Aligner:
    """The coupling that a training with these stored arguments starts from, as a map of its own."""
    from scmmgan.model.nets import methods

    settings = training_settings(params, problem) | {"method": "coupling", "noise_dim": 0}
    couplings, loadings = problem.couple(int(settings["random_state"]))
    return methods.fit(x=problem.x, couplings=couplings, loadings=loadings, **settings)[0]


def images(aligner: Aligner, x: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], pair: Pair) -> np.ndarray:
    """Mapped cells of both directions as one vector, every target in units of its sd."""
    parts = []
    for s, t in (pair, pair[::-1]):
        mapped = aligner.translate(x[s][rows[s]], s, t)
        parts.append((mapped - mapped.mean(0)).ravel() / x[t].std())
    return np.concatenate(parts)


def argument(params: Mapping[str, Any], name: str, modality: str) -> Any:
    """One argument of `tl.align`, from the stored ones, as it was for one modality."""
    names = [str(m) for m in params["modalities"]]
    return given(_domain.per_modality(given(params[name]), names, name, DEFAULTS.get(name))[modality])
