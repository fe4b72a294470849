"""Train maps between modalities that were measured on different cells."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from os import PathLike
from pathlib import Path
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
from scmmgan.model.progress import Stages, shown
from scmmgan.model.space.linear import one_thread
from scmmgan.tl._translate import _model_of

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from mudata import MuData

    from scmmgan.model.coupling.couple import Domains, Loadings
    from scmmgan.model.coupling.coupling import Coupling
    from scmmgan.model.nets.processes import Processes
    from scmmgan.model.nets.trained import Trained
    from scmmgan.model.problem import Pair, Problem
    from scmmgan.model.space.transform import Transform

    Coupled = tuple[Mapping[Pair, Coupling], Mapping[Pair, Loadings]]

logger = logging.getLogger("scmmgan")


def align(
    mdata: MuData | Mapping[str, AnnData],
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
    maps: str = "all",
    method: str = "scmmgan",
    geometry: str | None = "auto",
    cycle_as_real: bool = False,
    weights: Mapping[str, float] | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    hidden: int | str | None = None,
    options: Mapping[str, bool | float] | None = None,
    noise_dim: int | Mapping[str, int] = 0,
    init: MuData | Trained | str | PathLike[str] | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    random_state: int = 0,
    device: str | torch.device = "auto",
    devices: int = 1,
    precision: str = "float32",
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

    Of three and more modalities each pair goes by what it has: links, pairs and labels in any combination. Two of which
    nothing is known are coupled through a third one where links or pairs lead there and on, else by their shapes; their
    verdict says so.

    Parameters
    ----------
    mdata
        One modality per technology, normalised values (log1p, CLR, TF-IDF; see :func:`scmmgan.pp.normalize`). Or a dict of
        AnnData by modality, of which a new MuData holds copies, which is returned.
    *modalities
        Two or more modalities; default: all.
    links
        Linked features. `"auto"` (default): whatever links most, nearly one to one: equal `var_names`, a `var` column of
        one side that holds names or a column of the other, or antibodies and the genes of their antigens. One line says
        what was taken, or what would match in another spelling and what to type. `"var_names"`, a `var` column that names
        genes, a table (see :func:`scmmgan.pp.link_features`), or `None`. At least 3; 10 can be validated.
    pairs
        Cells known to be the same: `"obs_names"` (equal names), a boolean `obs` column, or a table with one column of
        cell names per modality. At least 3. 100 or more place all other cells; fewer help links or shapes. With a column
        `weight` (above 0, at most 1) a cell may have several partners: `method="jamie"` only.
    labels
        `obs` column with one vocabulary, gaps allowed. Cells of different labels are not coupled, and
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
    maps
        `"all"` (default): every modality is mapped to every other one. `"star"`: only pairs with the first modality named are
        coupled and trained, and the others are mapped through it, into the same slots: networks grow with the number of
        modalities, not with its square. The same for two modalities.
    method
        `"scmmgan"` (default). For comparison: `"coupling"` (no training), `"scmmgan-paper"` (published networks and
        weights), `"cyclegan"` (adversarial and cycle terms alone). Or autoencoders with one latent space, which need no coupling: `"cmae"`
        and `"con-aae"` (labels, pairs or nothing), `"scmodal"` (links), `"jamie"` (pairs or nothing). They read at most
        2,000 features and the linked ones, not smoothed (`"jamie"`: 512 principal components), and have no verdict, since there is no
        coupling that could be tested. What a method cannot use is refused. `"scmodal-cca"` looks for links first (links, pairs or
        nothing given), `"links-matching"` matches cells one to one (links). Baselines without networks, for
        :func:`scmmgan.tl.compare`: `"random"`, `"depth"`, `"label-only"`, `"label-probability"`, `"links-correlation"`,
        `"links-cca"`, `"procrustes"` and `"paired-cca"` (pairs), `"moment-matching"` (equal names).
    geometry
        How a batch's geometry is compared with its images': `"heat"`, `"subspace"`, `"eigvec"` or `None`. Default
        `"auto"`: heat; eigvec for `"scmmgan-paper"`, none for `"cyclegan"`. Of `"scmodal"`: `"kernel"` (default, as published; on many
        features it says nothing), `"centred"` or `None`.
    cycle_as_real
        Round trips count as measured cells for the discriminator, as in the paper's text.
    weights
        Loss weights to change: `adversarial` .5, `cycle` 1, `anchors` 5, `links` 1, `geometry` .1, `identity` 10 (shared genes
        only), `consistency` 0 (three modalities or more with `maps="all"`: the direct map against those through a third one). 0
        leaves a term out. Other methods have weights of their own, which an unknown name lists.
    max_steps
        Training steps (default 500; `"cyclegan"`: 1,000; `"scmmgan-paper"`: 20,000; as published, for 1,500 cells, `"cmae"`: 192,000,
        `"con-aae"`: 180,000, `"scmodal"`: 10,000; `"jamie"`: 10,000, of which each is an epoch of up to 1,023 cells). Autoencoders end with the weights that do best on held-out cells:
        `params["fit"]["steps_used"]`.
    batch_size
        Cells of each modality per step, at least 32 (default 128; `"cmae"` and `"con-aae"`: 32, `"scmodal"`: 500, `"jamie"`: 512;
        fewer where there are fewer).
    lr
        Adam's learning rate (default 2e-3; `"cyclegan"`, `"scmodal"`, `"jamie"`: 1e-3; `"scmmgan-paper"`, `"cmae"`, `"con-aae"`: 1e-4).
    hidden
        Widest hidden layer of the autoencoder methods. Default `None`: as published, but at most 512; `"published"`: without
        that limit; or a number.
    options
        Settings that one method alone has, by name: `"cmae"`: `conditional_adversary` (default False; True: the critic reads the
        labels, too); `"jamie"`: `dropout` (0; the paper takes 0.6 to predict values) and `ratio` r (1; less: latent cells are averaged by r
        times the known and 1 - r times the inferred correspondence, in which all partners of a cell weigh 1); `"links-matching"`: `weak_links` (False; True as published for few shared features).
    noise_dim
        Width of the noise that generators take beside a cell (default 0: none). Mapped values are those without noise;
        :func:`scmmgan.tl.uncertainty` samples it.
    init
        What was trained before, to be trained on with more or other cells: an aligned MuData (its alignment `key_added`), a
        directory of :func:`scmmgan.save`, or what :func:`scmmgan.load` or `get.model` return. Of the same modalities and
        features. The networks start from its weights, and its model space is kept: new cells get the components, the mean and
        the scale of then. Couplings, evidence and the embedding's metric are made anew.
    checkpoint_dir
        Directory for the state of the training, written every 50 steps (one file, nothing pickled). After Ctrl-C, SIGTERM
        or a crash the same call goes on from it, to the same bits as one that was not interrupted. A file of other data or
        arguments is refused. It stays there afterwards.
    random_state
        Seed of everything random. The same seed gives the same bits on CPU; global generators stay untouched.
    device
        `"auto"` (CUDA if there is a device, else CPU), or `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`, or a
        :class:`torch.device`.
    devices
        Number of processes that train together, each on a device of its own. All are started by `torchrun
        --nproc-per-node=2 script.py` and call this on the same data; each takes `batch_size` cells per step, gradients are
        averaged, and all write the same. Only methods with a coupling that train.
    precision
        Of matrix products outside the geometry term, which stays in full precision: `"float32"` (default), `"tf32"` (GPU: 3 to 17 %
        faster steps) or `"bf16"` (networks alone; GPU or CPU, gained nothing). Weights stay in float32.
    key_added
        Name of the alignment; several may live in one object.
    save_model
        Keep the networks, transforms and at most 20,000 training cells of each modality in `mdata.uns` (default), for
        :func:`scmmgan.tl.translate`, :func:`scmmgan.save`, `get.mapped(features=)` and other tools that map cells.
    copy
        Return a copy instead of writing to `mdata`.
    progress_bar
        Show the progress of the training with current losses, and of what else takes longer than two seconds, with the time
        that is left.

    Returns
    -------
    `None`, or a copy of `mdata` if `copy=True` (a new MuData where `mdata` is a dict). Sets, for all modalities a and b aligned
    (without a coupling only mapped values, joint embedding and `uns`):

    `mdata[a].obsm[f"{key_added}_{b}"]` : float32, cells × features of b
        Cells of a in the features of b (names in `uns`), in the units of b's smoothed layer: never counts. Where both have
        the same `var_names` once more in `mdata[a].layers[f"{key_added}_{b}"]`.
        Methods without a coupling: in the units of b's layer; features that they do not read are predicted from the latent cells by
        ridge regression. What only b has is partly (.4) decoded from the mapped cell, partly predicted from the counts of a (`counts`). Not
        below 0 where the layer of b is not.
    `mdata[a].obsm[f"{key_added}_counts_{b}"]` : float32, cells × 90
        Scores of a's counts from which that part is predicted; only where it is.
    `mdata[a].obsm[f"X_{key_added}"]` : float32, cells × sum of the model spaces' widths
        Joint embedding: the blocks of all modality spaces, each over the sd of its measured cells. Axes of a block count
        by their round-trip reliability under the coupling, and so do blocks of three modalities or more. Of a method
        without a coupling: its latent cells.
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
        `format`, `params` (arguments as used, versions, device, and `seconds` by stage: `"reading"`, `"graph"` (neighbours,
        smoothing, components), `"coupling"`, `"evidence"`, `"training"`, `"scores"`, `"writing"`; only these differ between
        two runs), `features`, `landmarks`, `history`, `model` and `diagnosis`: what supports each pair of modalities, in words and numbers (:func:`scmmgan.tl.diagnose`). The
        verdict is logged in one line, as a warning where it is "weak" or "not identifiable".

    Raises
    ------
    KeyError
        If a modality, layer, column, obsm key, feature or cell is not there.
    TypeError
        If `mdata` is neither a MuData nor a dict of AnnData, or `links`, `pairs`, `labels`, `batch` or `library_key` is of no known kind.
    ValueError
        If values are not finite or constant, a modality has fewer than 32 cells, names are not unique, links match
        fewer than 3 features, there are fewer than 3 pairs or a cell has two partners, labels have different
        vocabularies, a batch has fewer than 32 cells, a column of sections has gaps, the method cannot use an argument or lacks
        one that it needs, `devices` is not the number of processes or these differ in their data, `init` or what is in
        `checkpoint_dir` does not belong to the data and arguments, or training does not get off the ground.

    RuntimeError
        If another of several processes has ended, hangs for 30 seconds while they train, or does not come within 300.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, "rna", "protein", links="gene", max_steps=50, progress_bar=False)
    >>> mdata["rna"].obsm["scmmgan_protein"].shape == (mdata["rna"].n_obs, mdata["protein"].n_vars)
    True
    """
    own = {"mdata", "modalities", "copy", "save_model", "init"}
    arguments = {name: value for name, value in locals().items() if name not in own}
    stages, made = Stages(), isinstance(mdata, Mapping)
    with one_thread(), stages("reading"):
        mdata = _modality.collected(mdata)
        names = _modality.check_modalities(mdata, modalities)
        arguments |= _settings(arguments, names)
        arguments |= _per_modality(arguments, names)
        keys = Keys(key_added)
        _slots.check_free(mdata, names, _slots_read(arguments, names), keys)
        _check_copy(mdata, names, copy=copy)
        if not isinstance(save_model, bool):
            raise TypeError(f"`save_model` must be True or False, got {save_model!r}.")
        before = None if init is None else _trained(init, names, arguments)
        problem = _read.read(mdata, names, arguments)
        written = _slots.written_features(problem, arguments["features"])

    from scmmgan.model.nets import methods, processes

    fit = _after_coupling if methods.lookup(method).fit is None else _without_coupling
    with one_thread(), processes.joined(devices, arguments["device"]) as group, shown(progress_bar and not group.rank):
        write, facts = fit(problem, arguments, before, stages, group)
    params = _params(arguments | {"modalities": names, "known": problem.fingerprint, "smooth": problem.steps})
    params["library_key"] = {m: of.sections.column for m, of in problem.modalities.items() if of.sections} or "None"
    params |= facts
    with one_thread(), stages("writing"):
        mdata = _modality.copied(mdata) if copy and not made else mdata
        write(mdata, params=params, stages=stages, features=written, save_model=save_model, keys=keys)
    stages.log("Aligned")
    return mdata if copy or made else None


