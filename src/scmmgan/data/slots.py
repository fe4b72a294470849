"""Results → MuData and back: the only code that writes or reads the slots of an alignment."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import derived as _derived
from scmmgan.data import fingerprint as _fingerprint
from scmmgan.data import record as _record
from scmmgan.data import stored as _stored
from scmmgan.data.keys import FORMAT, Keys
from scmmgan.data.modality import check_mudata, listed, missing_key, modality
from scmmgan.data.undo import all_or_nothing
from scmmgan.model.defaults import MAX_WRITTEN
from scmmgan.model.problem import Modality, Pair, Problem
from scmmgan.model.space.domain import Domain
from scmmgan.model.space.imputation import Imputation
from scmmgan.model.space.moments import column_moments
from scmmgan.model.space.transform import Transform

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.nets.aligner import Aligner
    from scmmgan.model.nets.latent import Fitted
    from scmmgan.model.nets.trained import Trained, TrainedLatent
    from scmmgan.model.progress import Stages

logger = logging.getLogger("scmmgan")


def check_free(mdata: MuData, names: Sequence[str], read: Mapping[str, Sequence[str | None]], keys: Keys) -> None:
    """ValueError when writing would replace what is no earlier alignment, or what is `read` (layers, obsm keys)."""
    found = mdata.uns.get(keys.uns)
    earlier = _record.is_alignment(found)
    if found is not None and not earlier:
        raise ValueError(f"`mdata.uns[{keys.uns!r}]` holds something else than an alignment. Name another `key_added`.")
    if not earlier and keys.embedding in mdata.obsm:
        raise ValueError(f"`mdata.obsm` has {keys.embedding!r} already. Name another `key_added`, or delete it.")
    for name in names:
        if keys.mapped(name) in {f(b) for b in names for f in (keys.plan, keys.counts)}:
            raise ValueError(f"Modality {name!r} would share the slot {keys.mapped(name)!r} with another. Rename it.")
        if keys.mapped(name) == keys.embedding:
            raise ValueError(f"Mapped values for {name!r} would share the slot {keys.embedding!r}. Rename `key_added`.")
    for name in names:
        slots = _names(names, name, keys)
        # results of tools go with the alignment that they were made from
        ours = {slot for m, _, slot in _derived.recorded(found or {}) if m == name}
        if taken := sorted((slots | ours).intersection(read[name])):
            raise ValueError(f"{taken[0]!r} of {name!r} is read and would be replaced. Name another `key_added`.")
        containers = (mdata[name].obsm, mdata[name].layers, mdata[name].obs, mdata[name].var)
        there = {slot for container in containers for slot in container} - slots_of(mdata, name, keys)
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
    linked: Collection[str] | None = None,
) -> set[str]:
    """All slots of one modality that an alignment of `names` may write; of the `relaxed` and `linked` only, if given."""
    others = [b for b in names if b != name]
    return {
        keys.embedding,
        *(f(b) for b in others for f in (keys.mapped, keys.plan, keys.counts)),
        keys.landmark,
        *(keys.unmatched(b if len(others) > 1 else None) for b in others if relaxed is None or b in relaxed),
        *(keys.ambiguous(b if len(others) > 1 else None) for b in others),
        *(
            keys.evidence(part, b if len(others) > 1 else None)
            for b in others
            for part in EVIDENCE
            if linked is None or b in linked
        ),
    }


def slots_of(mdata: MuData, name: str, keys: Keys) -> set[str]:
    """Slots of one modality that belong to the recorded alignment, if there is one: a user's own do not."""
    found = mdata.uns.get(keys.uns)
    if not _record.is_alignment(found):
        return set()
    before = _modalities(mdata, found)
    if name not in before:
        return set()
    try:
        coupling = _record.whole(found, keys)["params"]["coupling"][name]
    except ValueError:
        # of another format, or damaged: everything that it may have written
        return _names(before, name, keys) | {f"{keys.key}_told_{b}" for b in before}
    linked = [b for b in before if "links" in _of_pair(found["diagnosis"], name, b)]
    return _names(before, name, keys, [b for b, info in coupling.items() if info.get("relaxed")], linked)


def _of_pair(records: Mapping[str, Any], a: str, b: str) -> Mapping[str, Any]:
    """The record of two modalities in whichever order; empty where there is none."""
    found = [row[t] for s, t in ((a, b), (b, a)) if t in (row := records.get(s, {}))]
    return found[0] if found else {}


