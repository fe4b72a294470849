"""Train maps between modalities that were measured on different cells."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data import modality as _domain
from scmmgan.data import read as _problem
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.evidence import quality as _quality
from scmmgan.model.evidence import verdict as _verdict
from scmmgan.tl import _told

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.coupling.coupling import Coupling

logger = logging.getLogger("scmmgan")


def align(
    mdata: MuData,
    *modalities: str,
    links: str | pd.DataFrame | None = "auto",
    pairs: str | pd.DataFrame | None = None,
    labels: str | Mapping[str, str] | None = None,
    batch: str | Mapping[str, str] | None = None,
    features: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    layer: str | Mapping[str, str] | None = None,
    use_rep: str | Mapping[str, str] | None = None,
    mask_var: str | Mapping[str, str | np.ndarray] | None = None,
    n_pcs: int | Mapping[str, int] = _problem.DEFAULTS["n_pcs"],
    smooth: int | str | Mapping[str, int | str | None] | None = _problem.DEFAULTS["smooth"],
    spatial: str | Mapping[str, str] | None = None,
    method: str = "scmmgan",
    geometry: str | None = "auto",
    cycle_as_real: bool = False,
    weights: Mapping[str, float] | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    noise_dim: int | Mapping[str, int] = _problem.DEFAULTS["noise_dim"],
    random_state: int = 0,
    device: str = "auto",
    key_added: str = "scmmgan",
    copy: bool = False,
    progress_bar: bool = True,
) -> MuData | None:
    """Learn to map every cell into the feature space of the other modalities, without paired cells.

    A cycle-consistent GAN between the modalities' PCA spaces whose generators keep the diffusion geometry of the
    cells. Which population goes where is decided beforehand: by linked features, known pairs and labels, in any
    combination, or else by the modalities' shapes alone (landmark Gromov-Wasserstein, experimental). Cells with equal
    names are NOT taken as pairs unless `pairs` says so.

    Parameters
    ----------
    mdata
        One modality per technology, normalised values (log1p, CLR, TF-IDF; see :func:`scmmgan.pp.normalize`).
    *modalities
        Two or more modalities; default: all.
    links
        Linked features. `"auto"` (default): equal `var_names` if there are at least 10; `"var_names"`; a `var` column
        that names genes (`var_names` serve where a modality lacks it); a table, see :func:`scmmgan.pp.link_features`;
        or `None`. 3 make a coupling, 10 can be tested (:func:`scmmgan.tl.diagnose`); beside 100 pairs fewer than 10 serve
        the link loss only. Links that disagree with the rest lose their weight.
    pairs
        Cells known to be the same in two modalities: `"obs_names"` (equal names), a boolean `obs` column (equal names
        where it is true in both, or in the one that has it), or a table with one column of cell names per modality; a
        row with a gap is no pair of the two, and of several modalities some may share none. At least 3, and a cell has
        one partner. Their anchors are their partners; 100 or more also place all other cells, fewer help the shapes or
        links to decide.
    labels
        `obs` column (or one per modality, in a dict) with one vocabulary for all modalities. Cells of different labels
        are not coupled; inside a label links, pairs or shapes decide. Cells are smoothed inside their label, too, where
        at least half of their nearest cells, above chance, are of it before: this is most of what labels give
        (benchmarks/accuracy.md), and mapped values then say what a cell of its label is like. Gaps (NaN, empty text) are
        allowed: those cells follow their labelled neighbours. Cells whose label the other modality lacks count as unmatched.
    batch
        `obs` column with samples or donors, no gaps, at least 32 cells each; a dict for some modalities only. Cells are
        smoothed inside their batch, and every feature is shifted and scaled (at most fivefold) to the modality's mean
        and sd in all batches, before anything else: mapped values are in these units.
    features
        Mapped features to write; default all while cells × features is at most 2·10⁸, else none: then
        `get.mapped(features=)` decodes them. A dict by target modality, or one list for all.
    layer
        Layer with the values; default `X`. Here and below: one value, or a dict by modality.
    use_rep
        `obsm` key that is model space already: no smoothing, no PCA, and the representation itself is what is mapped.
    mask_var
        Boolean `var` column (or array, in a dict): features that enter the PCA; the others are decoded by regression.
    n_pcs
        Principal components of model space (default 50, METHOD §2).
    smooth
        Diffusion steps of the smoothing before the PCA; `None` or 0: none. Default `"auto"` (benchmarks/accuracy.md): 2
        where links decide which populations correspond, but 1 for panels of fewer than 50 features and in shared spaces;
        1 or 3 where 100 pairs decide, whichever finds held-out pairs better; 3 where shapes do (METHOD §2). Where links or
        pairs decide, neighbours are looked for on denoised principal components, and cells keep .3 of their own values in
        model space (not in a shared one, nor of `use_rep`); what is mapped is the smoothed layer all the same.
    spatial
        `obsm` key of coordinates (2 or 3 columns) that are mapped along (METHOD §9), for :func:`scmmgan.tl.place`; a key
        is for all modalities that have it, or give a dict. Default `None`. Neighbours in the tissue, by these or by
        `obsm["spatial"]` (a dict with `None` for a modality leaves its own out), help links to tell values where they are
        better than the map (below).
    method
        `"scmmgan"` (default). For comparison: `"coupling"`, the coupling itself as a map, between the 15 nearest cells,
        without training (nothing below down to `lr` matters to it); `"scmmgan-paper"`, the published networks, weights
        and rates, which follow linked features and known pairs but no coupling; `"cyclegan"`, the default's networks
        with nothing but adversarial and cycle terms.
    geometry
        How a batch's geometry is compared with its images': `"heat"`, `"subspace"` or `"eigvec"` (METHOD §6), `None`:
        not at all. Default `"auto"`, the method's own: heat, eigvec (`"scmmgan-paper"`) or none (`"cyclegan"`).
    cycle_as_real
        Round trips count as measured cells for the discriminator, as in the paper's text.
    weights
        Loss weights to change: `cycle` 1, `anchors` 5 (falls to 0 at 70 % of the steps), `links` 1 (METHOD §5);
        `adversarial` .5, `geometry` .1 and, in a shared space, `identity` 10 (benchmarks/accuracy.md). 0 leaves a term
        out. `"scmmgan-paper"`: adversarial 1, anchors (known pairs) and links 10, geometry 1, no identity; `"cyclegan"`:
        adversarial and cycle 1.
    max_steps
        Training steps (default 1,000, METHOD §5; `"scmmgan-paper"`: 20,000).
    batch_size
        Cells of each modality per step (default 256, METHOD §5; fewer where there are fewer).
    lr
        Adam's learning rate (default 1e-3, METHOD §5), warmed up over 50 steps, decaying over the last 40 %.
        `"scmmgan-paper"`: 1e-4, constant.
    noise_dim
        Width of the noise z ~ N(0, I) that generators take beside a cell, drawn anew at every use in training (default
        0: none; METHOD §7 takes half of model space). One number, or a dict by source modality. Mapped values are those
        of z = 0; :func:`scmmgan.tl.uncertainty` draws. Not for `method="coupling"`.
    random_state
        Seed of everything random; the global numpy and torch generators stay untouched. The same seed gives the same bits on CPU.
    device
        `"auto"` (CUDA if there is a device, else CPU), or `"cpu"`, `"cuda"`, `"mps"`.
    key_added
        Name of the alignment; several may live in one object.
    copy
        Return a copy instead of writing to `mdata`.
    progress_bar
        Show the progress with current losses.

    Returns
    -------
    `None`, or a copy of `mdata` if `copy=True`. Sets, for all modalities a and b aligned:

    `mdata[a].layers[f"{key_added}_{b}"]` : float32, cells × features of b
        Cells of a in the features of b, in the units of b's (smoothed) layer: never counts. Where both have the same
        `var_names`; otherwise in `mdata[a].obsm[f"{key_added}_{b}"]`, with the names in `uns`.
    `mdata[a].obsm[f"X_{key_added}"]` : float32, cells × sum of the model spaces' widths
        Joint embedding: the blocks of all modality spaces, each over the sd of its measured cells. Squared distances
        in a block count axes by the share of their variance that the coupling brings back from the other modalities
        (benchmarks/accuracy.md), for measured and mapped cells alike; `"scmmgan-paper"` and `"cyclegan"`, which follow
        no coupling, count all alike.
    `mdata.obsm[f"X_{key_added}"]` : float32
        The same for all cells, only when all modalities are aligned and no cell name occurs twice.
    `mdata[a].obsm[f"{key_added}_plan_{b}"]` : sparse, cells × landmarks of b
        The coupling that the training started from.
    `mdata[a].obsm[f"{key_added}_told_{b}"]` : float32, cells × b's model space
        What the mapped values are decoded from, only where it is not the map: where nothing supports the coupling of 8 to
        100 links (8 without a feature in common; weights do not count here) and these, held out, are told better by a
        regression inside b than by a coupling (benchmarks/accuracy.md, "Where links tell more than the map"). The joint
        embedding is the map's all the same.
    `mdata[a].obs[f"{key_added}_unmatched"]` : float32 (suffix `_{b}` with more than two modalities)
        Share of the cell's mass that found no partner in b, 0 to 1: to rank cells by. 0 for known pairs. Only where
        links, 100 pairs or labels made the coupling, not for shapes. Without labels it is averaged over the neighbours
        that a cell is smoothed with (benchmarks/accuracy.md, "Who has no partner").
    `mdata[a].obs[f"{key_added}_ambiguous"]` : bool (suffix `_{b}` with more than two modalities)
        Couplings made without a fifth of the evidence, or rivals of nearly the same cost, send the cell elsewhere in b.
    `mdata.uns[key_added]` : dict
        `params` (arguments as used, versions, device, seconds; `told`: what tells mapped values), `features`, `landmarks`, `history`, `model` and
        `diagnosis`: what supports each pair of modalities, in words and numbers (:func:`scmmgan.tl.diagnose`, which see).
        Its verdict is logged, as a warning where nothing supports the alignment.

    Raises
    ------
    KeyError
        If a modality, layer, column, obsm key, feature or cell is not there.
    TypeError
        If `mdata` is not a MuData or `links`, `pairs`, `labels` or `batch` is of no known kind.
    ValueError
        If values are not finite or constant, a modality has fewer than 32 cells, names are not unique, links match
        fewer than 3 features, there are fewer than 3 pairs or a cell has two partners, labels have different
        vocabularies, a batch has fewer than 32 cells, or training does not get off the ground.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, "rna", "protein", links="gene", max_steps=50, progress_bar=False)
    >>> mdata["rna"].obsm["scmmgan_protein"].shape == (mdata["rna"].n_obs, mdata["protein"].n_vars)
    True
    """
    arguments = {name: value for name, value in locals().items() if name not in {"mdata", "modalities", "copy"}}
    start = time.perf_counter()
    names = _domain.check_modalities(mdata, modalities)
    arguments |= _settings(arguments)
    per_modality = _per_modality(arguments, names)
    arguments |= {name: per_modality[name] for name in _problem.DEFAULTS if isinstance(arguments[name], Mapping)}
    keys, random_state = Keys(key_added), arguments["random_state"]
    _slots.check_free(mdata, names, _read(per_modality, names, pairs, spatial), keys)
    _check_copy(mdata, names, copy=copy)
    problem = _problem.read(mdata, names, per_modality, links=links, pairs=pairs, random_state=random_state)
    domains, coordinates = problem.domains, _domain.read_coordinates(mdata, names, spatial)
    written = _slots.written_features(domains, per_modality["features"])
    couplings, loadings = problem.couple(random_state)
    records, ambiguous = problem.diagnose(couplings, random_state)

    from scmmgan.model.nets import methods

    chosen = ("weights", "max_steps", "batch_size", "lr", "geometry", "cycle_as_real", "random_state", "device")
    settings = {name: arguments[name] for name in chosen}
    settings |= {"noise_dim": per_modality["noise_dim"], "coordinates": coordinates}
    aligner, history = methods.fit(
        method, problem.x, couplings, loadings, shared=problem.shared, progress_bar=progress_bar, **settings
    )
    records = _verdict.judge_all(records, _quality.score_map(aligner, domains, couplings, random_state=random_state))
    told, by = _told.by_links(mdata, problem, records, arguments)
    mdata = mdata.copy() if copy else mdata
    params = _params(arguments | {"modalities": names, "told": by} | problem.as_used, couplings, problem.shared, start)
    _slots.write(
        mdata, domains, aligner, couplings, history=history, params=params, features=written,
        diagnosis=records, ambiguous=ambiguous, told=told, keys=keys,
    )  # fmt: skip
    return mdata if copy else None


def _read(
    per_modality: Mapping[str, dict[str, Any]], names: Sequence[str], pairs: Any, spatial: Any
) -> dict[str, list[str]]:
    """Layers, obsm keys and columns that are read, by modality."""
    by = [
        *(per_modality[argument] for argument in ("layer", "use_rep", "labels", "batch")),
        dict.fromkeys(names, pairs),
    ]
    by.append(dict(spatial) if isinstance(spatial, Mapping) else dict.fromkeys(names, spatial))
    return {name: [of[name] for of in by if isinstance(of.get(name), str)] for name in names}


def _check_copy(mdata: MuData, names: Sequence[str], *, copy: bool) -> None:
    """ValueError where neither a copy nor `mdata` itself could take the results."""
    if not copy:
        _domain.check_writable(mdata, names)
    elif mdata.isbacked:
        raise ValueError("A backed `mdata` cannot be copied in memory. Read it without `backed`, or leave `copy` out.")


def _settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Checked settings of the training, all loss weights among them."""
    from scmmgan.model.nets import methods

    method = methods.lookup(arguments["method"])
    geometry = method.geometry if arguments["geometry"] == "auto" else methods.check_geometry(arguments["geometry"])
    if not isinstance(arguments["cycle_as_real"], bool):
        raise TypeError(f"`cycle_as_real` must be True or False, got {arguments['cycle_as_real']!r}.")
    # what is not given is the method's own
    own = {name: getattr(method, name) for name in ("max_steps", "batch_size", "lr") if arguments[name] is None}
    arguments = {**arguments, **own}
    key_added, lr, weights = arguments["key_added"], arguments["lr"], arguments["weights"]
    if not isinstance(key_added, str) or not _domain.storable(key_added):
        raise ValueError(f"`key_added` must be a name without slashes, not empty and not '.', got {key_added!r}.")
    whole = {
        "max_steps": _domain.whole_number(arguments["max_steps"], "max_steps", low=1),
        "batch_size": _domain.whole_number(arguments["batch_size"], "batch_size", low=_domain.MIN_CELLS),
        "random_state": _domain.whole_number(arguments["random_state"], "random_state", low=0, high=_domain.MAX_SEED),
    }
    if not (isinstance(lr, Real) and 0 < float(lr) < float("inf")):
        raise ValueError(f"`lr` must be a finite number above 0, got {lr!r}.")
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(f"`weights` must be a dict from loss to weight, got {weights!r}.")
    if unknown := sorted({str(name) for name in weights or {}} - set(method.weights)):
        raise KeyError(f"`weights` names losses {unknown}. Known: {list(method.weights)}.")
    merged = {**method.weights, **(weights or {})}
    if bad := {n: w for n, w in merged.items() if not (isinstance(w, Real) and 0 <= float(w) < float("inf"))}:
        raise ValueError(f"`weights` must be finite numbers, none negative, got {bad}.")
    if not any(merged.values()):
        raise ValueError("All `weights` are 0: nothing would be trained. Leave one above 0.")
    numbers = {"lr": float(lr), "weights": {name: float(weight) for name, weight in merged.items()}}
    return {**whole, **numbers, "geometry": geometry, "device": _device(arguments["device"])}