def _after_coupling(
    problem: Problem, arguments: Mapping[str, Any], before: Trained | None, stages: Stages, group: Processes
) -> tuple[Callable[..., None], dict[str, Any]]:
    """Couple, train and score; what writes the results, and what is recorded beside the arguments."""
    from scmmgan.model.coupling.couple import couple
    from scmmgan.model.evidence import populations, quality, verdict
    from scmmgan.model.nets import methods
    from scmmgan.model.space.domain import model_space
    from scmmgan.model.space.imputation import fit_imputations

    seed = arguments["random_state"]
    kept = None if before is None else _kept_transforms(before, problem)
    with stages("graph"):
        domains = model_space(problem, random_state=seed, transforms=kept)
    with stages("coupling"):
        couplings, loadings = couple(problem, domains, random_state=seed)
    with stages("evidence"):
        records, ambiguous = populations.diagnose(problem, domains, couplings, random_state=seed)
    settings = {name: arguments[name] for name in methods.SETTINGS}
    settings |= {"init": before and before.aligner, "processes": group}
    with stages("training"):
        aligner, history = methods.fit_problem(problem, domains, couplings, loadings, settings)
    with stages("scores"):
        images = {(a, b): aligner.translate(domains[a].x, a, b) for a, b in couplings}
        imputations = fit_imputations(problem, domains, images, random_state=seed)
        scores = quality.score_map(
            aligner, domains, couplings, two_sample_auc=metrics.two_sample_auc, random_state=seed, centre=problem.centre
        )
        depths = quality.depth_correlations(domains, images)
    write = partial(
        _write_and_keep, problem=problem, domains=domains, coupled=(couplings, loadings), aligner=aligner,
        images=images, imputations=imputations, history=history, diagnosis=verdict.verdicts(records, scores, depths),
        ambiguous=ambiguous,
    )  # fmt: skip
    facts = {"coupling": _coupling_info(couplings, problem.shared), "shared_space": {*couplings} == {*problem.shared}}
    return write, facts | {"init": before is not None}


