"""What maps cells as plain arrays and a JSON string: the entry `model` of a record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scmmgan.data.modality import per_modality
from scmmgan.model.problem import Modality, Pair, Problem
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.imputation import Imputation
from scmmgan.model.space.reference import references

if TYPE_CHECKING:
    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.nets.aligner import Aligner
    from scmmgan.model.nets.latent import Fitted


def coupled(
    domains: Mapping[str, Domain],
    aligner: Aligner,
    couplings: Mapping[Pair, Coupling],
    imputations: Mapping[Pair, Imputation],
    params: Mapping[str, Any],
    *,
    save_model: bool,
) -> dict[str, Any]:
    """What maps cells, as plain arrays and a JSON string; without `save_model` what the embedding is read with."""
    config, weights = aligner.state()
    found = json.loads(config) | {
        "var_names": {m: d.modality.features.tolist() for m, d in domains.items()},
        "inputs": {m: _input(params, d.modality) for m, d in domains.items()},
    }
    if not save_model:
        # a metric has the model space back from the embedding
        return {
            "config": json.dumps(found),
            "weights": {name: of for name, of in weights.items() if name.startswith("metric:")},
        }
    return {
        "config": json.dumps(found),
        "weights": weights,
        "transforms": {m: d.transform.state() for m, d in domains.items()},
        "reference": {m: _references(d, couplings) for m, d in domains.items()},
        "imputations": {a: {t: i.state() for (s, t), i in imputations.items() if s == a} for a, _ in imputations},
    }


def _input(params: Mapping[str, Any], modality: Modality) -> dict[str, Any]:
    """What a modality was read from, so that new cells are read alike."""
    container, key = was_read({"params": params}, modality.name)
    batch = per_modality(params["batch"], params["modalities"], "batch")[modality.name]
    return {
        "layer": key if container == "layers" else None,
        "use_rep": key if container == "obsm" else None,
        "counts": _counts_layer(params, modality),
        "covariates": modality.covariates is not None,
        "batch": batch if modality.batch_names else None,
        "batches": list(modality.batch_names),
    }


def _counts_layer(params: Mapping[str, Any], modality: Modality) -> str | None:
    """The layer that counts were read from."""
    found = per_modality(params["counts"], params["modalities"], "counts", "auto")[modality.name]
    return None if modality.counts is None else "counts" if found == "auto" else str(found)


def _references(domain: Domain, couplings: Mapping[Pair, Coupling]) -> dict[str, Any]:
    """Training cells of each batch, by its number, as nested arrays."""
    unmatched = {b: 1 - c.weight for (a, b), c in couplings.items() if a == domain.name and c.relaxed}
    return {str(i): of.state() for i, of in enumerate(references(domain, unmatched))}


def latent(problem: Problem, fitted: Fitted, params: Mapping[str, Any], *, save_model: bool) -> dict[str, Any]:
    """The model of a method without a coupling; its `weights` are empty where nothing is kept, or there is nothing to keep."""
    config, weights = ({}, {}) if fitted.model is None else fitted.model.state()
    found: dict[str, Any] = config | {
        "method": str(params["method"]),
        "modalities": problem.names,
        "var_names": {m: of.features.tolist() for m, of in problem.modalities.items()},
        "inputs": {m: _input(params, of) for m, of in problem.modalities.items()},
    }
    return {"config": json.dumps(found), "weights": weights if save_model else {}}


def was_read(found: Mapping[str, Any], name: str) -> tuple[str, str | None]:
    """Where the values of a modality were read: X, layers or obsm, and the key."""
    names = [str(m) for m in found["params"]["modalities"]]
    of = {a: per_modality(found["params"][a], names, a)[name] for a in ("layer", "use_rep")}
    layer, rep = (None if value is None or str(value) == "None" else str(value) for value in of.values())
    return ("obsm", rep) if rep is not None else ("X", None) if layer is None else ("layers", layer)
