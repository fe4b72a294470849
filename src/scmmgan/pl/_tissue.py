"""Where the cells of a map lie: coordinates, the tissue's image below them, spots of true size."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection

from scmmgan.data.modality import places_in_obs
from scmmgan.data.sections import drawn_sections, libraries, warn_of_frames
from scmmgan.pl._below import colors_in_range
from scmmgan.pl._utils import Paint, suggest

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = logging.getLogger("scmmgan")


@dataclass(frozen=True)
class Tissue:
    """Places of the cells drawn, and the image below them."""

    cells: np.ndarray  # (n,) row numbers of the cells that are drawn
    xy: np.ndarray  # (n, 2)
    diameter: float  # of a spot, in units of the coordinates
    image: np.ndarray | None = None  # rows × columns (× colours)
    scale: float = 1.0  # pixels of the image per unit of the coordinates
    section: str = ""  # name, where there are several
    half: np.ndarray | None = None  # (2,) half of the map's sides, where it is not that of these cells alone

    @property
    def sides(self) -> np.ndarray:
        """Half of the sides of the map, never more than four times as long as wide."""
        low, high = self._corners()
        half = (high - low) / 2 + self.diameter
        return np.maximum(half, half.max() / 4)

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the map."""
        low, high = self._corners()
        half = self.sides if self.half is None else self.half
        return (low + high) / 2 - half, (low + high) / 2 + half

    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        return (self.xy.min(axis=0), self.xy.max(axis=0)) if len(self.xy) else (np.zeros(2), np.ones(2))


def read_tissues(
    mdata: MuData, modality: str, basis: str, *, library_key: str | None, aligned: str | None,
    library_id: str | Sequence[str] | None, image: bool, size: float | None,
) -> list[Tissue]:  # fmt: skip
    """Coordinates of the cells, section by section where there are several, each with its image and its size of a spot.

    Sections are those of the obs column `library_key`, else of the `aligned` one, else of one that is found.
    """
    adata = mdata[modality]
    slot, xy = coordinates(adata, modality, basis)
    here = np.isfinite(xy).all(axis=1)
    chosen = [library_id] if isinstance(library_id, str) else list(library_id or ())
    if slot != "spatial" and library_key is None:
        if chosen:
            raise ValueError(f"`library_id` chooses a section of `obsm['spatial']`; the map is drawn on {slot!r}.")
        return [_tissue(modality, here, xy, None, {}, image=image, size=size)]
    images = libraries(adata) if slot == "spatial" else {}
    sections = drawn_sections(mdata, modality, library_key or aligned, chosen)
    if sections is None:
        if not chosen and len(images) < 2:
            warn_of_frames(mdata, modality, xy[here])
        name, entry = _library(images, modality, chosen)
        return [_tissue(modality, here, xy, name, entry, image=image, size=size)]
    if unknown := [name for name in chosen if name not in sections.names]:
        raise KeyError(
            f"No cells of {unknown[0]!r} in `mdata[{modality!r}].obs[{sections.column!r}]`.{suggest(unknown[:1], sections.names)} "
            f"Found: {list(sections.names)}."
        )
    if not chosen and (gaps := int((sections.codes < 0).sum())):
        logger.warning(
            "%d cells of %r have no section in obs[%r]: they are not drawn.", gaps, modality, sections.column
        )
    if images and not images.keys() & set(sections.names):
        logger.warning("No image of `uns['spatial']` (%s) is named like a section of %r (%s).", *map(", ".join, (list(images)[:3], [modality], sections.names[:3])))  # fmt: skip
    several = len(sections.names) > 1
    found = [
        replace(
            _tissue(modality, here & (sections.codes == code), xy, name, images.get(name, {}), image=image, size=size),
            section=name if several else "",
        )
        for code, name in enumerate(sections.names)
        if name in (chosen or sections.names)
    ]
    found = [tissue for tissue in found if len(tissue.cells)] or found[:1]
    half = np.max([tissue.sides for tissue in found], axis=0)
    return [replace(tissue, half=half) for tissue in found]


def _library(
    images: Mapping[str, Mapping[str, Any]], modality: str, chosen: Sequence[str]
) -> tuple[str | None, Mapping[str, Any]]:
    """Name and entry of one library of `uns["spatial"]`, where no obs column says which cells are of it."""
    where = f"`mdata[{modality!r}].uns['spatial']`"
    hint = "If it holds several sections, name the obs column that says which cells are of which as `library_key`."
    if len(chosen) > 1:
        raise ValueError(f"No obs column of {modality!r} holds the sections {list(chosen)}: name it as `library_key`.")
    if chosen:
        if chosen[0] not in images:
            raise KeyError(f"No library {chosen[0]!r} in {where}. Found: {list(images)}.")
        if len(images) > 1:
            logger.warning(
                "No obs column of %r holds %r: all cells are drawn on its image. %s", modality, *chosen, hint
            )
        return chosen[0], images[chosen[0]]
    if len(images) > 1:
        raise ValueError(f"{where} holds several libraries: {list(images)}. Choose one as `library_id`. {hint}")
    return next(iter(images.items()), (None, {}))


def _tissue(
    modality: str, here: np.ndarray, xy: np.ndarray, name: str | None, entry: Mapping[str, Any],
    *, image: bool, size: float | None,
) -> Tissue:  # fmt: skip
    """The cells that are `here` (bool), with the image of one library and its size of a spot."""
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