def _write_and_keep(
    mdata: MuData, *, problem: Problem, domains: Domains, coupled: Coupled, keys: Keys, **results: Any
) -> None:
    """Write the results, and keep what they were made of for tools that follow."""
    _slots.write(mdata, domains=domains, couplings=coupled[0], keys=keys, **results)
    _kept.keep(mdata, problem, domains, coupled, keys)


def _without_coupling(
    problem: Problem, arguments: Mapping[str, Any], before: Trained | None, stages: Stages, group: Processes
) -> tuple[Callable[..., None], dict[str, Any]]:
    """The same for a method that fits the problem by itself."""
    from scmmgan.model.evidence import verdict
    from scmmgan.model.nets import methods

    name = arguments["method"]
    with stages("training"):
        fitted = methods.fit_latent(name, problem, {of: arguments[of] for of in methods.LATENT_SETTINGS})
    diagnosis = verdict.without_coupling(problem, name)
    write = partial(_slots.write_latent, problem=problem, fitted=fitted, diagnosis=diagnosis)
    kinds = {a: {b: {"kind": "none", "relaxed": False} for b in problem.names if b != a} for a in problem.names}
    info = {k: pd.DataFrame(dict(v)) if isinstance(v, Mapping) else v for k, v in fitted.info.items()}
    return write, {"coupling": kinds, "shared_space": False, "fit": info, "init": False}


