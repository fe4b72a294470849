"""Map new cells with a trained model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scmmgan import archive, get
from scmmgan.data import modality as _modality
from scmmgan.data import on_disk as _on_disk
from scmmgan.data import query as _query
from scmmgan.data import slots as _slots
from scmmgan.data import tables as _tables
from scmmgan.data.keys import Keys
from scmmgan.model.defaults import CHUNK, CHUNKS_SENT, MAX_WRITTEN, TRANSLATED_CELLS
from scmmgan.model.progress import shown, tracked
from scmmgan.model.space.linear import one_thread
from scmmgan.model.space.workers import each

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scmmgan.model.nets.trained import Trained, TrainedLatent
    from scmmgan.model.space.imputation import Imputation
    from scmmgan.model.space.reference import Located

logger = logging.getLogger("scmmgan")


def translate(
    cells: AnnData | MuData,
    source: str,
    target: str,
    *,
    model: MuData | Trained | TrainedLatent | str | PathLike[str],
    features: str | Sequence[str] | None = None,
    out: str | PathLike[str] | None = None,
    batch_size: int = TRANSLATED_CELLS,
    key: str = "scmmgan",
    progress_bar: bool = True,
) -> AnnData:
    """Map new cells of `source` into the features of `target` with a model that was trained on others.

    Features are matched by name, in any order; those that the training cells had and the new ones lack count as the
    training mean. Every cell is smoothed with its nearest training cells only, so that one cell alone maps as it does
    among others, and a training cell maps as it did.

    Parameters
    ----------
    cells
        New cells of the kind of `source`, with values in the units of the training cells, in the layer or `obsm` key of
        the same name: an AnnData, or a MuData that has `source`. Where the alignment was given a `batch`, their `obs`
        column of that name says which; cells without one get the mean of what they would be in each.
    source
        Modality of the model that the cells are of.
    target
        Modality that they are mapped to.
    model
        An aligned MuData, what :func:`scmmgan.load` or :func:`scmmgan.get.model` return, or a directory that
        :func:`scmmgan.save` wrote.
    features
        Features of `target`, in the order wanted; default: all.
    out
        File to write, `.zarr` or `.h5ad`, where the mapped values are too many to be held: they are decoded and written
        `batch_size` cells at a time. An earlier result of this function is replaced once all is written; where anything goes
        wrong it stays as it was. What that call returned then reads the new values. No other file is replaced.
    batch_size
        New cells at one time; memory grows with it, results do not change.
    key
        `key_added` of the alignment where `model` is a MuData, and what names of columns begin with.
    progress_bar
        Show the progress of what takes longer than two seconds, and the time that is left.

    Returns
    -------
    A new AnnData, cells × features of `target`, as of :func:`scmmgan.get.mapped`: `X` float32 in the units of the
    (smoothed) layer of `target`, never counts; `obs` and, where there, `obsm["spatial"]`, `uns["spatial"]` and
    `uns["spatialdata_attrs"]` of the cells; `var` of the target where `model` is a MuData. Nothing is written to `cells` or the
    model. With `out` the values stay in the file, and are read when they are asked for (`[:, names].X`, `.to_memory()`): `X` is a
    `zarr.Array`, or the AnnData is `backed` (`.h5ad`; `.file.close()` closes it). Beside these:

    `obsm[f"X_{key}"]` : float32
        Joint embedding, comparable with that of the training cells.
    `obs[f"{key}_unmatched"]` : float32 (suffix `_{target}` with more than two modalities)
        Share of the cell's mass without a partner in `target`: the mean of its nearest training cells. Not where shapes
        decide.
    `obs[f"{key}_ood"]` : float32
        Out-of-distribution score: share of the training cells, each compared with all others, that are nearer to their
        fifth neighbour than the cell is. Cells as those that were trained on are spread over 0 to 1; 1 is farther out than all.
        Not of methods without a coupling, which keep no training cells.

    Raises
    ------
    KeyError
        If the model has no such modality or feature, or the cells lack the layer or `obsm` key.
    TypeError
        If `cells`, `model` or `out` is of no known kind.
    FileExistsError
        If `out` is there, and is no earlier result of this function.
    OSError
        If `out` cannot be written.
    ValueError
        If features that carry half of the model's variance are missing, a batch was not trained on, values are not finite,
        the model is damaged or was not kept, all features are too many to be held and `out` is not given, or `out` does not end
        in `.zarr` or `.h5ad`, or is the file that the cells are read from.

    Examples
    --------
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> new = mdata["rna"][:10].copy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> mapped = smm.tl.translate(new, "rna", "protein", model=mdata)
    >>> mapped.shape == (10, mdata["protein"].n_vars)
    True
    """
    batch_size = _modality.whole_number(batch_size, "batch_size", low=1)
    adata = _query.modality_of(cells, source)
    path = None if out is None else _on_disk.check_path(out, adata)
    trained = _model_of(model, key, "model")
    var = model.mod[target].var if hasattr(model, "mod") and target in model.mod else None
    _check_names(trained, source, target)
    at = _chosen(trained, target, features, adata.n_obs if path is None else 0)
    query = _query.read_query(adata, source, trained)
    _warn_of_verdict(trained, source, target)
    with one_thread(), shown(progress_bar):
        found = trained.locate(query.values, query.columns, source, query.batch, batch_size=batch_size)
        image, imputation = trained.translate(found.x, source, target), trained.imputation(source, target)
        scores = None
        if imputation is not None and query.counts is not None:
            scores = imputation.scores(query.counts, query.counted)

        mapped = _without_values(adata, trained, source, target, at, found, var, key)
        if path is None:
            mapped.X = _decoded(image, scores, trained, target, at, imputation)
            return mapped
        rows = [slice(start, start + batch_size) for start in range(0, len(image), batch_size)]
        parts = ((image[of], None if scores is None else scores[of]) for of in rows)
        together = max(1, CHUNKS_SENT * CHUNK // max(1, batch_size * len(at)))
        blocks = each(_decoded, parts, trained, target, at, imputation, spread=True, together=together)
        return _on_disk.write(mapped, tracked(blocks, "decode", len(rows)), path)


def _decoded(
    image: np.ndarray,
    scores: np.ndarray | None,
    trained: Trained | TrainedLatent,
    target: str,
    at: np.ndarray,
    imputation: Imputation | None,
) -> np.ndarray:
    """Values of the features `at` of mapped cells; `scores` of their counts, where features are predicted from these."""
    imputed = None if imputation is None or scores is None else (imputation, scores)
    return trained.decode(image, target, at, imputed)


def _without_values(
    adata: AnnData,
    trained: Trained | TrainedLatent,
    source: str,
    target: str,
    at: np.ndarray,
    found: Located,
    var: pd.DataFrame | None,
    key: str,
) -> AnnData:
    """All that is returned of mapped cells, but for their values of the features `at`."""
    from anndata import AnnData

    names, keys = trained.features[target][at], Keys(key)
    # a representation (`use_rep`) has columns that are no features
    if var is None or not set(names) <= set(var.index):
        var = pd.DataFrame(index=pd.Index(names, dtype=object))
    out = AnnData(obs=adata.obs.copy(), var=var.loc[names].copy())
    out.obsm[keys.embedding] = trained.embed(found.x, source)
    if target in found.unmatched:
        out.obs[keys.unmatched(target if len(trained.modalities) > 2 else None)] = found.unmatched[target]
    if len(found.ood):
        out.obs[keys.ood] = found.ood
    _tables.copy_places(adata, out)
    return out


def _model_of(
    model: MuData | Trained | TrainedLatent | str | PathLike[str], key: str, argument: str
) -> Trained | TrainedLatent:
    """The trained model of any kind of `argument`."""
    from scmmgan.model.nets.trained import Trained, TrainedLatent

    if isinstance(model, Trained | TrainedLatent):
        return model
    if isinstance(model, str | PathLike):
        return archive.load(model)
    _modality.check_mudata(
        model, f"`{argument}` must be an aligned MuData, a directory, or what `scmmgan.load` returned"
    )
    return get.model(model, key=key)


def _check_names(trained: Trained | TrainedLatent, source: str, target: str) -> None:
    """KeyError on a modality that the model does not know; ValueError where they are one."""
    for name in (source, target):
        if name not in trained.modalities:
            raise KeyError(f"The model has no modality {name!r}. It maps between {trained.modalities}.")
    if source == target:
        raise ValueError(f"`source` and `target` are both {source!r}: nothing is mapped. Name two modalities.")


def _chosen(trained: Trained | TrainedLatent, target: str, features: str | Sequence[str] | None, n: int) -> np.ndarray:
    """Positions of the features that are decoded; ValueError where all of them are too many."""
    names = pd.Index(trained.features[target])
    if features is not None:
        return _slots.positions(features, names, target)
    if n * len(names) > MAX_WRITTEN:
        raise ValueError(
            f"{n} cells × {len(names)} features of {target!r} are too many to be held. Say which `features` you want, or "
            "write them to a file: `out='mapped.zarr'`."
        )
    return np.arange(len(names))


def _warn_of_verdict(trained: Trained | TrainedLatent, source: str, target: str) -> None:
    """Log when nothing supports the alignment that the map comes from."""
    for a, b in ((source, target), (target, source)):
        found = trained.diagnosis.get(a, {}).get(b)
        if found is not None and not found["supported"]:
            logger.warning(
                "The alignment of %r and %r is %r: mapped values may be those of other populations.",
                source, target, str(found["verdict"]),
            )  # fmt: skip
