"""A MuData and the arguments of `tl.align` → the problem, arrays only: everything is read here, once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import derived as _derived
from scmmgan.data import kept as _kept
from scmmgan.data import known as _known
from scmmgan.data import links as _links
from scmmgan.data import modality as _modality
from scmmgan.data import sections as _sections
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import MAX_FRAMES, MAX_LINKS_USED, MIN_LINKS, MIN_SHARED, N_PCS
from scmmgan.model.problem import Known, Links, Modality, Pair, Problem, Sections, Values
from scmmgan.model.space.domain import Domain, model_space
from scmmgan.model.space.moments import column_moments
from scmmgan.model.space.pca import dispersion
from scmmgan.model.space.scratch import columns_of, rows_of
from scmmgan.settings import quietly, unpulled

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")

# arguments that may differ between modalities, with the value of a modality that a dict leaves out
PER_MODALITY: dict[str, Any] = {
    "layer": None, "use_rep": None, "mask_var": None, "smooth": "auto", "n_pcs": N_PCS, "labels": None, "batch": None,
    "counts": "auto", "covariates": None,
}  # fmt: skip


def read(mdata: MuData, names: Sequence[str], arguments: Mapping[str, Any]) -> Problem:
    """Check and read all that the arguments of `tl.align` name; nothing later touches the MuData before it is written."""
    per = {
        name: _modality.per_modality(arguments[name], names, name, default) for name, default in PER_MODALITY.items()
    }
    several = len(names) > 2
    tables = _tables(mdata, names, arguments["links"], per["use_rep"])
    pairs = _known.read_pairs(mdata, names, arguments["pairs"])
    codes, vocabulary, labelled = _known.read_labels(mdata, names, per["labels"])
    batches = _known.read_batches(mdata, names, per["batch"])
    coordinates = _modality.read_coordinates(mdata, names, arguments.get("spatial"))
    sections = _sections.read_sections(mdata, names, arguments.get("library_key"), coordinates)
    _check_frames(coordinates, sections)
    modalities = {
        m: replace(_read_modality(mdata, m, per, batches[m]), coordinates=coordinates.get(m), sections=sections.get(m))
        for m in names
    }
    # of several modalities a pair goes by what it has
    explicit = not several and not (isinstance(arguments["links"], str) and arguments["links"] == "auto")
    linked = {pair: _positions(table, modalities, explicit=explicit) for pair, table in tables.items()}
    known = {
        (a, b): Known(
            (a, b),
            linked.get((a, b)),
            pairs.get((a, b)),
            {m: codes[m] for m in (a, b)} if (a, b) in labelled else None,
            _known.read_partners(mdata, a, b, arguments["pairs"]),
        )
        for a, b in combinations(names, 2)
    }
    spaces = _spaces(modalities, known)
    centre = names[0] if several and arguments.get("maps") == "star" else None
    return Problem(modalities, known, vocabulary, spaces, _hash(modalities, known, vocabulary), centre)


def _read_modality(
    mdata: MuData,
    name: str,
    per: Mapping[str, Mapping[str, Any]],
    batches: Mapping[str, np.ndarray] | None,
) -> Modality:
    use_rep, steps, n_pcs = (per[argument][name] for argument in ("use_rep", "smooth", "n_pcs"))
    values, features = _modality.read_matrix(mdata, name, layer=per["layer"][name], use_rep=use_rep)
    allowed = _modality.read_mask(mdata, name, per["mask_var"][name], use_rep)
    if allowed is not None and not _modality.varies(values, allowed):
        raise ValueError(f"All features of {name!r} that `mask_var` chooses are constant. Choose others.")
    wanted = per["covariates"][name]
    choice = per["counts"][name]
    if use_rep is not None and wanted is not None:
        raise ValueError(
            f"{name!r} is read from obsm {use_rep!r}: take `covariates` out of that representation yourself."
        )
    by_depth = wanted is not None and "depth" in _known.listed(wanted) and "depth" not in mdata[name].obs
    counts = (
        None if use_rep is not None else _modality.read_counts(mdata, name, choice or ("auto" if by_depth else None))
    )
    return Modality(
        name=name,
        values=values,
        cells=mdata[name].obs_names.to_numpy(dtype=object),
        features=features.to_numpy(dtype=object),
        embedded=use_rep is not None,
        allowed=allowed,
        batches=None if batches is None else tuple(batches.values()),
        batch_names=tuple(batches or ()),
        n_pcs=N_PCS if n_pcs is None else int(n_pcs),
        steps=0 if use_rep is not None else None if isinstance(steps, str) else int(steps or 0),
        counts=counts if choice is not None else None,
        covariates=None if wanted is None else _known.read_covariates(mdata, name, _known.listed(wanted), counts),
    )


def _check_frames(coordinates: Mapping[str, np.ndarray], sections: Mapping[str, Sections]) -> None:
    """ValueError where coordinates of too many sections would be mapped along."""
    for m in coordinates:
        if m in sections and (found := len(sections[m].names)) > MAX_FRAMES:
            raise ValueError(
                f"obs column {sections[m].column!r} of {m!r} names {found} sections; coordinates of at most {MAX_FRAMES} are mapped "
                "along. Leave `spatial` out: `scmmgan.tl.place` needs it for `method='generator'` alone."
            )


# --- links -------------------------------------------------------------------------------------------------------


def _tables(
    mdata: MuData, names: Sequence[str], links: str | pd.DataFrame | None, use_rep: Mapping[str, str | None]
) -> dict[Pair, pd.DataFrame]:
    """Link tables of all pairs of modalities that have links."""
    found = {}
    of = list(combinations(names, 2))
    automatic = isinstance(links, str) and links == "auto"
    named = not isinstance(links, str) or links in ("auto", "var_names") or any(links in mdata[m].var for m in names)
    for source, target in of:
        if rep := use_rep[source] or use_rep[target]:
            # a representation has no features that links could name
            if links is not None and not automatic and len(of) == 1:
                raise ValueError(
                    f"`links` names features, but {source!r} or {target!r} is read from obsm {rep!r}, which has none. "
                    "Give `links=None`, or leave `use_rep` out."
                )
            continue
        # of several modalities some may share nothing
        table = _links.link_table(mdata, source, target, links, required=len(of) == 1 or not named)
        if table is not None:
            # only ratios of weights count
            found[source, target] = table.assign(weight=table["weight"] / table["weight"].max())
    if not found and len(of) > 1 and links is not None and not automatic:
        # says what was asked for and what there is
        _links.link_table(mdata, *of[0], links)
    return found


def _positions(table: pd.DataFrame, modalities: Mapping[str, Modality], *, explicit: bool) -> Links | None:
    """The links whose features vary in both modalities; too few of them are an error where links were asked for."""
    a, b = (str(m) for m in table.columns[:2])
    at = {m: pd.Index(modalities[m].features).get_indexer(pd.Index(table[m])) for m in (a, b)}
    varies = np.logical_and.reduce([_varying(modalities[m], at[m]) for m in (a, b)])
    if not varies.all():
        logger.warning("%d of %d links name a constant feature and are left out.", (~varies).sum(), len(varies))
    if varies.sum() < MIN_LINKS:
        if explicit:
            raise ValueError(
                f"Of {len(varies)} links between {a!r} and {b!r} {varies.sum()} have features that vary in both; at least "
                f"{MIN_LINKS} are needed. Check the `layer`, or use `links=None`."
            )
        logger.info("%r and %r have %d links of features that vary: too few to be used.", a, b, varies.sum())
        return None
    links = Links(at[a], at[b], table["weight"].to_numpy(dtype=float), table["sign"].to_numpy(dtype=float))
    return _fewer(links.take(varies), modalities[a], modalities[b])


def _varying(modality: Modality, positions: np.ndarray) -> np.ndarray:
    """Which of the chosen features vary, in any batch: what differs between batches only is shifted away."""
    parts = (slice(None),) if modality.batches is None else modality.batches
    # many links may name few features
    features, at = np.unique(positions, return_inverse=True)
    return np.logical_or.reduce(
        [column_moments(columns_of(rows_of(modality.values, rows), features))[1] > 0 for rows in parts]
    )[at]


def _fewer(links: Links, a: Modality, b: Modality) -> Links:
    """At most 5,000 links between different features: the heaviest of each, then those that vary most for their mean."""
    if len(links) <= MAX_LINKS_USED or (a.features[links.first] == b.features[links.second]).all():
        return links
    sides = ((a, links.first), (b, links.second))
    modality, side = min(sides, key=lambda of: len(np.unique(of[1])))
    heaviest = np.argsort(-links.weight, kind="stable")
    one = heaviest[np.unique(side[heaviest], return_index=True)[1]]
    mean, sd = column_moments(columns_of(modality.values, side[one]))
    kept = np.sort(one[np.argsort(-dispersion(mean, sd), kind="stable")[:MAX_LINKS_USED]])
    logger.info("%d of %d links are used: one for each feature of %r, those that vary most.", len(kept), len(links), modality.name)  # fmt: skip
    return links.take(kept)


def _spaces(modalities: Mapping[str, Modality], known: Mapping[Pair, Known]) -> tuple[Mapping[str, np.ndarray], ...]:
    """Modalities that lie in one space, each with the positions of the features that make it, in one order.

    A modality joins the first space that it can, so that a third one takes it from no two that share one.
    """
    found: list[Mapping[str, np.ndarray]] = []
    for m in modalities:
        for i, space in enumerate(found):
            joined = _common({of: modalities[of] for of in (*space, m)}, known)
            if joined is not None:
                found[i] = joined
                break
        else:
            found.append({m: np.arange(len(modalities[m].features))})
    return tuple(space for space in found if len(space) > 1)


def _common(modalities: Mapping[str, Modality], known: Mapping[Pair, Known]) -> dict[str, np.ndarray] | None:
    """Positions of equal names of all modalities, in one order, where they are many enough to make one space."""
    linked = [k for k in known.values() if k.links is not None and set(k.names) <= set(modalities)]
    if set(modalities) > {m for k in linked for m in k.names} or any(m.embedded for m in modalities.values()):
        return None
    names = {m: pd.Index(of.features) for m, of in modalities.items()}
    common = next(iter(names.values()))
    for name, of in modalities.items():
        common = common[common.isin(names[name] if of.allowed is None else names[name][of.allowed])]
    smallest = min(len(of) for of in names.values())
    # the links must say so too: equal names may mean nothing when the user links other features
    for k in linked:
        a, b = (modalities[m].features[k.positions(m)] for m in k.names)
        if (a == b).mean() <= 0.5:
            return None
    if len(common) < MIN_SHARED or 2 * len(common) < smallest:
        return None
    return {m: of.get_indexer(common) for m, of in names.items()}


def _hash(modalities: Mapping[str, Modality], known: Mapping[Pair, Known], vocabulary: Sequence[str]) -> str:
    """What is known beside the values, as a hash: the same after a file, on any machine."""
    parts: list[object] = [[str(name) for name in vocabulary]]
    for (a, b), of in known.items():
        if of.links is not None:
            names = [[str(f) for f in modalities[m].features[of.positions(m)]] for m in (a, b)]
            parts += [a, b, *names, of.links.sign.tolist(), of.links.weight.round(6).tolist()]
        if of.pairs is not None:
            parts.append([(a, b), of.pairs.tolist()])
        if of.partners is not None:
            parts.append([part.tolist() for part in of.partners])
        parts += [[name, codes.tolist()] for name, codes in (of.labels or {}).items()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


# --- an alignment that is there ----------------------------------------------------------------------------------


def reread(mdata: MuData, keys: Keys, *, counts: bool = False) -> tuple[Problem, dict[str, Domain]]:
    """The problem of an alignment that is there, in the order of then, and its model space, from its stored arguments.

    With `counts` these are read once more, too.
    """
    _slots.check_coupled(mdata, keys)
    params = _slots.record(mdata, keys)["params"]
    names = [str(m) for m in params["modalities"]]
    mdata = as_aligned(mdata, keys)
    arguments = {name: given(params[name]) for name in (*PER_MODALITY, "links", "pairs")}
    if not counts:
        arguments["counts"] = None
    if isinstance(arguments["pairs"], pd.DataFrame):
        # no method with a coupling reads weights
        arguments["pairs"] = arguments["pairs"].drop(columns=_known.PAIR_WEIGHT, errors="ignore")
    # records of the first versions of this format have no `maps`
    arguments["maps"] = params.get("maps", "all")
    try:
        with quietly():
            problem = read(mdata, names, {k: _given_each(v) for k, v in arguments.items()})
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"What {keys.key!r} was aligned with cannot be read any more. Restore it, or align again. Found: {error.args[0]}"
        ) from error
    for name in names:
        _slots.check_values(mdata, name, keys)
    if problem.fingerprint != str(params["known"]):
        raise ValueError(
            f"Links, pairs or labels are no longer those that {keys.key!r} was aligned with. Restore their columns, or align "
            "again."
        )
    if kept := _kept.find(mdata, problem, keys):
        return problem, dict(kept.domains)
    # networks that were trained on have the model space of then
    then = {m: _slots.stored_transform(mdata, m, keys) for m in names} if params.get("init") else None
    domains = model_space(problem, random_state=int(params["random_state"]), transforms=then)
    for name, domain in domains.items():
        before = _slots.model_space(mdata, name, name, keys)
        # another machine may round otherwise
        if before.shape != domain.x.shape or np.abs(before - domain.x).max() > 0.01:
            # one space is made of both
            made_of = " or ".join(repr(m) for m in names if m == name or (m, name) in problem.shared)
            raise ValueError(f"{made_of} is no longer what was aligned as {keys.key!r}: align again.")
    return problem, domains


def shared_counts(mdata: MuData, source: str, target: str, keys: Keys) -> tuple[Values, Values] | None:
    """Counts of both modalities (cells of now × features that made their common space); None without such a space or counts."""
    params = _slots.record(mdata, keys)["params"]
    # records of the first versions of this format say it of all modalities only
    if not params["coupling"][source][target].get("shared_space", params["shared_space"]):
        return None
    pair = {m: _modality.read_counts(mdata, m, argument(params, "counts", m)) for m in (source, target)}
    own, other = pair.values()
    if own is None or other is None:
        return None
    names = _slots.check_aligned(mdata, (source, target), keys)["var_names"]
    columns = []
    for m in pair:
        made = np.asarray(names[m], dtype=object)[_slots.stored_transform(mdata, m, keys).encoded]
        columns.append(mdata[m].var_names.get_indexer(made))
    there = np.all([at >= 0 for at in columns], axis=0)
    return (columns_of(own, columns[0][there]), columns_of(other, columns[1][there])) if there.any() else None


def as_aligned(mdata: MuData, keys: Keys) -> MuData:
    """The modalities with their cells and features in the order in which they were aligned; `mdata` where they are.

    ValueError where some are gone or new: neighbours, couplings and nulls rest on all of them.
    """
    found = _slots.record(mdata, keys)
    names = [str(m) for m in found["params"]["modalities"]]
    trained = _slots.check_aligned(mdata, names, keys)
    order, same = {}, True
    for name in names:
        rows, columns = _slots.places(mdata, name, keys)
        _check_all_there(name, "cells", rows, len(found["fingerprint"][name]["cells"]), keys)
        if argument(found["params"], "use_rep", name) is None:
            _check_all_there(name, "features", columns, len(trained["var_names"][name]), keys)
        order[name] = np.argsort(rows), np.argsort(columns)
        same = same and all((np.diff(at) > 0).all() for at in (rows, columns))
    if same:
        return mdata
    import mudata as md

    with unpulled():
        ordered = md.MuData({name: mdata[name][rows][:, columns].copy() for name, (rows, columns) in order.items()})
    if mdata.obs_names.is_unique:
        # columns of the whole may be read, too
        ordered.obs = mdata.obs.reindex(ordered.obs_names)
    ordered.uns = mdata.uns
    return ordered


def _check_all_there(name: str, what: str, now: np.ndarray, total: int, keys: Keys) -> None:
    """ValueError where cells or features that were aligned are gone, or there are new ones."""
    if new := int((now < 0).sum()):
        raise ValueError(
            f"{new} of {len(now)} {what} of {name!r} were added or renamed after the alignment {keys.key!r}: take them out, or "
            "align again."
        )
    if len(now) < total:
        raise ValueError(
            f"{total - len(now)} of {total} {what} of {name!r} that were aligned as {keys.key!r} are gone, and this needs all "
            "of them. Run it on the whole object and take the part afterwards, or align the part."
        )


def as_now(mdata: MuData, slots: Mapping[_derived.Slot, Any], keys: Keys) -> dict[_derived.Slot, Any]:
    """Values of slots, in the order of the alignment, in the order that cells and features have in `mdata`."""
    order = {name: _slots.places(mdata, name, keys) for name in dict.fromkeys(name for name, _, _ in slots)}
    return {slot: value[order[slot[0]][slot[1] in ("var", "varm")]] for slot, value in slots.items()}


def given(stored: Any) -> Any:
    """An argument as it was before it was made storable."""
    if isinstance(stored, np.generic):
        return stored.item()
    return None if isinstance(stored, str) and stored == "None" else stored


def _given_each(value: Any) -> Any:
    return {str(m): given(v) for m, v in value.items()} if isinstance(value, Mapping) else value


def argument(params: Mapping[str, Any], name: str, modality: str) -> Any:
    """One argument of `tl.align`, from the stored ones, as it was for one modality."""
    names = [str(m) for m in params["modalities"]]
    return given(_modality.per_modality(given(params[name]), names, name, PER_MODALITY.get(name))[modality])


def training_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """Stored arguments of the training, to train once more with them."""
    chosen = ("method", "max_steps", "batch_size", "lr", "geometry", "cycle_as_real", "random_state", "noise_dim")
    found = {name: _given_each(given(params[name])) for name in chosen}
    return {
        **found,
        "weights": {str(name): float(weight) for name, weight in params["weights"].items()},
        "device": "cpu",
    }