def _trained(
    init: MuData | Trained | str | PathLike[str], names: Sequence[str], arguments: Mapping[str, Any]
) -> Trained:
    """The model that is trained on; ValueError where it is of other modalities, or nothing is trained."""
    from scmmgan.model.nets.methods import lookup
    from scmmgan.model.nets.trained import Trained

    found = _model_of(init, arguments["key_added"], "init")
    if not isinstance(found, Trained) or lookup(arguments["method"]).fit is not None:
        raise ValueError("`init` needs a method with a coupling, then and now: `method='scmmgan'`. Leave `init` out.")
    if found.modalities != list(names):
        raise ValueError(
            f"`init` maps between {found.modalities}, and {list(names)} are aligned. Name the same, in that order."
        )
    return found


def _kept_transforms(before: Trained, problem: Problem) -> Mapping[str, Transform]:
    """The transforms of a model that is trained on; ValueError where it knows other features."""
    for name, m in problem.modalities.items():
        own, then = m.features.tolist(), before.features[name].tolist()
        if own != then:
            new, gone = len(set(own) - set(then)), len(set(then) - set(own))
            order = (
                "in another order"
                if not new + gone
                else f"{new} of which `init` does not know, and {gone} of its are missing"
            )
            raise ValueError(
                f"{name!r} has {len(own)} features, {order}. `init` needs the same: take them by name, "
                f"`mdata.mod[{name!r}] = mdata[{name!r}][:, scmmgan.get.model(previous).features[{name!r}]].copy()`."
            )
    return before.transforms


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


