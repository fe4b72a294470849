"""Where the cells of a map lie: coordinates, the tissue's image below them, spots of true size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection

from scmmgan.data.modality import places_in_obs
from scmmgan.pl._below import colors_in_range
from scmmgan.pl._utils import Paint, suggest

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Tissue:
    """Places of the cells drawn, and the image below them."""

    cells: np.ndarray  # (n,) row numbers of the cells that are drawn
    xy: np.ndarray  # (n, 2)
    diameter: float  # of a spot, in units of the coordinates
    image: np.ndarray | None = None  # rows × columns (× colours)
    scale: float = 1.0  # pixels of the image per unit of the coordinates

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the map, never more than four times as long as wide."""
        low, high = (self.xy.min(axis=0), self.xy.max(axis=0)) if len(self.xy) else (np.zeros(2), np.ones(2))
        half = (high - low) / 2 + self.diameter
        half = np.maximum(half, half.max() / 4)
        return (low + high) / 2 - half, (low + high) / 2 + half


def read_tissue(
    adata: AnnData, modality: str, basis: str, *, library_id: str | None, image: bool, size: float | None
) -> Tissue:
    """Coordinates of the cells, of one library where there are several, with its image and its size of a spot."""
    slot, xy = coordinates(adata, modality, basis)
    name, entry = library(adata, modality, library_id) if slot == "spatial" else (None, {})
    if name is None and library_id is not None:
        raise ValueError(f"`library_id` chooses a tissue image of `obsm['spatial']`; the map is drawn on {slot!r}.")
    here = np.isfinite(xy).all(axis=1)
    # of several sections in one object each cell says which one it is of
    if name is not None and "library_id" in adata.obs and (adata.obs["library_id"].astype(str) == name).any():
        here &= (adata.obs["library_id"].astype(str) == name).to_numpy()
    xy = xy[here]
    factors = entry.get("scalefactors") or {}
    if size is None:
        size = factors.get("spot_diameter_fullres") or spacing(xy)
    images = (entry.get("images") or {}) if image else {}
    kind = next((kind for kind in ("hires", "lowres") if images.get(kind) is not None), None)
    if kind is None:
        return Tissue(np.flatnonzero(here), xy, float(size))
    if f"tissue_{kind}_scalef" not in factors:
        raise KeyError(
            f"The image {kind!r} of library {name!r} has no scale factor 'tissue_{kind}_scalef' in "
            f"`mdata[{modality!r}].uns['spatial'][{name!r}]['scalefactors']` ({list(factors)}). Add it, or pass `image=False`."
        )
    return Tissue(
        np.flatnonzero(here), xy, float(size), colors_in_range(images[kind]), float(factors[f"tissue_{kind}_scalef"])
    )


def coordinates(adata: AnnData, modality: str, basis: str) -> tuple[str, np.ndarray]:
    """Name of the slot, and the first two coordinates of all cells, (cells, 2)."""
    found = next((name for name in (basis, f"X_{basis}") if name in adata.obsm), None)
    if found is None:
        raise KeyError(
            f"No coordinates {basis!r} in `mdata[{modality!r}].obsm`.{suggest([basis], adata.obsm)} Found: "
            f"{list(adata.obsm)}. Pass one of them as `basis`, or another modality as `source`. "
            f"{places_in_obs(adata, modality, basis)}".strip()
        )
    xy = np.asarray(adata.obsm[found])
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise ValueError(f"`mdata[{modality!r}].obsm[{found!r}]` has shape {xy.shape}; a map needs two columns.")
    return found, xy[:, :2].astype(float)


def library(adata: AnnData, modality: str, library_id: str | None) -> tuple[str | None, Mapping[str, Any]]:
    """Name and entry of one library of `uns["spatial"]`; no name where there is none."""
    stored = adata.uns.get("spatial", {})
    found = {str(k): v for k, v in stored.items() if isinstance(v, Mapping)} if isinstance(stored, Mapping) else {}
    where = f"`mdata[{modality!r}].uns['spatial']`"
    if library_id is not None:
        if library_id not in found:
            raise KeyError(f"No library {library_id!r} in {where}. Found: {list(found)}.")
        return library_id, found[library_id]
    if len(found) > 1:
        raise ValueError(f"{where} holds several libraries: {list(found)}. Choose one as `library_id`.")
    return next(iter(found.items()), (None, {}))


def spacing(xy: np.ndarray) -> float:
    """Median distance to the nearest neighbour, but at least 1/400 of the extent, so that a spot can be seen."""
    places = np.unique(xy, axis=0)
    if len(places) < 2:
        return 1.0
    extent = float(np.ptp(places, axis=0).max())
    # a hundred places tell the spacing; all against all would be quadratic
    chosen = np.random.default_rng(0).choice(len(places), min(len(places), 100), replace=False)
    nearest = [np.partition(((places - places[i]) ** 2).sum(axis=1), 1)[1] ** 0.5 for i in chosen]
    return max(float(np.median(nearest)), extent / 400)


def draw_image(ax: Axes, tissue: Tissue) -> None:
    """The part of the image below the map, in units of the coordinates; the centre of pixel i lies at i / scale."""
    image, scale = tissue.image, tissue.scale
    if image is None:
        return
    low, high = tissue.limits
    size = np.array(image.shape[1::-1])
    first, last = np.floor(low * scale).clip(0, size).astype(int), (np.ceil(high * scale) + 1).clip(0, size).astype(int)
    if (first >= last).any():
        raise ValueError(
            f"The tissue image ends at {(size / scale).round(1).tolist()} in units of the coordinates (scale factor {scale:g}); "
            f"the cells lie from {low.round(1).tolist()} to {high.round(1).tolist()}. Correct either, or pass `image=False`."
        )
    (left, top), (right, bottom) = (first - 0.5) / scale, (last - 0.5) / scale
    part = image[first[1] : last[1], first[0] : last[0]]
    ax.imshow(part, extent=(left, right, bottom, top), cmap="gray", origin="upper", zorder=0)


def draw_spots(ax: Axes, tissue: Tissue, colors: Paint) -> EllipseCollection:
    """Spots of true size in the colour of their values."""
    one = ([tissue.diameter], [tissue.diameter], [0.0])
    spots = EllipseCollection(*one, units="xy", offsets=tissue.xy, offset_transform=ax.transData)
    spots.set_array(np.ma.masked_invalid(colors.values))
    spots.set(cmap=colors.cmap, norm=colors.norm, linewidth=0, rasterized=True)
    ax.add_collection(spots, autolim=False)
    return spots
