"""What the modalities measured, as the alignment read it: layers, and linked features under other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scmmgan.data.modality import layers_of, part

if TYPE_CHECKING:
    from mudata import MuData


def read_layer(mdata: MuData, modality: str, key: str) -> str | None:
    """Layer that the alignment read for a modality; `None` is `X`."""
    layer = argument(mdata, "layer", modality, key)
    if layer is not None and layer not in mdata[modality].layers:
        raise KeyError(
            f"The alignment {key!r} read layer {layer!r} of {modality!r}, which is gone. Layers found: "
            f"{layers_of(mdata[modality])}. Put it back, or align again."
        )
    return layer


def argument(mdata: MuData, name: str, modality: str, key: str) -> Any:
    """What `tl.align` was given for a modality; `None` where it was not given."""
    stored = mdata.uns[key]["params"].get(name)
    stored = stored.get(modality) if isinstance(stored, Mapping) else stored
    return None if isinstance(stored, str) and stored == "None" else stored  # how `params` keeps a None


def units(mdata: MuData, modality: str, key: str, *, mapped: bool = False) -> str:
    """Name of the scale of a modality's values: its layer or X; mapped ones lie on its smoothed scale."""
    if mapped and (rep := argument(mdata, "use_rep", modality, key)):
        return f"{modality}: {rep}"
    layer = argument(mdata, "layer", modality, key) or "X"
    return (
        f"{modality}: {layer}, smoothed"
        if mapped and argument(mdata, "smooth", modality, key)
        else f"{modality}: {layer}"
    )


def measured_values(mdata: MuData, modality: str, features: list[str], key: str) -> np.ndarray:
    """Measured values of a few features, (cells, features) float."""
    layer = read_layer(mdata, modality, key)
    adata = mdata[modality]
    return part(adata, slice(None), adata.var_names.get_indexer(features), layer).astype(float)


def linked(mdata: MuData, name: str, source: str, target: str, key: str) -> list[str]:
    """Features of the source that stand for the same gene as a feature of the target."""
    links = mdata.uns[key]["params"]["links"]
    if isinstance(links, pd.DataFrame):
        return _linked_by_table(mdata, links, name, source, target)
    genes = gene_names(mdata[target].var.loc[[name]], links)[0]
    return [own for own, names in zip(mdata[source].var_names, gene_names(mdata[source].var, links)) if names & genes]


def _linked_by_table(mdata: MuData, links: pd.DataFrame, name: str, source: str, target: str) -> list[str]:
    """Features of the source that a table links with a feature of the target."""
    if not {source, target} <= set(links):
        return []
    # names that are not there and a weight of 0 link nothing; of sign -1 the values are not the gene's
    rows = links[target].astype(str).eq(name) & links[source].astype(str).isin(mdata[source].var_names)
    for column in {"weight", "sign"} & set(links):
        rows &= pd.to_numeric(links[column], errors="coerce") > 0
    return list(dict.fromkeys(links.loc[rows, source].astype(str)))


def gene_names(var: pd.DataFrame, column: str) -> list[set[str]]:
    """Genes of each feature: a `var` column ("CD3D;CD3E" names two), or the feature's own name."""
    values = var[column] if column in var else var.index.to_series()
    return [{gene.strip() for gene in text.split(";")} - {""} for text in values.astype(object).fillna("").map(str)]