def _settings(arguments: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Checked settings of the training, all loss weights among them, and what the method leaves out."""
    from scmmgan.model.nets import methods, processes

    method = methods.lookup(arguments["method"])
    left = methods.check_arguments(arguments["method"], arguments, names)
    geometry = arguments["geometry"]
    geometry = method.geometry if geometry == "auto" else methods.check_geometry(geometry, method.geometries)
    if not isinstance(arguments["cycle_as_real"], bool):
        raise TypeError(f"`cycle_as_real` must be True or False, got {arguments['cycle_as_real']!r}.")
    unused = [
        name for name, without in methods.TRAINING.items() if not method.trains and arguments[name] not in without
    ]
    if unused:
        logger.warning("method=%r trains nothing: %s not used.", arguments["method"], ", ".join(unused))
    # what is not given is the method's own
    own = {name: getattr(method, name) for name in ("max_steps", "batch_size", "lr") if arguments[name] is None}
    arguments = {**arguments, **own}
    _modality.check_key_added(arguments["key_added"])
    lr, weights = arguments["lr"], arguments["weights"]
    whole = {
        "max_steps": _modality.whole_number(arguments["max_steps"], "max_steps", low=1),
        "batch_size": _modality.whole_number(arguments["batch_size"], "batch_size", low=MIN_CELLS),
        "random_state": _modality.whole_number(arguments["random_state"], "random_state", low=0, high=MAX_SEED),
        "devices": _modality.whole_number(arguments["devices"], "devices", low=1),
    }
    if not (isinstance(lr, Real) and 0 < float(lr) < float("inf")):
        raise ValueError(f"`lr` must be a finite number above 0, got {lr!r}.")
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(f"`weights` must be a dict from loss to weight, got {weights!r}.")
    weights = weights if method.weights else None  # said above to be unused
    if unknown := sorted({str(name) for name in weights or {}} - set(method.weights)):
        raise KeyError(f"`weights` names losses {unknown}. Known: {list(method.weights)}.")
    merged = {**method.weights, **(weights or {})}
    if bad := {n: w for n, w in merged.items() if not (isinstance(w, Real) and 0 <= float(w) < float("inf"))}:
        raise ValueError(f"`weights` must be finite numbers, none negative, got {bad}.")
    if merged and not any(merged.values()):
        raise ValueError("All `weights` are 0: nothing would be trained. Leave one above 0.")
    numbers = {"lr": float(lr), "weights": {name: float(weight) for name, weight in merged.items()}}
    hidden = arguments["hidden"]
    if hidden is not None and hidden != "published":
        hidden = _modality.whole_number(hidden, "hidden", low=2)
    _check_goes_on(arguments)
    device = processes.named(arguments["device"])
    precision = methods.check_precision(arguments["precision"], device)
    if arguments["method"] == "coupling" and whole["devices"] > 1:
        raise ValueError("`method='coupling'` trains nothing that processes could share. Leave `devices` out.")
    processes.check(whole["devices"], device)
    if arguments["maps"] not in ("all", "star"):
        raise ValueError(f"`maps` must be 'all' or 'star', got {arguments['maps']!r}.")
    if merged.get("consistency") and (len(names) < 3 or arguments["maps"] != "all"):
        raise ValueError(
            "`weights` has `consistency`, of a direct map with those through a third modality: it needs three modalities and "
            f"`maps='all'`; here are {list(names)} and `maps={arguments['maps']!r}`. Leave it out."
        )
    left |= {"geometry": geometry, "device": device, "precision": precision, "hidden": hidden}
    left["options"] = methods.check_options(arguments["method"], arguments["options"]) or None
    return {**whole, **numbers, **left}


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


def _check_goes_on(arguments: Mapping[str, Any]) -> None:
    """ValueError where a training could not be kept."""
    where = arguments["checkpoint_dir"]
    if where is None:
        return
    if not isinstance(where, str | PathLike):
        raise TypeError(f"`checkpoint_dir` must be a path, got {where!r}.")
    if arguments["method"] == "coupling":
        raise ValueError("`method='coupling'` trains nothing that could be kept. Leave `checkpoint_dir` out.")
    path = Path(where).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"`checkpoint_dir` {str(where)!r}: {str(there)!r} is a file. Name a directory.")
    if not os.access(there, os.W_OK):
        raise ValueError(
            f"`checkpoint_dir` {str(where)!r}: {str(there)!r} cannot be written to. Name another directory."
        )


def _is_auto(value: Any, argument: str) -> bool:
    """Whether the steps of smoothing are left to what is known; TypeError for other words."""
    if argument == "smooth" and isinstance(value, str) and value != "auto":
        raise TypeError(f"`smooth` must be 'auto', a whole number or None, got {value!r}.")
    return argument == "smooth" and isinstance(value, str)


def _params(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as used and versions, in types that every format stores."""
    from importlib.metadata import version

    for name in ("links", "pairs"):
        if isinstance(table := arguments[name], pd.DataFrame):
            # other columns of the user's table may be of types that no format stores
            used = [c for c in (*arguments["modalities"], "weight", "sign") if c in table]
            arguments = arguments | {name: table[used]}
    params = {name: _plain(_one_for_all(value)) for name, value in arguments.items()}
    params["versions"] = {name: version(name) for name in ("scmmgan", "torch", "numpy", "anndata", "mudata")}
    return params


def _one_for_all(value: Any) -> Any:
    """What all modalities have in common is stored once."""
    if isinstance(value, Mapping) and value and all(v is None for v in value.values()):
        return None
    return value


def _coupling_info(couplings: Mapping[Pair, Coupling], shared: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """What the couplings came from, and whether the two lie in one space, by source and target."""
    found: dict[str, dict[str, Any]] = {source: {} for source, _ in couplings}
    for (source, target), c in couplings.items():
        found[source][target] = {**c.info, "relaxed": c.relaxed, "shared_space": (source, target) in shared}
    return found


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
