"""Train maps between modalities that were measured on different cells."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan import metrics
from scmmgan.data import kept as _kept
from scmmgan.data import modality as _modality
from scmmgan.data import read as _read
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import MAX_SEED, MIN_CELLS, N_PCS
from scmmgan.model.space.linear import one_thread

if TYPE_CHECKING:
    import torch
    from mudata import MuData


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
    counts: str | Mapping[str, str | None] | None = "auto",
    covariates: str | Sequence[str] | Mapping[str, str | Sequence[str] | None] | None = None,
    n_pcs: int | Mapping[str, int] = N_PCS,
    smooth: int | str | Mapping[str, int | str | None] | None = "auto",
    spatial: str | Mapping[str, str] | None = None,
    library_key: str | Mapping[str, str] | None = None,
    method: str = "scmmgan",
    geometry: str | None = "auto",
    cycle_as_real: bool = False,
    weights: Mapping[str, float] | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    noise_dim: int | Mapping[str, int] = 0,
    random_state: int = 0,
    device: str | torch.device = "auto",
    key_added: str = "scmmgan",
    save_model: bool = True,
    copy: bool = False,
    progress_bar: bool = True,
) -> MuData | None:
    """Learn to map every cell into the feature space of the other modalities, without paired cells.

    Which cell goes where is decided first, by a coupling: from linked features, known pairs and labels, in any
    combination, or else from the shapes of the modalities alone (Gromov-Wasserstein, experimental). A cycle-consistent
    GAN then learns maps in both directions that follow the coupling, keep each cell's neighbours, and give mapped cells
    the distribution of the measured ones. Cells with equal names are NOT taken as pairs unless `pairs` says so.

    Parameters
    ----------
    mdata
        One modality per technology, normalised values (log1p, CLR, TF-IDF; see :func:`scmmgan.pp.normalize`).
    *modalities
        Two or more modalities; default: all.
    links
        Linked features. `"auto"` (default): whatever links most, nearly one to one: equal `var_names`, a `var` column of
        one side that holds names or a column of the other, or antibodies and the genes of their antigens. One line says
        what was taken, or what would match in another spelling and what to type. `"var_names"`, a `var` column that names
        genes, a table (see :func:`scmmgan.pp.link_features`), or `None`. At least 3; 10 can be validated.
    pairs
        Cells known to be the same: `"obs_names"` (equal names), a boolean `obs` column, or a table with one column of
        cell names per modality. At least 3. 100 or more place all other cells; fewer help links or shapes.
    labels
        `obs` column with one vocabulary for all modalities, gaps allowed. Cells of different labels are not coupled, and
        cells are smoothed inside pure labels. A cell whose label the other modality lacks counts as unmatched.
    batch
        `obs` column with samples or donors, at least 32 cells each. Cells are smoothed inside their batch; each feature
        is shifted and scaled (at most fivefold) to its mean and sd over all batches.
    features
        Mapped features to write; default: all while cells × features is at most 2·10⁸, else none
        (`get.mapped(features=)` decodes them). One list for all, or a dict by target modality.
    layer
        Layer with the values; default `X`. Here and below: one value, or a dict by modality.
    use_rep
        `obsm` key that is model space already: no smoothing, no PCA; the representation itself is mapped.
    mask_var
        Boolean `var` column (or array, in a dict): features that enter the PCA. The others are decoded by regression.
    counts
        Layer with raw counts. Where two modalities share most of their features, those that only the target has are then
        predicted from the source's counts, too. Default `"auto"`: `layers["counts"]` where it holds whole numbers; `None`:
        without counts.
    covariates
        `obs` columns, or `"depth"` (log total of the counts): their effect on every feature is taken out by regression, in
        each batch, before anything else. Mapped values are then those of a cell with average covariates.
    n_pcs
        Principal components of model space (default 50).
    smooth
        Diffusion steps of smoothing before the PCA; `None` or 0: none. Default `"auto"`: 1 where links or 100 pairs decide,
        3 where shapes do.
    spatial
        `obsm` key of coordinates (2 or 3 columns) that are mapped along, for :func:`scmmgan.tl.place`.
    library_key
        `obs` column with sections that share no frame of coordinates: coordinates are mapped along inside each, and
        :func:`scmmgan.tl.place` and pictures keep to one. One for all modalities that have it, or a dict. Default: where
        coordinates are read, the column whose values are the keys of `uns["spatial"]`, else `"library_id"`; a warning
        where there seem to be several frames and no column.
    method
        `"scmmgan"` (default). For comparison: `"coupling"` (no training), `"scmmgan-paper"` (published networks and
        weights), `"cyclegan"` (adversarial and cycle terms alone).
    geometry
        How a batch's geometry is compared with its images': `"heat"`, `"subspace"`, `"eigvec"` or `None`. Default
        `"auto"`: heat; eigvec for `"scmmgan-paper"`, none for `"cyclegan"`.
    cycle_as_real
        Round trips count as measured cells for the discriminator, as in the paper's text.
    weights
        Loss weights to change: `adversarial` .5, `cycle` 1, `anchors` 5 (falls to 0 at 70 % of the steps), `links` 1,
        `geometry` .1, `identity` 10 (shared genes only). 0 leaves a term out. Other methods have weights of their own.
    max_steps
        Training steps (default 1,000; `"scmmgan-paper"`: 20,000).
    batch_size
        Cells of each modality per step, at least 32 (default 128; fewer where there are fewer).
    lr
        Adam's learning rate (default 1e-3; `"scmmgan-paper"`: 1e-4).
    noise_dim
        Width of the noise that generators take beside a cell (default 0: none). Mapped values are those without noise;
        :func:`scmmgan.tl.uncertainty` samples it.
    random_state
        Seed of everything random. The same seed gives the same bits on CPU; global generators stay untouched.
    device
        `"auto"` (CUDA if there is a device, else CPU), or `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`, or a
        :class:`torch.device`.
    key_added
        Name of the alignment; several may live in one object.
    save_model
        Keep the networks, transforms and at most 20,000 training cells of each modality in `mdata.uns` (default), for
        :func:`scmmgan.tl.translate`, :func:`scmmgan.save`, `get.mapped(features=)` and other tools that map cells.
    copy
        Return a copy instead of writing to `mdata`.
    progress_bar
        Show the progress with current losses.

    Returns
    -------
    `None`, or a copy of `mdata` if `copy=True`. Sets, for all modalities a and b aligned:

    `mdata[a].layers[f"{key_added}_{b}"]` : float32, cells × features of b
        Cells of a in the features of b, in the units of b's smoothed layer: never counts. Where both have the same
        `var_names`; otherwise in `mdata[a].obsm[f"{key_added}_{b}"]`, with the names in `uns`.
        What only b has is partly (.4) decoded from the mapped cell, partly predicted from the counts of a (`counts`). Not
        below 0 where the layer of b is not.
    `mdata[a].obsm[f"{key_added}_counts_{b}"]` : float32, cells × 90
        Scores of a's counts from which that part is predicted; only where it is.
    `mdata[a].obsm[f"X_{key_added}"]` : float32, cells × sum of the model spaces' widths
        Joint embedding: the blocks of all modality spaces, each over the sd of its measured cells. Axes of a block count
        by their round-trip reliability under the coupling.
    `mdata.obsm[f"X_{key_added}"]` : float32
        The same for all cells, only when all modalities are aligned and no cell name occurs twice.
    `mdata[a].obsm[f"{key_added}_plan_{b}"]` : sparse, cells × landmarks of b
        The coupling that the training started from.
    `mdata[a].obs[f"{key_added}_landmark"]` : int32
        Number of the landmark (cluster of cells) that stands for the cell in couplings.
    `mdata[a].obs[f"{key_added}_unmatched"]` : float32 (suffix `_{b}` with more than two modalities)
        Share of the cell's mass without a partner in b, 0 to 1: to rank cells by. Even cells of a population that b lacks
        keep most of their mass: from .1 on, averaged over its neighbours, a cell is as likely as not to have no partner
        (:func:`scmmgan.tl.transfer` and :func:`scmmgan.tl.match` count it so). Of spots, which hold several cells, .1 to .2
        is usual where nothing is missing. 0 for known pairs; not written where shapes decide without labels.
    `mdata[a].obs[f"{key_added}_ambiguous"]` : bool (suffix `_{b}` with more than two modalities)
        Couplings made without a fifth of the links or pairs, or rivals of nearly the same cost, send the cell elsewhere.
    `mdata[b].var[f"{key_added}_evidence"]`, `[f"{key_added}_evidence_q"]`, `[f"{key_added}_evidence_ceiling"]` : float (suffix `_{a}` with more than two modalities)
        Where there are links: held-out correlation of each linked feature of b, its q, and the share of what noise allows
        that it reaches (:func:`scmmgan.tl.diagnose`); NaN for the others.
    `mdata.uns[key_added]` : dict
        `format`, `params` (arguments as used, versions, device, seconds), `features`, `landmarks`, `history`, `model` and
        `diagnosis`: what supports each pair of modalities, in words and numbers (:func:`scmmgan.tl.diagnose`). The
        verdict is logged in one line, as a warning where it is "weak" or "not identifiable".

    Raises
    ------
    KeyError
        If a modality, layer, column, obsm key, feature or cell is not there.
    TypeError
        If `mdata` is not a MuData or `links`, `pairs`, `labels`, `batch` or `library_key` is of no known kind.
    ValueError
        If values are not finite or constant, a modality has fewer than 32 cells, names are not unique, links match
        fewer than 3 features, there are fewer than 3 pairs or a cell has two partners, labels have different
        vocabularies, a batch has fewer than 32 cells, a column of sections has gaps, or training does not get off the ground.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, "rna", "protein", links="gene", max_steps=50, progress_bar=False)
    >>> mdata["rna"].obsm["scmmgan_protein"].shape == (mdata["rna"].n_obs, mdata["protein"].n_vars)
    True
    """
    arguments = {
        name: value for name, value in locals().items() if name not in {"mdata", "modalities", "copy", "save_model"}
    }
    start = time.perf_counter()
    names = _modality.check_modalities(mdata, modalities)
    arguments |= _settings(arguments) | _per_modality(arguments, names)
    keys = Keys(key_added)
    _slots.check_free(mdata, names, _slots_read(arguments, names), keys)
    _check_copy(mdata, names, copy=copy)
    if not isinstance(save_model, bool):
        raise TypeError(f"`save_model` must be True or False, got {save_model!r}.")

    from scmmgan.model.coupling.couple import couple
    from scmmgan.model.evidence import populations, quality, verdict
    from scmmgan.model.nets import methods
    from scmmgan.model.space.domain import model_space
    from scmmgan.model.space.imputation import fit_imputations

    with one_thread():
        problem = _read.read(mdata, names, arguments)
        written = _slots.written_features(problem, arguments["features"])
        domains = model_space(problem, random_state=arguments["random_state"])
        couplings, loadings = couple(problem, domains, random_state=arguments["random_state"])
        records, ambiguous = populations.diagnose(problem, domains, couplings, random_state=arguments["random_state"])
        aligner, history = methods.fit_problem(
            problem, domains, couplings, loadings, {name: arguments[name] for name in methods.SETTINGS}
        )
        images = {(a, b): aligner.translate(domains[a].x, a, b) for a, b in couplings}
        imputations = fit_imputations(problem, domains, images, random_state=arguments["random_state"])
        scores = quality.score_map(
            aligner, domains, couplings, two_sample_auc=metrics.two_sample_auc, random_state=arguments["random_state"]
        )
        depths = quality.depth_correlations(domains, images)
    params = _params(arguments | {"modalities": names, "known": problem.fingerprint, "smooth": problem.steps}, start)
    params["library_key"] = {m: of.sections.column for m, of in problem.modalities.items() if of.sections} or "None"
    params |= {"coupling": _coupling_info(couplings), "shared_space": problem.shared is not None}
    mdata = _modality.copied(mdata) if copy else mdata
    with one_thread():
        _slots.write(
            mdata, domains, aligner, couplings, imputations, history=history, params=params, features=written,
            diagnosis=verdict.verdicts(records, scores, depths), ambiguous=ambiguous, save_model=save_model, keys=keys,
        )  # fmt: skip
        _kept.keep(mdata, problem, domains, (couplings, loadings), keys)
    return mdata if copy else None


def _slots_read(arguments: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[str]]:
    """Layers, obsm keys and columns that are read, by modality."""
    read = ("layer", "counts", "covariates", "use_rep", "labels", "batch", "pairs", "spatial", "library_key")
    by = [dict(v) if isinstance(v := arguments[of], Mapping) else dict.fromkeys(names, v) for of in read]
    found = {name: [of.get(name) for of in by] for name in names}
    # one column, or several; a table of pairs is none
    several = {name: [[of] if isinstance(of, str) else of for of in all_of] for name, all_of in found.items()}
    return {name: [key for of in all_of if isinstance(of, Sequence) for key in of] for name, all_of in several.items()}


def _check_copy(mdata: MuData, names: Sequence[str], *, copy: bool) -> None:
    """ValueError where neither a copy nor `mdata` itself could take the results."""
    if not copy:
        _modality.check_writable(mdata, names)
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
    if not isinstance(key_added, str) or not _modality.storable(key_added):
        raise ValueError(f"`key_added` must be a name without slashes, not empty and not '.', got {key_added!r}.")
    whole = {
        "max_steps": _modality.whole_number(arguments["max_steps"], "max_steps", low=1),
        "batch_size": _modality.whole_number(arguments["batch_size"], "batch_size", low=MIN_CELLS),
        "random_state": _modality.whole_number(arguments["random_state"], "random_state", low=0, high=MAX_SEED),
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
    """The arguments that may differ between modalities and were given as dicts, complete; numbers are checked."""
    defaults = {**_read.PER_MODALITY, "noise_dim": 0, "features": None}
    out = {
        argument: _modality.per_modality(arguments[argument], names, argument, default)
        for argument, default in defaults.items()
    }
    for argument, low in (("smooth", 0), ("n_pcs", 1), ("noise_dim", 0)):
        out[argument] = {
            name: value
            if value is None or _is_auto(value, argument)
            else _modality.whole_number(value, argument, low=low)
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


def _device(device: str | torch.device) -> str:
    """The name of a device that is there, or an error that lists those that are."""
    import torch

    if not isinstance(device, str | torch.device):
        raise TypeError(
            f"`device` must be 'auto', 'cpu', 'cuda' or 'mps' (one GPU: 'cuda:1'), or a torch.device, got {device!r}."
        )
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    here = [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *["mps"][: torch.backends.mps.is_available()],
    ]
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"Device {device!r} is not available. Here: {here}.") from None
    first = f"{found.type}:{found.index or 0}" if found.type == "cuda" else found.type
    if first not in here or (found.type != "cuda" and found.index):
        raise ValueError(f"Device {str(device)!r} is not available. Here: {here}.")
    return str(found) if found.type == "cuda" else found.type


def _params(arguments: dict[str, Any], start: float) -> dict[str, Any]:
    """Arguments as used, versions and time, in types that every format stores."""
    from importlib.metadata import version

    for name in ("links", "pairs"):
        if isinstance(table := arguments[name], pd.DataFrame):
            # other columns of the user's table may be of types that no format stores
            used = [c for c in (*arguments["modalities"], "weight", "sign") if c in table]
            arguments = arguments | {name: table[used]}
    params = {name: _plain(_one_for_all(value)) for name, value in arguments.items()}
    params["versions"] = {name: version(name) for name in ("scmmgan", "torch", "numpy", "anndata", "mudata")}
    params["seconds"] = time.perf_counter() - start
    return params


def _one_for_all(value: Any) -> Any:
    """What all modalities have in common is stored once."""
    if isinstance(value, Mapping) and value and all(v is None for v in value.values()):
        return None
    return value


def _coupling_info(couplings: Mapping[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """What the couplings came from, by source and target."""
    return {a: {t: {**c.info, "relaxed": c.relaxed} for (s, t), c in couplings.items() if s == a} for a, _ in couplings}


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
