"""Results → MuData and back: the only code that writes or reads the slots of an alignment."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import derived as _derived
from scmmgan.data.keys import Keys
from scmmgan.data.modality import Domain, check_mudata, missing_key, modality
from scmmgan.model.space.transform import Transform

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.nets.aligner import Aligner

logger = logging.getLogger("scmmgan")

MAX_WRITTEN = 200_000_000  # cells × features of one mapped array (DESIGN §2)


def check_free(mdata: MuData, names: Sequence[str], read: Mapping[str, Sequence[str | None]], keys: Keys) -> None:
    """ValueError when writing would replace what is no earlier alignment, or what is `read` (layers, obsm keys)."""
    found = mdata.uns.get(keys.uns)
    earlier = isinstance(found, Mapping) and "model" in found
    if found is not None and not earlier:
        raise ValueError(f"`mdata.uns[{keys.uns!r}]` holds something else than an alignment. Name another `key_added`.")
    if not earlier and keys.embedding in mdata.obsm:
        raise ValueError(f"`mdata.obsm` has {keys.embedding!r} already. Name another `key_added`, or delete it.")
    for name in names:
        for slot, what in ((keys.plan, "a plan"), (keys.told, "what links tell")):
            if clash := [b for b in names if slot(b) == keys.mapped(name)]:
                raise ValueError(f"Modality {name!r} would share the slot {slot(clash[0])!r} with {what}. Rename it.")
        if keys.mapped(name) == keys.embedding:
            raise ValueError(f"Mapped values for {name!r} would share the slot {keys.embedding!r}. Rename `key_added`.")
    for name in names:
        slots = _names(names, name, keys)
        # results of tools go with the alignment that they were made from
        ours = {slot for m, _, slot in _derived.recorded(found) if m == name} if earlier else set()
        if taken := sorted((slots | ours).intersection(read[name])):
            raise ValueError(f"{taken[0]!r} of {name!r} is read and would be replaced. Name another `key_added`.")
        there = {*mdata[name].obsm, *mdata[name].layers, *mdata[name].obs} - _earlier(mdata, name, keys)
        if taken := sorted(slots & there):
            raise ValueError(
                f"{name!r} has {taken[0]!r} already, and `mdata.uns` no alignment {keys.key!r} that wrote it. "
                "Name another `key_added`, or delete it."
            )


def _names(
    names: Sequence[str],
    name: str,
    keys: Keys,
    relaxed: Collection[str] | None = None,
    told: Collection[str] | None = None,
) -> set[str]:
    """All slots of one modality that an alignment of `names` may write; of the `relaxed` and `told` ones only, if given."""
    others = [b for b in names if b != name]
    return {
        keys.embedding,
        *(f(b) for b in others for f in (keys.mapped, keys.plan)),
        *(keys.told(b) for b in others if told is None or b in told),
        *(keys.unmatched(b if len(others) > 1 else None) for b in others if relaxed is None or b in relaxed),
        *(keys.ambiguous(b if len(others) > 1 else None) for b in others),
    }


def _earlier(mdata: MuData, name: str, keys: Keys) -> set[str]:
    """Slots of one modality that belong to the recorded alignment, if there is one: a user's own do not."""
    found = mdata.uns.get(keys.uns)
    if not isinstance(found, Mapping) or "model" not in found:
        return set()
    before = config(mdata, keys)["modalities"]
    if name not in before:
        return set()
    relaxed = [b for b, info in found["params"]["coupling"][name].items() if info.get("relaxed")]
    told = [b for b in before if is_told(found["params"], name, b)]
    return _names(before, name, keys, relaxed, told)


def is_told(params: Mapping[str, Any], source: str, target: str) -> bool:
    """Whether links tell the values of mapped cells, not the map: then there is an image of their own to decode."""
    # files from before there was a choice have none
    return params.get("told", {}).get(source, {}).get(target, {}).get("by", "coupling") != "coupling"