def _modalities(mdata: MuData, record: Mapping[str, Any]) -> list[str]:
    """Modalities of a record of any format; where it cannot be read, all that there are."""
    try:
        return [str(m) for m in json.loads(str(record["model"]["config"]))["modalities"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        fingerprint = record.get("fingerprint")
        return list(dict.fromkeys([*mdata.mod, *map(str, fingerprint if isinstance(fingerprint, Mapping) else ())]))


def written_features(problem: Problem, features: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Positions of the mapped features that are written for every target; empty where they are too many."""
    chosen = {}
    for name, m in problem.modalities.items():
        wanted = features[name]
        if wanted is None:
            cells = max(len(other) for other in problem.modalities.values() if other is not m)
            fits = cells * len(m.features) <= MAX_WRITTEN
            chosen[name] = np.arange(len(m.features) if fits else 0)
            if not fits:
                logger.info("%d × %d mapped values for %r are not written: use `get.mapped(features=)`.", cells, len(m.features), name)  # fmt: skip
            continue
        chosen[name] = positions(wanted, pd.Index(m.features), name, "One list is for all modalities; or give a dict.")
        if len(set(chosen[name])) < len(chosen[name]):
            raise ValueError(f"`features` names a feature of {name!r} twice. Name each one once.")
    return chosen


def positions(features: str | Sequence[str], var_names: pd.Index, name: str, hint: str = "") -> np.ndarray:
    """Where the named features are among all of a modality; KeyError on the first unknown one."""
    wanted = listed(features)
    positions = var_names.get_indexer(pd.Index(wanted, dtype=object))
    if (positions < 0).any():
        unknown = wanted[int((positions < 0).argmax())]
        raise missing_key(f"feature in {name!r}", unknown, list(var_names), hint)
    return positions


def write(
    mdata: MuData,
    domains: Mapping[str, Domain],
    aligner: Aligner,
    couplings: Mapping[Pair, Coupling],
    images: Mapping[Pair, np.ndarray],
    imputations: Mapping[Pair, Imputation],
    *,
    history: Mapping[str, Sequence[float]],
    params: dict[str, Any],
    stages: Stages,
    features: Mapping[str, np.ndarray],
    diagnosis: Mapping[Pair, Mapping[str, Any]],
    ambiguous: Mapping[Pair, np.ndarray],
    save_model: bool = True,
    keys: Keys,
) -> None:
    """Compute every slot of an alignment, then write all of them; `images`: all cells in every other model space."""
    embeddings = {m: aligner.embed(d.x, m, images) for m, d in domains.items()}
    landmarks = {b: coupling.landmarks for (_, b), coupling in couplings.items()}
    slots: dict[str, list[tuple[str, str, Any]]] = {m: [("obsm", keys.embedding, embeddings[m])] for m in domains}
    for name, a in domains.items():
        slots[name].append(("obs", keys.landmark, landmarks[name].label.astype(np.int32)))
        for target, b in domains.items():
            if a is b:
                continue
            coupling = couplings[name, target]
            slots[name].append(("obsm", keys.plan(target), coupling.plan))
            several = target if len(domains) > 2 else None
            if coupling.relaxed:
                slots[name].append(("obs", keys.unmatched(several), 1 - coupling.weight))
            slots[name].append(("obs", keys.ambiguous(several), ambiguous[name, target]))
            slots[name] += _evidence(mdata, diagnosis, (name, target), several, keys)
            imputed = _imputed(a, imputations.get((name, target)))
            if imputed is not None:
                slots[name].append(("obsm", keys.counts(target), imputed[1]))
            if len(features[target]):
                mapped = _decoded(b.transform, images[name, target], features[target], imputed)
                slots[name].append(("obsm", keys.mapped(target), mapped))
                if _as_layer(a.modality, b.modality, features[target], mdata[name].n_vars):
                    # a copy: who changes a layer changes no other slot
                    slots[name].append(("layers", keys.mapped(target), mapped.copy()))
    means = {m: d.transform.mean for m, d in domains.items()}
    entries = {
        "params": params | {"seconds": stages.so_far()},
        "landmarks": {m: domains[m].modality.cells[of.nodes] for m, of in landmarks.items()},
        "history": {name: np.asarray(values) for name, values in history.items()},
        "diagnosis": _nested(diagnosis),
        "model": _stored.coupled(domains, aligner, couplings, imputations, params, save_model=save_model),
    }
    modalities = {m: d.modality for m, d in domains.items()}
    _store(mdata, modalities, embeddings, means, slots, entries, features, keys)


def write_latent(
    mdata: MuData,
    problem: Problem,
    fitted: Fitted,
    *,
    params: dict[str, Any],
    stages: Stages,
    features: Mapping[str, np.ndarray],
    diagnosis: Mapping[Pair, Mapping[str, Any]],
    save_model: bool = True,
    keys: Keys,
) -> None:
    """The same for a method without a coupling: joint embedding, mapped values and record; nothing that a plan is needed for."""
    modalities = problem.modalities
    embeddings = {m: np.asarray(fitted.embeddings[m], dtype=np.float32) for m in modalities}
    slots: dict[str, list[tuple[str, str, Any]]] = {m: [("obsm", keys.embedding, z)] for m, z in embeddings.items()}
    if fitted.model is None:
        features = {m: np.arange(0) for m in modalities}
    for (name, a), (target, b) in permutations(modalities.items(), 2):
        if fitted.model is not None and len(features[target]):
            mapped = fitted.model.decode(embeddings[name], target, features[target])
            slots[name].append(("obsm", keys.mapped(target), mapped))
            if _as_layer(a, b, features[target], mdata[name].n_vars):
                slots[name].append(("layers", keys.mapped(target), mapped.copy()))
    entries = {
        "params": params | {"seconds": stages.so_far()},
        "landmarks": {m: np.empty(0, dtype=object) for m in modalities},
        "history": {name: np.asarray(values) for name, values in fitted.history.items()},
        "diagnosis": _nested(diagnosis),
        "model": _stored.latent(problem, fitted, params, save_model=save_model),
    }
    means = {m: column_moments(of.values)[0] for m, of in modalities.items()}
    _store(mdata, modalities, embeddings, means, slots, entries, features, keys)


def _store(
    mdata: MuData,
    modalities: Mapping[str, Modality],
    embeddings: Mapping[str, np.ndarray],
    means: Mapping[str, np.ndarray],
    slots: Mapping[str, Sequence[tuple[str, str, Any]]],
    entries: Mapping[str, Any],
    features: Mapping[str, np.ndarray],
    keys: Keys,
) -> None:
    """Replace an earlier alignment by new slots, and by the record's `entries` beside what all records have."""
    record = {
        "format": FORMAT,
        "features": {m: of.features[features[m]] for m, of in modalities.items()},
        "fingerprint": {m: _fingerprint.of(of, embeddings[m], means[m]) for m, of in modalities.items()},
        **entries,
    }
    record, joint = _record.sealed(record), _joint(mdata, modalities, embeddings, keys)
    with all_or_nothing(mdata, mdata.mod):
        _clear(mdata, keys)
        for name, found in slots.items():
            for container_name, slot, value in found:
                getattr(mdata[name], container_name)[slot] = value
        if joint is not None:
            mdata.obsm[keys.embedding] = joint
        mdata.uns[keys.uns] = record


def _as_layer(source: Modality, target: Modality, features: np.ndarray, n_vars: int) -> bool:
    """Whether mapped values have the columns of the source's own layers."""
    own, all_of = source.features, target.features
    whole = np.array_equal(features, np.arange(len(all_of)))
    return whole and np.array_equal(own, all_of) and n_vars == len(own)


EVIDENCE = {None: "correlation", "q": "q", "ceiling": "share"}  # parts of the slot, and their columns of the links


def _evidence(
    mdata: MuData, records: Mapping[Pair, Mapping[str, Any]], pair: Pair, source: str | None, keys: Keys
) -> list[tuple[str, str, np.ndarray]]:
    """Slots of `var` of the first and their values (float64, NaN without a link): its features' best links."""
    record = records[pair] if pair in records else records[pair[1], pair[0]]
    if "links" not in record:
        return []
    links = pd.DataFrame(dict(record["links"])).sort_values("correlation", ascending=False, kind="stable")
    best = links.drop_duplicates(pair[0]).set_index(pair[0]).reindex(mdata[pair[0]].var_names.astype(object))
    return [
        ("var", keys.evidence(part, source), best[column].to_numpy(dtype=float)) for part, column in EVIDENCE.items()
    ]


def _imputed(source: Domain, imputation: Imputation | None) -> tuple[Imputation, np.ndarray] | None:
    """An imputation and the scores of the cells that it reads, where there is one."""
    if imputation is None or source.modality.counts is None:
        return None
    return imputation, imputation.scores(source.modality.counts)


def _decoded(
    transform: Transform, image: np.ndarray, features: np.ndarray, imputed: tuple[Imputation, np.ndarray] | None
) -> np.ndarray:
    """Values (n × len(features), float32) of mapped cells (n × p): decoded, and imputed where only the target has a feature."""
    return (
        transform.inverse(image, features)
        if imputed is None
        else imputed[0].decoded(transform, image, imputed[1], features)
    )


def _nested(records: Mapping[Pair, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Records of pairs of modalities as dicts of dicts: keys are str; tables as DataFrames."""
    return {a: {t: storable_record(r) for (s, t), r in records.items() if s == a} for a, _ in records}


def storable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose tables (dicts of columns) are DataFrames."""
    return {k: pd.DataFrame(dict(v)) if isinstance(v, Mapping) else v for k, v in record.items()}


def write_diagnosis(
    mdata: MuData,
    records: Mapping[Pair, Mapping[str, Any]],
    ambiguous: Mapping[Pair, np.ndarray],
    keys: Keys,
) -> None:
    """Replace the diagnosis of an alignment that is there; flags are those of cells in the order of the alignment."""
    several = len({a for a, _ in ambiguous}) > 2
    sealed = _record.sealed({"diagnosis": _nested(records)}, record(mdata, keys))
    columns = []
    for (a, b), flags in ambiguous.items():
        other = b if several else None
        columns.append((a, "obs", keys.ambiguous(other), flags[places(mdata, a, keys)[0]]))
        columns += [(a, *column) for column in _evidence(mdata, records, (a, b), other, keys)]
    with all_or_nothing(mdata, [a for a, *_ in columns]):
        for name, container, column, values in columns:
            getattr(mdata[name], container)[column] = values
        mdata.uns[keys.uns] = sealed


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
    before = _modalities(mdata, mdata.uns[keys.uns])
    _derived.clear(mdata, keys)
    if keys.embedding in mdata.obsm:
        del mdata.obsm[keys.embedding]
    earlier = {m: slots_of(mdata, m, keys) for m in before if m in mdata.mod}
    for name, slots in earlier.items():
        for container in (mdata[name].layers, mdata[name].obsm, mdata[name].obs, mdata[name].var):
            for slot in slots.intersection(container):
                del container[slot]
        # MuData keeps copies of its modalities' columns, joined ones where the axis is a common one
        for frame, own_axis in ((mdata.obs, 0), (mdata.var, 1)):
            copies = [f"{name}:{slot}" if mdata.axis == own_axis else slot for slot in slots]
            for copied in frame.columns.intersection(copies):
                del frame[copied]
    del mdata.uns[keys.uns]


def _joint(
    mdata: MuData, modalities: Mapping[str, Modality], embeddings: Mapping[str, np.ndarray], keys: Keys
) -> np.ndarray | None:
    """`mdata.obsm`, only where every cell of it belongs to exactly one aligned modality."""
    names = pd.Index(np.concatenate([of.cells for of in modalities.values()]))
    if not names.is_unique or not mdata.obs_names.is_unique or set(names) != set(mdata.obs_names):
        logger.info("Cell names occur in several modalities, or not all are aligned: no `mdata.obsm[%r]`; use `get.embedding`.", keys.embedding)  # fmt: skip
        return None
    return np.vstack([embeddings[m] for m in modalities])[names.get_indexer(mdata.obs_names)]


# --- reading -----------------------------------------------------------------------------------------------------


def record(mdata: MuData, keys: Keys, *also: str) -> dict[str, Any]:
    """`mdata.uns[key]` of an alignment that is there and whole; of what tools added, `also` is checked."""
    check_mudata(mdata)
    found = mdata.uns.get(keys.uns)
    if not _record.is_alignment(found):
        raise KeyError(
            f"No alignment {keys.key!r} in `mdata.uns` (keys found: {list(mdata.uns)}). "
            "Run `scmmgan.tl.align(mdata, ...)` first, or name its `key_added` as `key`."
        )
    return _record.whole(found, keys, *also)


def added(mdata: MuData, keys: Keys, name: str) -> dict[str, Any]:
    """What a tool added to the record, by source modality; empty where it was not run."""
    return dict(record(mdata, keys, name).get(name, {}))


def config(mdata: MuData, keys: Keys) -> dict[str, Any]:
    """Modalities, widths, block sds and feature names of the trained model."""
    return json.loads(str(record(mdata, keys)["model"]["config"]))


def has_coupling(mdata: MuData, keys: Keys) -> bool:
    """Whether the method of an alignment starts from a coupling."""
    couplings = record(mdata, keys)["params"].get("coupling", {})
    return not couplings or any(str(of["kind"]) != "none" for others in couplings.values() for of in others.values())


def check_coupled(mdata: MuData, keys: Keys) -> None:
    """ValueError that names the method where it has no coupling: what rests on one, or on the model spaces, needs it."""
    if not has_coupling(mdata, keys):
        method = str(record(mdata, keys)["params"]["method"])
        raise ValueError(
            f"method {method!r} has no coupling: there is no plan, landmark or model space that this could rest on. Align with a "
            "method that has one (`method='scmmgan'`), and name its `key_added` as `key`."
        )


def check_aligned(mdata: MuData, names: Sequence[str], keys: Keys) -> dict[str, Any]:
    """The model's config; an error unless all cells of the modalities are cells of the alignment, as they were then.

    Every reader of cells calls it. Some cells may be gone, and they may be in any order.
    """
    found = record(mdata, keys)
    trained = json.loads(str(found["model"]["config"]))
    for name in dict.fromkeys(names):
        adata = modality(mdata, name)
        if name not in trained["modalities"]:
            raise KeyError(f"{name!r} is not part of the alignment {keys.key!r} of {trained['modalities']}.")
        if not adata.n_obs:
            raise ValueError(f"{name!r} has no cells left. Use the object that was aligned, or another part of it.")
        if keys.embedding not in adata.obsm:
            raise KeyError(f"{name!r} has no obsm[{keys.embedding!r}]: run `scmmgan.tl.align(mdata, ...)` again.")
        _fingerprint.recorded_rows(adata, name, found["fingerprint"][name], keys)
    return trained


def needed(mdata: MuData, name: str, container: str, slot: str, tool: str) -> Any:
    """The value of a slot, or a KeyError that says what writes it."""
    held = getattr(mdata[name], container)
    if slot not in held:
        raise KeyError(f"`mdata[{name!r}].{container}` has no {slot!r} any more: run `scmmgan.tl.{tool}` again.")
    return held[slot]


def unmatched(mdata: MuData, source: str, target: str, keys: Keys) -> np.ndarray | None:
    """Unmatched share (n,) of the source's cells, None where the coupling leaves none without a partner."""
    coupling = record(mdata, keys)["params"]["coupling"][source]
    if not coupling[target]["relaxed"]:
        return None
    return np.asarray(needed(mdata, source, "obs", keys.unmatched(target if len(coupling) > 1 else None), "align"))


def places(mdata: MuData, name: str, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Where all cells and features of a modality were when it was aligned; -1: features that were not there."""
    found, adata = record(mdata, keys), mdata[name]
    rows = _fingerprint.recorded_rows(adata, name, found["fingerprint"][name], keys)
    if _stored.was_read(found, name)[0] == "obsm":
        return rows, np.arange(adata.n_vars)
    names = pd.Index(json.loads(str(found["model"]["config"]))["var_names"][name], dtype=object)
    return rows, names.get_indexer(adata.var_names.astype(object))


def check_values(mdata: MuData, name: str, keys: Keys) -> None:
    """ValueError where values of a modality are no longer those that were aligned: measured and mapped do not compare."""
    found = record(mdata, keys)
    container, key = slot = _stored.was_read(found, name)
    rows, columns = places(mdata, name, keys)
    if container == "obsm":
        columns = np.arange(np.shape(mdata[name].obsm.get(key, np.empty((0, 0))))[1])
    if how := _fingerprint.changed_values(mdata[name], found["fingerprint"][name], slot, rows, columns):
        what = "X" if key is None else f"{container}[{key!r}]"
        raise ValueError(
            f"{what} of {name!r} is not what was aligned as {keys.key!r} (scaled or normalised since?): {how}. What was mapped "
            "is in the units of then. Restore these values, or align again."
        )


def mapped_values(
    mdata: MuData,
    source: str,
    target: str,
    features: Sequence[str] | None,
    keys: Keys,
    rebuilt: Callable[[], Trained | TrainedLatent],
) -> tuple[np.ndarray, list[str]]:
    """Mapped expression and its feature names, as written or decoded for chosen features; in the units of now, or refused.

    `rebuilt` gives the stored model, which methods without a coupling decode with.
    """
    found = check_aligned(mdata, (source, target), keys)
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}; what it measured is in `mdata[{source!r}]`.")
    if features is None:
        written = _written_values(mdata, source, target, keys)
        check_values(mdata, target, keys)
        return written
    names = found["var_names"][target]
    at = positions(features, pd.Index(names), target)
    if len(at):
        check_values(mdata, target, keys)
    if not has_coupling(mdata, keys):
        z = np.asarray(mdata[source].obsm[keys.embedding])
        return rebuilt().decode(z, target, at), [names[i] for i in at]
    return decoder(mdata, source, target, keys)(slice(None), at), [names[i] for i in at]


def decoder(
    mdata: MuData, source: str, target: str, keys: Keys
) -> Callable[[slice | np.ndarray, np.ndarray], np.ndarray]:
    """What gives mapped values of chosen cells (rows of now) and features (positions of the alignment)."""
    transform, image = stored_transform(mdata, target, keys), model_space(mdata, source, target, keys)
    stored = record(mdata, keys)["model"].get("imputations", {}).get(source, {}).get(target)
    imputation = scores = None
    if stored is not None:
        imputation = Imputation.from_state(stored)
        scores = np.asarray(needed(mdata, source, "obsm", keys.counts(target), "align"))

    def values(rows: slice | np.ndarray, features: np.ndarray) -> np.ndarray:
        imputed = None if imputation is None or scores is None else (imputation, scores[rows])
        return _decoded(transform, image[rows], features, imputed)

    return values


def _written_values(mdata: MuData, source: str, target: str, keys: Keys) -> tuple[np.ndarray, list[str]]:
    """Mapped expression as it was written, and its feature names."""
    names, slot = [str(n) for n in record(mdata, keys)["features"][target]], keys.mapped(target)
    if slot in mdata[source].obsm:
        values = np.asarray(mdata[source].obsm[slot])
        if values.ndim != 2 or values.shape[1] != len(names):
            raise ValueError(
                f"obsm[{slot!r}] of {source!r} has shape {values.shape}, not {len(names)} columns as it was written. Name the "
                "`features` that you want, or align again."
            )
        return values, names
    if slot in mdata[source].layers:
        # earlier files of this format have the layer alone; it is cut along with the features that it shares its names with
        own = mdata[source].var_names.tolist()
        if new := sorted(set(own) - set(names)):
            raise ValueError(
                f"{len(new)} of {len(own)} features of {source!r} were added or renamed after the alignment {keys.key!r}, "
                f"e.g. {new[0]!r}: layers[{slot!r}] says nothing of them. Name the `features` that you want."
            )
        return np.asarray(mdata[source].layers[slot]), own
    gone = f"obsm[{slot!r}] of {source!r} is gone." if names else f"No mapped values for {target!r} were written."
    raise ValueError(f"{gone} Say which `features` of {target!r} are to be decoded.")


def stored_transform(mdata: MuData, name: str, keys: Keys) -> Transform:
    """The transform between a modality's features and its model space."""
    return Transform.from_state(stored_model(mdata, keys)["model"]["transforms"][name])


def stored_model(mdata: MuData, keys: Keys) -> dict[str, Any]:
    """The record of an alignment whose model was stored with it; ValueError where it was not."""
    found = record(mdata, keys)
    if not has_coupling(mdata, keys):
        if found["model"]["weights"]:
            return found
        raise ValueError(
            f"The alignment {keys.key!r} keeps no model: it was made with `save_model=False`, or its method "
            f"{str(found['params']['method'])!r} has none that maps cells. What was written can be read."
        )
    if "transforms" not in found["model"]:
        raise ValueError(
            f"The alignment {keys.key!r} was made with `save_model=False`: there is no model to map, decode or explain cells "
            "with. Align again without it."
        )
    return found


def model_space(mdata: MuData, name: str, space: str, keys: Keys) -> np.ndarray:
    """Cells (n × p, float32) of one modality in the model space of one, had back from the embedding."""
    if not has_coupling(mdata, keys):
        # one space of all modalities
        return np.asarray(mdata[name].obsm[keys.embedding])
    model = record(mdata, keys)["model"]
    found = json.loads(str(model["config"]))
    widths, order = found["widths"], found["modalities"]
    start = sum(widths[m] for m in order[: order.index(space)])
    block = np.asarray(mdata[name].obsm[keys.embedding])[:, start : start + widths[space]]
    block = block * np.float32(found["block_sd"][space])
    # methods that follow no coupling count all axes alike
    metric = model["weights"].get(f"metric:{order.index(space)}")
    if metric is None:
        return block
    return np.linalg.solve(np.asarray(metric, dtype=np.float64).T, block.T).T.astype(np.float32)
