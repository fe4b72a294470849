"""Several methods, and what other tools wrote, on the same data in one table."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scmmgan import get
from scmmgan.data import blinded as _blinded
from scmmgan.data import comparison as _comparison
from scmmgan.data import known as _known
from scmmgan.data import links as _links
from scmmgan.data import modality as _modality
from scmmgan.data import others as _others_written
from scmmgan.data import record as _record
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import EMBEDDED_NEIGHBORS, MAX_SEED, MIN_LINKS
from scmmgan.model.evidence.resources import Cost
from scmmgan.model.evidence.scib import check_scib, scib_scores
from scmmgan.model.space.diffusion import nearest
from scmmgan.model.space.linear import one_thread
from scmmgan.settings import quietly
from scmmgan.tl import _align, _evaluate
from scmmgan.tl._align import align

if TYPE_CHECKING:
    from mudata import MuData

logger = logging.getLogger("scmmgan")


def compare(
    mdata: MuData,
    source: str,
    target: str,
    *,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    embeddings: Mapping[str, str | Sequence[str]] | None = None,
    layers: Mapping[str, str | Sequence[str]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    links: str | pd.DataFrame | None = "auto",
    layer: str | Mapping[str, str] | None = None,
    arguments: Mapping[str, str | int | float | pd.DataFrame | None] | None = None,
    pairs: str | pd.DataFrame | None = None,
    labels: str | None = None,
    heldout_features: Sequence[str] | None = None,
    k: int = 10,
    scib: bool = False,
    random_state: int = 0,
    keep: str | PathLike[str] | None = None,
    key_added: str = "scmmgan",
    progress_bar: bool = True,
) -> pd.DataFrame:
    """Score several methods, and embeddings and mapped values that other tools wrote, in one table.

    Every method and seed runs on a copy that holds only what `arguments` name, with its cells renamed and in another order:
    neither the pairs nor the labels that score it, nor features that are held out, equal names or the order of rows. Scores
    are those of :func:`scmmgan.tl.evaluate`. A method that fails is a row with its error. Results are kept in `mdata.uns`,
    and in a folder if one is named; a second call computes what is missing.

    Parameters
    ----------
    mdata
        Data; alignments that are there are neither used nor changed.
    source
        One of two modalities, the one that features are held out of.
    target
        The other one.
    methods
        Methods of :func:`scmmgan.tl.align`, or a dict from a name of your choice to arguments of its own:
        `{"200 steps": {"method": "scmmgan", "max_steps": 200}}`. Default: `"scmmgan"`, `"coupling"`, and all baselines that
        can use what is given. Of `links` and `arguments` every method gets those that it can use.
    embeddings
        Joint embeddings that other tools wrote, from a name to the `obsm` key of both modalities (one key for each seed, if
        there are several): `{"MaxFuse": "X_maxfuse"}`.
    layers
        Mapped values that other tools wrote, from a name to a key of `layers` (columns are the modality's own features) or
        of `obsm` (a DataFrame, or an array with all features of the other modality), in one modality or both.
    seeds
        Values of `random_state` that every method runs with (default 0, 1, 2).
    links
        Linked features that methods are given, as in :func:`scmmgan.tl.align`.
    layer
        Layer that all methods read, and in the units of which they are scored.
    arguments
        Other arguments of :func:`scmmgan.tl.align`, for all methods: `{"max_steps": 200, "labels": "known_type"}`.
    pairs
        True partners, to score by: `"obs_names"`, a boolean `obs` column, or a table. Pairs of which a method is given a
        cell are not scored.
    labels
        `obs` column to score by; cells whose label a method is given are not scored.
    heldout_features
        Features of `source` that are hidden from all methods, with all others that are linked with the same features of
        `target`: what is mapped of these is scored by what `source` measured.
    k
        Of `recall_at_k` (default 10).
    scib
        Add scores of the package scib-metrics (default False): iLISI of the modalities and, by `labels`, cLISI, silhouette,
        BRAS, graph connectivity, and k-means' NMI and ARI.
    random_state
        Seed of draws and folds of the scores (default 0).
    keep
        Folder in which every run is written as it ends, one JSON file each, and from which runs of the same data, truth and
        arguments are taken; it may hold those of other data.
    key_added
        Results go to `mdata.uns[f"{key_added}_comparison"]`.
    progress_bar
        Show the progress over methods and seeds.

    Returns
    -------
    The table of :func:`scmmgan.get.comparison`: one row for each method, metric and direction, with the median and the
    worst seed. Rows of earlier calls on the same data and truth are among them. Sets:

    `mdata.uns[f"{key_added}_comparison"][source][target]` : dict
        `runs`: a table of all methods and seeds, with `seconds`, peak `memory` (MB, beyond what the process held; NaN where
        the system does not say), the `verdict`, what was used, and the `error`. `scores`: the rows of
        :func:`scmmgan.tl.evaluate` for each. `scoring`: fingerprint of the data and the truth; where it changes, all is
        computed again.

    Raises
    ------
    ImportError
        If scib-metrics is asked for and not installed.
    KeyError
        If there is no such modality, column, slot or feature.
    TypeError
        If `arguments`, `methods`, `embeddings` or `layers` are of no known kind.
    OSError
        If the folder of `keep` cannot be written to.
    ValueError
        If `source` is `target`, there is nothing to compare, fewer than 10 pairs are left to score by, features are held out that are not linked, too few
        links are left, other tools' values cannot be scored, `mdata` is a view, or a stored record is damaged or of another version.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy(n_cells=80)
    >>> how = {"links": "gene", "labels": "cell_type", "progress_bar": False}
    >>> table = smm.tl.compare(mdata, "rna", "protein", methods=["coupling"], seeds=[0], **how)
    >>> bool(table.set_index(["metric", "direction"]).loc[("label_transfer", "rna → protein"), "median"] > 0.6)
    True
    """
    names = _modality.check_modalities(mdata, (source, target))
    _modality.check_writable(mdata, names)
    _modality.check_key_added(key_added)
    keys = Keys(key_added)
    folder = None if keep is None else _comparison.folder(keep)
    if not pd.api.types.is_list_like(seeds):
        raise TypeError(f"`seeds` must be a list of whole numbers, e.g. `seeds=[0, 1, 2]`, got {seeds!r}.")
    common = _common(mdata, (source, target), arguments, links, layer)
    entries = _methods(methods, common, mdata, (source, target))
    others = _others(mdata, (source, target), embeddings, layers)
    if twice := {of.name for of in entries} & {of.name for of in others}:
        raise ValueError(f"{sorted(twice)[0]!r} names a method and what another tool wrote: choose another name.")
    seeds = list(dict.fromkeys(_modality.whole_number(seed, "seeds", low=0, high=MAX_SEED) for seed in seeds))
    k = _modality.whole_number(k, "k", low=1)
    random_state = _modality.whole_number(random_state, "random_state", low=0, high=MAX_SEED)
    if scib:
        check_scib()
    truth = _Truth.read(mdata, (source, target), entries, common, pairs, labels, heldout_features, random_state)
    truth = replace(truth, scib=scib)
    kept = _comparison.Runs.of(mdata, (source, target), truth.fingerprint(mdata, common, k, random_state), keys, folder)
    every: list[_Method | _Other] = [*entries, *others]
    given = {of.name: of.fingerprint(mdata, truth) for of in every}
    runs: list[tuple[_Method | _Other, int]] = [(entry, seed) for entry in entries for seed in seeds]
    runs += [(other, seed) for other in others for seed in range(other.count)]
    if not runs:
        raise ValueError("There is nothing to compare: name `methods`, `embeddings` or `layers`, and a seed or more.")
    todo = [(of, seed) for of, seed in runs if not kept.take(of.name, seed, given[of.name])]
    if not todo:
        kept.write(mdata, (source, target), keys)
    if any(isinstance(of, _Method) for of, _ in todo):
        _load()
    with one_thread():
        own = truth.own_spaces(mdata) if todo else {}
        for of, seed in _bar(todo, progress_bar):
            kept.add(of.name, seed, given[of.name], *of.run(mdata, truth, own, seed, k, random_state))
            # at once: what is interrupted is not lost
            kept.write(mdata, (source, target), keys)
    return get.comparison(mdata, source, target, key=key_added)


def _load() -> None:
    """Import before the clock starts what methods import as they run: no cost of the first one."""
    import torch

    from scmmgan.model.coupling.gromov import polish
    from scmmgan.model.evidence import populations, quality, verdict  # noqa: F401

    # an optimizer and a transport plan import more
    torch.optim.Adam([torch.zeros(1)]).step()
    polish(np.eye(2) / 2, [np.eye(2)], [np.eye(2)], *np.full((2, 2), 0.5))


def _bar(todo: Sequence[tuple[Any, int]], show: bool) -> Iterator[tuple[Any, int]]:
    """Methods and seeds, with a bar that names the one that runs."""
    from tqdm import tqdm

    bar = tqdm(todo, desc="scmmgan compare", disable=not show)
    for of, seed in bar:
        bar.set_postfix_str(f"{of.name}, seed {seed}")
        yield of, seed


# --- what is run -------------------------------------------------------------------------------------------------


def _common(
    mdata: MuData,
    names: tuple[str, str],
    arguments: Mapping[str, Any] | None,
    links: str | pd.DataFrame | None,
    layer: str | Mapping[str, str] | None,
) -> dict[str, Any]:
    """Arguments of `tl.align` for all methods, no links where none are found; KeyError on those that are none."""
    if arguments is not None and not isinstance(arguments, Mapping):
        raise TypeError(f"`arguments` must be a dict of arguments of `scmmgan.tl.align`, got {arguments!r}.")
    found = dict(arguments or {})
    if "links" in found:
        raise KeyError("`arguments` has 'links': give `links` itself, or links of one method by `methods`.")
    rep = found.pop("use_rep", None)
    _check_arguments(found)
    if isinstance(links, str) and links == "auto":
        by_rep = any(_modality.per_modality(rep, names, "use_rep").values())
        with quietly():
            links = None if by_rep or _links.link_table(mdata, *names, links) is None else links
    return {**found, "links": links, "layer": layer, "use_rep": rep}


def _check_arguments(given: Mapping[str, Any]) -> None:
    # the others are the comparison's own, or bring along state that no fingerprint covers
    own = {"mdata", "modalities", "key_added", "copy", "random_state", "save_model", "progress_bar"}
    own |= {"features", "method", "layer", "use_rep", "checkpoint_dir", "init"}
    known = [name for name in inspect.signature(_align.align).parameters if name not in own]
    if unknown := [name for name in given if name not in known]:
        raise KeyError(f"`arguments` has {unknown[0]!r}, which is none that methods may be given. Known: {known}.")


@dataclass(frozen=True)
class _Method:
    """A method of `tl.align` under a name, with its arguments."""

    name: str
    method: str
    arguments: dict[str, Any]

    def fingerprint(self, mdata: MuData, truth: _Truth) -> str:
        """Of everything that it is given."""
        slots = {m: _blinded.slots_read(mdata, truth.names, m, self.arguments) for m in truth.names}
        read: dict[str, dict[str, Any]] = {}
        for m, of in slots.items():
            read[m] = {f"obs {c}": mdata[m].obs[c].astype(str).to_numpy() for c in of["obs"]}
            read[m] |= {f"obsm {c}": np.asarray(mdata[m].obsm[c]) for c in of["obsm"]}
        how = {"method": self.method, "version": version("scmmgan"), "arguments": _align._plain(self.arguments)}
        return _record.digest({**how, "read": read})

    def run(
        self, mdata: MuData, truth: _Truth, own: Mapping[str, np.ndarray], seed: int, k: int, random_state: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The run and its scores; an error is a run without scores."""
        uses = ", ".join(name for name in ("links", "pairs", "labels") if self.arguments.get(name) is not None)
        run = {"seconds": np.nan, "memory": np.nan, "uses": uses, "mapped": "", "verdict": "", "error": ""}
        try:
            with quietly():
                copy = _blinded.blinded(mdata, truth.names, self.arguments, truth.hidden, random_state=seed)
                written = {m: list(of) for m, of in truth.features.items()}
                with Cost() as cost:
                    align(
                        copy.mdata, *truth.names, **copy.arguments, method=self.method, random_state=seed,
                        features=written, save_model=False, progress_bar=False,
                    )  # fmt: skip
                run |= {"seconds": cost.seconds, "memory": cost.memory}
                run["verdict"] = str(get.diagnosis(copy.mdata, *truth.names)["verdict"])
                z = {m: copy.as_before(m, np.asarray(copy.mdata[m].obsm[Keys().embedding])) for m in truth.names}
                mapped = {}
                for s, t in truth.ways:
                    if len(copy.mdata.uns[Keys().uns]["features"][t]):
                        values = get.mapped(copy.mdata, s, t)
                        mapped[s, t] = copy.as_before(s, np.asarray(values[:, truth.features[t]].X)), truth.features[t]
                run["mapped"] = "values" if mapped else "neighbors"
                return run, truth.score(mdata, own, z, mapped, k=k, random_state=random_state)
        except Exception as error:
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            run["error"] = f"{type(error).__name__}: {' '.join(str(text).split())}"
            logger.warning("%s, seed %d: %s", self.name, seed, run["error"])
            return run, []


def _methods(
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
    common: Mapping[str, Any],
    mdata: MuData,
    names: tuple[str, str],
) -> list[_Method]:
    """Methods under their names, with those arguments that each can use."""
    from scmmgan.model.nets import methods as _known_methods

    if methods is None:
        common_names = mdata[names[0]].var_names.isin(mdata[names[1]].var_names).sum()
        methods = _known_methods.compared(common, common_names=0 if common["use_rep"] else int(common_names))
    if isinstance(methods, str) or not isinstance(methods, Sequence | Mapping):
        raise TypeError(f"`methods` must be a list of methods, or a dict from names to arguments, got {methods!r}.")
    found = []
    for name in methods:
        given = methods[name] if isinstance(methods, Mapping) else {}
        if not isinstance(given, Mapping):
            raise TypeError(f"`methods[{name!r}]` must be a dict, e.g. {{'method': 'coupling'}}, got {given!r}.")
        own = dict(given)
        method = own.pop("method", name)
        _known_methods.lookup(method)
        _check_arguments(own)
        found.append(_Method(str(name), method, {**_known_methods.usable(method, common), **own}))
    # what is named twice runs once
    return list({of.name: of for of in found}.values())


@dataclass(frozen=True)
class _Other:
    """What another tool wrote under a name: keys of `obsm` with its embedding and keys of its mapped values, by seed."""

    name: str
    embeddings: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of seeds."""
        return max(len(self.embeddings), len(self.layers))

    def _slots(self, mdata: MuData, names: tuple[str, str], seed: int) -> tuple[dict[str, Any], dict[Any, Any]]:
        """Embedding by modality, and mapped values with their names by direction."""
        z, mapped = {}, {}
        if seed < len(self.embeddings):
            z = {m: _others_written.embedding(mdata, m, self.embeddings[seed]) for m in names}
        if seed < len(self.layers):
            for s, t in (names, names[::-1]):
                if (values := _others_written.mapped(mdata, s, t, self.layers[seed])) is not None:
                    mapped[s, t] = values
        return z, mapped

    def fingerprint(self, mdata: MuData, truth: _Truth) -> str:
        """Of everything that it wrote."""
        found = {}
        for seed in range(self.count):
            z, mapped = self._slots(mdata, truth.names, seed)
            values = {s: {"x": x, "of": of.to_numpy()} for (s, _), (x, of) in mapped.items()}
            found[str(seed)] = {"z": z, "mapped": values}
        return _record.digest(found)

    def run(
        self, mdata: MuData, truth: _Truth, own: Mapping[str, np.ndarray], seed: int, k: int, random_state: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The scores of what is there; it cost nothing here."""
        z, mapped = self._slots(mdata, truth.names, seed)
        run = {"seconds": np.nan, "memory": np.nan, "uses": "", "verdict": "", "error": ""}
        run["mapped"] = "values" if mapped else "neighbors"
        with quietly():
            return run, truth.score(mdata, own, z, mapped, k=k, random_state=random_state)


def _others(
    mdata: MuData,
    names: tuple[str, str],
    embeddings: Mapping[str, str | Sequence[str]] | None,
    layers: Mapping[str, str | Sequence[str]] | None,
) -> list[_Other]:
    """What other tools wrote; an error where it is not there, before any work is done."""
    latent = _others_written.keys_by_seed(embeddings, "embeddings")
    values = _others_written.keys_by_seed(layers, "layers")
    found = []
    for name in dict.fromkeys([*latent, *values]):
        other = _Other(name, latent.get(name, ()), values.get(name, ()))
        for seed in range(other.count):
            z, mapped = other._slots(mdata, names, seed)
            if z and len({of.shape[1] for of in z.values()}) > 1:
                shapes = [of.shape for of in z.values()]
                raise ValueError(f"obsm[{other.embeddings[seed]!r}] has shapes {shapes}: one space of both is needed.")
            if seed < len(other.layers) and not mapped:
                slots = {m: [*_modality.layers_of(mdata[m]), *mdata[m].obsm] for m in names}
                raise KeyError(
                    f"No layer or obsm key {other.layers[seed]!r} in {names[0]!r} or {names[1]!r}. Found: {slots}."
                )
        found.append(other)
    return found


# --- what it is scored by ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Truth:
    """What the methods do not get, and how their results are read.

    `pairs` (k × 2), `codes` and `tested` (n,): as in `_evaluate`. `features`: names that are scored, by modality. `hidden`:
    features of the source that methods do not get; `links` (l × 2): names of those of them that are scored, and of their
    partners. `inputs`: layer and representation that are read, by modality. `scib`: whether scib-metrics scores, too.
    """

    names: tuple[str, str]
    pairs: np.ndarray | None
    codes: dict[str, np.ndarray] | None
    tested: dict[str, np.ndarray] | None
    features: dict[str, pd.Index]
    hidden: list[str]
    links: list[tuple[str, str]]
    inputs: dict[str, dict[str, Any]]
    scib: bool = False

    @property
    def ways(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Both directions."""
        return self.names, self.names[::-1]

    @classmethod
    def read(
        cls,
        mdata: MuData,
        names: tuple[str, str],
        entries: Sequence[_Method],
        common: Mapping[str, Any],
        pairs: str | pd.DataFrame | None,
        labels: str | None,
        heldout: Sequence[str] | None,
        random_state: int,
    ) -> _Truth:
        """Check and read everything; what a method is given is not scored, of any method."""
        inputs = {
            m: {of: _modality.per_modality(common[of], names, of)[m] for of in ("layer", "use_rep")} for m in names
        }
        hidden, linked = _held_out(mdata, names, heldout, common)
        of_all = {m: _modality.read_matrix(mdata, m, **inputs[m])[1] for m in names}
        drawn = {
            m: _evaluate._drawn(pd.Index(of[~of.isin(hidden)], dtype=object), random_state) for m, of in of_all.items()
        }
        partners = [b for _, b in linked]
        of = of_all[names[1]]
        drawn[names[1]] = pd.Index(of[of.isin([*drawn[names[1]], *partners])], dtype=object)
        known = None if pairs is None else _evaluate._pairs(mdata, *names, pairs)
        codes, tested = None, None
        if labels is not None:
            codes = _known.read_labels(mdata, names, dict.fromkeys(names, labels))[0]
            tested = None if codes is None else {m: codes[m] >= 0 for m in names}
        with quietly():
            for entry in entries:
                known, tested = _not_given(mdata, names, entry.arguments, known, tested)
        if tested is not None and not any(of.any() for of in tested.values()):
            logger.warning("Methods are given the labels of all cells: no label is left to score by.")
        return cls(names, known, codes, tested, drawn, hidden, linked, inputs)

    def fingerprint(self, mdata: MuData, common: Mapping[str, Any], k: int, random_state: int) -> str:
        """Of the data and of the truth: runs with another one are not comparable."""
        found: dict[str, Any] = {"k": k, "random_state": random_state, "hidden": np.array(self.hidden, dtype=object)}
        for m in self.names:
            values = _bits(_evaluate._every(mdata, m, self.inputs[m]))
            layers = _blinded.slots_read(mdata, self.names, m, common)["layers"]
            var = mdata[m].var.drop(columns=_blinded.columns_written(mdata, m))
            columns = {str(column): of.astype(str).to_numpy() for column, of in var.items()}
            found[m] = {"values": values, "features": mdata[m].var_names.to_numpy(dtype=object), "var": columns}
            found[m] |= {f"layer {layer}": _bits(mdata[m].layers[layer]) for layer in layers}
        found |= {"codes": self.codes or {}, "tested": self.tested or {}}
        found["pairs"] = np.empty(0) if self.pairs is None else self.pairs
        found["scored"] = {m: of.to_numpy() for m, of in self.features.items()}
        found |= {"scib": True} if self.scib else {}
        return _record.digest(found)

    def own_spaces(self, mdata: MuData) -> dict[str, np.ndarray]:
        """Principal components (n × p) of what was measured."""
        with quietly():
            return {m: _evaluate._own_space(mdata, m, self.inputs[m]) for m in self.names}

    def score(
        self,
        mdata: MuData,
        own: Mapping[str, np.ndarray],
        z: Mapping[str, np.ndarray],
        mapped: Mapping[tuple[str, str], tuple[np.ndarray, pd.Index]],
        *,
        k: int,
        random_state: int,
    ) -> list[dict[str, Any]]:
        """Rows of all scores; without any mapped values the 15 nearest cells in the embedding predict."""
        values = {}
        for s, t in self.ways:
            names, found = self.features[t], None
            if (s, t) in mapped:
                x, of = mapped[s, t]
                names = names[names.isin(of)]
                found = np.asarray(x, dtype=np.float32)[:, of.get_indexer(names)]
            elif not mapped and z:
                found = _by_embedding(z[s], z[t], _evaluate._measured(mdata, t, names, self.inputs[t]))
            if found is None or not len(names):
                continue
            # a feature that is held out is none that both have, and columns of representations are no features
            both = not any(of["use_rep"] for of in self.inputs.values())
            shared = mdata[s].var_names.difference(self.hidden if s == self.names[0] else []) if both else []
            values[s, t] = self._with_hidden(
                mdata, (s, t), names, _evaluate._with_mapped(mdata, (s, t), names, pd.Index(shared), self.inputs, found)
            )
        scored = _evaluate._Scored(self.names, z, own, values, self.pairs, self.codes, self.tested)
        rows = _evaluate._score(scored, k=k, random_state=random_state)
        if self.scib and z:
            a, b = self.names
            codes = None
            if self.codes is not None and self.tested is not None:
                left = {m: np.where(self.tested[m], self.codes[m], -1) for m in (a, b)}
                codes = left[a], left[b]
            plain = {"direction": "both", "error": np.nan, "chance": np.nan, "best": 1.0, "p": np.nan}
            for metric, (value, n, needs) in scib_scores((z[a], z[b]), codes, random_state=random_state).items():
                about = {"n": n, "needs": "labels" if needs else "nothing"}
                rows.append({"metric": metric, **plain, "value": value, **about})
        return rows

    def _with_hidden(
        self, mdata: MuData, pair: tuple[str, str], names: pd.Index, values: _evaluate._Values
    ) -> _evaluate._Values:
        """The same with what the source measured of the features that were held out."""
        there = [(a, b) for a, b in self.links if b in names] if pair == self.names else []
        if not there:
            return values
        own = _evaluate._measured(mdata, pair[0], pd.Index([a for a, _ in there], dtype=object), self.inputs[pair[0]])
        return replace(values, hidden=names.get_indexer(pd.Index([b for _, b in there], dtype=object)), hidden_own=own)


def _bits(values: Any) -> dict[str, np.ndarray]:
    """All entries of a matrix, as arrays."""
    if not hasattr(values, "tocsr"):
        return {"data": np.asarray(values)}
    rows = values.tocsr()
    return {"data": rows.data, "at": rows.indices, "rows": rows.indptr}


def _held_out(
    mdata: MuData, names: tuple[str, str], heldout: Sequence[str] | None, common: Mapping[str, Any]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Features that methods do not get, and those asked for with their partners."""
    if heldout is None:
        return [], []
    if common["use_rep"] is not None:
        raise ValueError("Features cannot be held out of a representation. Leave `use_rep` or `heldout_features` out.")
    wanted, (a, b) = [heldout] if isinstance(heldout, str) else [str(of) for of in heldout], names
    if unknown := [of for of in wanted if of not in mdata[a].var_names]:
        raise _modality.missing_key(f"feature in {a!r}", unknown[0], list(mdata[a].var_names))
    with quietly():
        table = _links.link_table(mdata, a, b, "auto" if common["links"] is None else common["links"])
    first, second = (np.empty(0), np.empty(0)) if table is None else (table[m].to_numpy(dtype=object) for m in names)
    asked = np.isin(first, wanted)
    if alone := [of for of in wanted if of not in first]:
        raise ValueError(
            f"{alone[0]!r} of {a!r} is linked with no feature of {b!r} that would score it. Hold out linked features."
        )
    gone = np.isin(second, second[asked])
    if common["links"] is not None and (left := int((~gone).sum())) < MIN_LINKS:
        raise ValueError(f"{left} of {len(gone)} links are left without `heldout_features`; hold out fewer.")
    hidden = list(dict.fromkeys([*wanted, *first[gone]]))
    return hidden, list(zip(first[asked], second[asked]))


def _not_given(
    mdata: MuData,
    names: tuple[str, str],
    arguments: Mapping[str, Any],
    pairs: np.ndarray | None,
    tested: dict[str, np.ndarray] | None,
) -> tuple[np.ndarray | None, dict[str, np.ndarray] | None]:
    """Pairs and cells that are left to score by."""
    given = arguments.get("pairs")
    if pairs is not None and given is not None:
        (known,) = _known.read_pairs(mdata, names, given).values()
        if (partners := _known.read_partners(mdata, *names, given)) is not None:
            known = partners[0]
        pairs = pairs[~(np.isin(pairs[:, 0], known[:, 0]) | np.isin(pairs[:, 1], known[:, 1]))]
        if len(pairs) < 2 * _evaluate.FOLDS:
            raise ValueError(
                f"{len(pairs)} `pairs` are left that no method is given; {2 * _evaluate.FOLDS} are the minimum."
            )
    columns = arguments.get("labels")
    if tested is not None and columns is not None:
        codes = _known.read_labels(mdata, names, _modality.per_modality(columns, names, "labels"))[0]
        if codes is not None:
            tested = {m: of & (codes[m] < 0) for m, of in tested.items()}
    return pairs, tested


def _by_embedding(x: np.ndarray, y: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Means (n × f) of what the 15 nearest cells of the other modality measured."""
    near = nearest(x, y, EMBEDDED_NEIGHBORS)[0]
    n, k = near.shape
    weights = sp.csr_matrix((np.full(n * k, 1 / k), near.ravel(), np.arange(0, n * k + 1, k)), shape=(n, len(y)))
    return np.asarray(weights @ measured, dtype=np.float32)