def written_features(domains: Sequence[Domain], features: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Positions of the mapped features that are written for every target; empty where they are too many."""
    chosen = {}
    for d in domains:
        wanted = features[d.name]
        if wanted is None:
            cells = max(len(other.x) for other in domains if other is not d)
            fits = cells * len(d.var_names) <= MAX_WRITTEN
            chosen[d.name] = np.arange(len(d.var_names) if fits else 0)
            if not fits:
                logger.info("%d × %d mapped values for %r are not written: use `get.mapped(features=)`.", cells, len(d.var_names), d.name)  # fmt: skip
            continue
        chosen[d.name] = positions(wanted, d.var_names, d.name, "One list is for all modalities; or give a dict.")
        if len(set(chosen[d.name])) < len(chosen[d.name]):
            raise ValueError(f"`features` names a feature of {d.name!r} twice. Name each one once.")
    return chosen


def positions(features: str | Sequence[str], var_names: pd.Index, name: str, hint: str = "") -> np.ndarray:
    """Where the named features are among all of a modality; KeyError on the first unknown one."""
    wanted = [features] if isinstance(features, str) else features
    if not pd.api.types.is_list_like(wanted):
        raise TypeError(f"`features` must be names of features, got {features!r}.")
    wanted = [str(f) for f in wanted]
    positions = var_names.get_indexer(pd.Index(wanted, dtype=object))
    if (positions < 0).any():
        unknown = wanted[int((positions < 0).argmax())]
        raise missing_key(f"feature in {name!r}", unknown, list(var_names), hint)
    return positions


def write(
    mdata: MuData,
    domains: Sequence[Domain],
    aligner: Aligner,
    couplings: Mapping[tuple[str, str], Coupling],
    *,
    history: Mapping[str, Sequence[float]],
    params: dict[str, Any],
    features: Mapping[str, np.ndarray],
    diagnosis: Mapping[tuple[str, str], Mapping[str, Any]],
    ambiguous: Mapping[tuple[str, str], np.ndarray],
    told: Mapping[tuple[str, str], np.ndarray],
    keys: Keys,
) -> None:
    """Compute every slot of DESIGN §3, then write all of them; values are decoded from `told` where there is some."""
    embeddings = {d.name: aligner.embed(d.x, d.name) for d in domains}
    slots: dict[str, list[tuple[str, str, Any]]] = {d.name: [] for d in domains}
    for a in domains:
        slots[a.name].append(("obsm", keys.embedding, embeddings[a.name]))
        for b in domains:
            if a is b:
                continue
            coupling = couplings[a.name, b.name]
            slots[a.name].append(("obsm", keys.plan(b.name), coupling.plan))
            several = b.name if len(domains) > 2 else None
            if coupling.relaxed:
                slots[a.name].append(("obs", keys.unmatched(several), 1 - coupling.weight))
            slots[a.name].append(("obs", keys.ambiguous(several), ambiguous[a.name, b.name]))
            image = told.get((a.name, b.name))
            if image is not None:
                slots[a.name].append(("obsm", keys.told(b.name), image))
            if len(features[b.name]):
                image = aligner.translate(a.x, a.name, b.name) if image is None else image
                mapped = b.transform.inverse(image, features[b.name])
                whole = np.array_equal(features[b.name], np.arange(len(b.var_names)))
                as_layer = whole and a.var_names.equals(b.var_names) and mdata[a.name].var_names.equals(a.var_names)
                slots[a.name].append(("layers" if as_layer else "obsm", keys.mapped(b.name), mapped))
    config, weights = aligner.state()
    record = {
        "params": params,
        "features": {d.name: d.var_names[features[d.name]].to_numpy(dtype=object) for d in domains},
        "landmarks": {
            b: domain.obs_names[couplings[a, b].landmarks.nodes].to_numpy(dtype=object)
            for (a, b) in couplings
            for domain in domains
            if domain.name == b
        },
        "history": {name: np.asarray(values) for name, values in history.items()},
        "diagnosis": _nested(diagnosis),
        "model": {
            "config": json.dumps({**json.loads(config), "var_names": {d.name: d.var_names.tolist() for d in domains}}),
            "weights": weights,
            "transforms": {d.name: d.transform.state() for d in domains},
        },
    }
    _clear(mdata, keys)
    for name, entries in slots.items():
        for container_name, slot, value in entries:
            getattr(mdata[name], container_name)[slot] = value
    mdata.uns[keys.uns] = record
    _write_joint(mdata, domains, embeddings, keys)


def _nested(records: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Records of pairs of modalities as dicts of dicts: keys are str."""
    return {a: {t: dict(r) for (s, t), r in records.items() if s == a} for a, _ in records}


def write_diagnosis(
    mdata: MuData,
    records: Mapping[tuple[str, str], Mapping[str, Any]],
    ambiguous: Mapping[tuple[str, str], np.ndarray],
    keys: Keys,
) -> None:
    """Replace the diagnosis of an alignment that is there."""
    several = len({a for a, _ in ambiguous}) > 2
    for (a, b), flags in ambiguous.items():
        mdata[a].obs[keys.ambiguous(b if several else None)] = flags
    mdata.uns[keys.uns] = {**record(mdata, keys), "diagnosis": _nested(records)}


def diagnosis(mdata: MuData, source: str, target: str, keys: Keys) -> dict[str, Any]:
    """The record of two modalities, in whichever order they were aligned."""
    check_aligned(mdata, (source, target), keys)
    found = record(mdata, keys).get("diagnosis", {})
    for a, b in ((source, target), (target, source)):
        if b in found.get(a, {}):
            return dict(found[a][b])
    raise KeyError(
        f"No diagnosis of {source!r} and {target!r} in `mdata.uns[{keys.uns!r}]`. Run `scmmgan.tl.diagnose(mdata)`."
    )


def _clear(mdata: MuData, keys: Keys) -> None:
    """Delete what an earlier alignment of that name wrote; it may have had other modalities and features."""
    if keys.uns not in mdata.uns:
        return
    before = config(mdata, keys)["modalities"]
    _derived.clear(mdata, keys)
    if keys.embedding in mdata.obsm:
        del mdata.obsm[keys.embedding]
    earlier = {m: _earlier(mdata, m, keys) for m in before if m in mdata.mod}
    for name, slots in earlier.items():
        for container in (mdata[name].layers, mdata[name].obsm, mdata[name].obs):
            for slot in slots.intersection(container):
                del container[slot]
        # MuData keeps copies of its modalities' columns, joined ones where the cells are no axis of their own
        copies = [slot if mdata.axis == 1 else f"{name}:{slot}" for slot in slots]
        mdata.obs.drop(columns=copies, errors="ignore", inplace=True)
    del mdata.uns[keys.uns]


def _write_joint(mdata: MuData, domains: Sequence[Domain], embeddings: Mapping[str, np.ndarray], keys: Keys) -> None:
    """`mdata.obsm`, only where every cell of it belongs to exactly one aligned modality."""
    names = pd.Index(np.concatenate([d.obs_names for d in domains]))
    if not names.is_unique or not mdata.obs_names.is_unique or set(names) != set(mdata.obs_names):
        logger.info("Cell names occur in several modalities, or not all are aligned: no `mdata.obsm[%r]`; use `get.embedding`.", keys.embedding)  # fmt: skip
        return
    joint = np.vstack([embeddings[d.name] for d in domains])
    mdata.obsm[keys.embedding] = joint[names.get_indexer(mdata.obs_names)]


def record(mdata: MuData, keys: Keys) -> dict[str, Any]:
    """`mdata.uns[key]` of an alignment that is there and whole."""
    check_mudata(mdata)
    found = mdata.uns.get(keys.uns)
    if not isinstance(found, Mapping) or "model" not in found:
        raise KeyError(
            f"No alignment {keys.key!r} in `mdata.uns` (keys found: {list(mdata.uns)}). "
            "Run `scmmgan.tl.align(mdata, ...)` first, or name its `key_added` as `key`."
        )
    return dict(found)


def config(mdata: MuData, keys: Keys) -> dict[str, Any]:
    """Modalities, widths, block sds and feature names of the trained model."""
    return json.loads(str(record(mdata, keys)["model"]["config"]))


def check_aligned(mdata: MuData, names: Sequence[str], keys: Keys) -> dict[str, Any]:
    """The model's config, or a KeyError when one of the modalities was not part of the alignment."""
    found = config(mdata, keys)
    for name in names:
        modality(mdata, name)
        if name not in found["modalities"]:
            raise KeyError(f"{name!r} is not part of the alignment {keys.key!r} of {found['modalities']}.")
        if keys.embedding not in mdata[name].obsm:
            raise KeyError(f"{name!r} has no obsm[{keys.embedding!r}]: run `scmmgan.tl.align(mdata, ...)` again.")
    return found


def mapped_values(
    mdata: MuData, source: str, target: str, features: Sequence[str] | None, keys: Keys
) -> tuple[np.ndarray, list[str]]:
    """Mapped expression and its feature names: as written, or decoded for chosen features."""
    found = check_aligned(mdata, (source, target), keys)
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}; what it measured is in `mdata[{source!r}]`.")
    if features is None and keys.mapped(target) in mdata[source].layers:
        # layers are cut along with the features that they share their names with
        return np.asarray(mdata[source].layers[keys.mapped(target)]), mdata[source].var_names.tolist()
    if features is None and keys.mapped(target) in mdata[source].obsm:
        names = [str(n) for n in record(mdata, keys)["features"][target]]
        return np.asarray(mdata[source].obsm[keys.mapped(target)]), names
    if features is None:
        raise ValueError(f"No mapped values for {target!r} were written. Say which `features` of it are to be decoded.")
    at = positions(features, pd.Index(found["var_names"][target]), target)
    written = record(mdata, keys)
    stored = written["model"]["transforms"][target]
    transform = Transform(**{name: np.asarray(value) for name, value in stored.items()})
    if is_told(written["params"], source, target):
        if keys.told(target) not in mdata[source].obsm:
            raise missing_key(f"obsm key in {source!r}", keys.told(target), list(mdata[source].obsm), "Align again.")
        image = np.asarray(mdata[source].obsm[keys.told(target)])
    else:
        image = model_space(mdata, source, target, keys)
    return transform.inverse(image, at), [found["var_names"][target][i] for i in at]


def model_space(mdata: MuData, name: str, space: str, keys: Keys) -> np.ndarray:
    """Cells (n × p, float32) of one modality in the model space of one, had back from the embedding."""
    found = config(mdata, keys)
    widths, order = found["widths"], found["modalities"]
    start = sum(widths[m] for m in order[: order.index(space)])
    block = np.asarray(mdata[name].obsm[keys.embedding])[:, start : start + widths[space]]
    block = block * np.float32(found["block_sd"][space])
    # absent: of a method, or from a time, that weighs no directions
    stretch = record(mdata, keys)["model"]["weights"].get(f"stretch:{order.index(space)}")
    if stretch is None:
        return block
    return np.linalg.solve(np.asarray(stretch, dtype=np.float64).T, block.T).T.astype(np.float32)