def _per_modality(arguments: Mapping[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
    """The arguments that may differ between modalities, as dicts; numbers are checked."""
    out = {
        argument: _domain.per_modality(arguments[argument], names, argument, _problem.DEFAULTS.get(argument))
        for argument in ("layer", "use_rep", "mask_var", "smooth", "n_pcs", "features", "labels", "batch", "noise_dim")
    }
    for argument, low in (("smooth", 0), ("n_pcs", 1), ("noise_dim", 0)):
        out[argument] = {
            name: value
            if value is None or _is_auto(value, argument)
            else _domain.whole_number(value, argument, low=low)
            for name, value in out[argument].items()
        }
    if arguments["method"] == "coupling" and any(out["noise_dim"].values()):
        raise ValueError("`method='coupling'` trains nothing that could take noise. Leave `noise_dim` out.")
    return out


def _is_auto(value: Any, argument: str) -> bool:
    """Whether the steps of smoothing are left to what is known; TypeError for other words."""
    if argument == "smooth" and isinstance(value, str) and value != "auto":
        raise TypeError(f"`smooth` must be 'auto', a whole number or None, got {value!r}.")
    return argument == "smooth" and isinstance(value, str)


def _device(device: str) -> str:
    import torch

    if not isinstance(device, str):
        raise TypeError(f"`device` must be 'auto', 'cpu', 'cuda' or 'mps', got {device!r}.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device):
        raise ValueError(f"Device {device!r} is not available. Here: {[d for d, there in available.items() if there]}.")
    return device


def _params(
    arguments: dict[str, Any], couplings: Mapping[tuple[str, str], Coupling], shared: bool, start: float
) -> dict[str, Any]:
    """Arguments as used, what the coupling came from, versions and time, in types that every format stores."""
    from importlib.metadata import version

    for name in ("links", "pairs"):
        if isinstance(table := arguments[name], pd.DataFrame):
            # other columns of the user's table may be of types that no format stores
            used = [c for c in (*arguments["modalities"], "weight", "sign") if c in table]
            arguments = arguments | {name: table[used]}
    params = {name: _plain(value) for name, value in arguments.items()}
    params["coupling"] = {
        a: {t: {**c.info, "relaxed": c.relaxed} for (s, t), c in couplings.items() if s == a} for a, _ in couplings
    }
    params["shared_space"] = shared
    params["versions"] = {name: version(name) for name in ("scmmgan", "torch", "numpy", "anndata", "mudata")}
    params["seconds"] = time.perf_counter() - start
    return params


def _plain(value: Any) -> Any:
    """A value as str, bool, number, array, DataFrame with string columns, or dict of these."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, pd.DataFrame):
        # one by one: neither categories nor string arrays nor nullable numbers may be left
        return pd.DataFrame(
            {
                str(c): v.to_numpy()
                if isinstance(v.dtype, np.dtype) and v.dtype.kind in "biuf"
                else np.array([str(entry) for entry in v], dtype=object)
                for c, v in value.items()
            }
        )
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bool | int | float | str | np.ndarray):
        return value
    if isinstance(value, Sequence | pd.Index | pd.Series):
        return np.array(list(value), dtype=object if all(isinstance(v, str) for v in value) else None)
    return str(value)
