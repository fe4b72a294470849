"""Which obs column names sections, which cells are of which, and what is warned of where no column says so."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

from scmmgan.data import sections as _sections
from scmmgan.data.keys import FORMAT
from scmmgan.settings import unpulled

N = 90
PICTURE = {"images": {}, "scalefactors": {}}


def spots(keys: tuple[str, ...] = (), **columns: object) -> md.MuData:
    """90 spots on a square, these obs columns, and pictures of these names."""
    rng = np.random.default_rng(0)
    rna = ad.AnnData(rng.random((N, 2)), obs=pd.DataFrame(columns, index=[f"s{i}" for i in range(N)]))
    rna.obsm["spatial"] = rng.random((N, 2))
    if keys:
        rna.uns["spatial"] = dict.fromkeys(keys, PICTURE)
    cells = ad.AnnData(rng.random((40, 2)), obs=pd.DataFrame(index=[f"q{i}" for i in range(40)]))
    with unpulled():
        return md.MuData({"rna": rna, "cells": cells})


def found(mdata: md.MuData) -> str | None:
    return _sections.find_column(mdata, "rna")


THIRDS = np.repeat(["s1", "s2", "s3"], 30)
NUMBERS = np.repeat([1, 2, 3], 30)


@pytest.mark.parametrize("name", ["sample", "batch", "slide", "region", "fov", "anything"])
@pytest.mark.parametrize(
    ("values", "keys"),
    [
        (THIRDS, ("s1", "s2", "s3")),
        (pd.Categorical(THIRDS, categories=["unused", "s3", "s2", "s1"]), ("s3", "s1", "s2")),
        (NUMBERS, ("1", "2", "3")),
        (pd.Categorical(NUMBERS), ("1", "2", "3")),
        # a picture whose cells are gone, and a section without a picture
        (THIRDS, ("s1", "s2", "s3", "s4")),
        (THIRDS, ("s1", "s2")),
    ],
)
def test_values_that_are_the_keys_of_the_pictures(name: str, values: object, keys: tuple[str, ...]):
    other = pd.Categorical(np.resize(["T", "B"], N))
    assert found(spots(keys, **{"cell_type": other, name: values, "depth": np.arange(N) / 7})) == name


def test_what_is_no_column_of_sections():
    assert found(spots(("s1", "s2"), cluster=np.resize(["a", "b"], N), flag=np.arange(N) > 4)) is None
    # one picture of one of three samples says nothing
    assert found(spots(("s1",), sample=THIRDS)) is None
    assert found(spots(sample=THIRDS)) is None
    assert found(spots(library_id=np.repeat("s1", N))) is None
    # squidpy's own name
    assert found(spots(library_id=THIRDS)) == "library_id"
    # the better fit, whatever the order
    assert found(spots(("1", "2", "3"), leiden=np.resize(list("01234"), N), fov=NUMBERS)) == "fov"


def test_several_columns_agree_or_are_refused():
    assert found(spots(("s1", "s2", "s3"), sample=THIRDS, slide=pd.Categorical(THIRDS))) == "sample"
    mixed = np.resize(["s1", "s2", "s3"], N)
    with pytest.raises(ValueError, match=r"obs columns \['sample', 'slide'\].*disagree.*`library_key`"):
        found(spots(("s1", "s2", "s3"), sample=THIRDS, slide=mixed))
    assert found(spots(("s1", "s2", "s3"), sample=mixed, library_id=THIRDS)) == "library_id"


def test_what_the_package_wrote_is_no_column_of_sections():
    mdata = spots(("s1", "s2", "s3"), scmmgan_section_cells=THIRDS)
    assert found(mdata) == "scmmgan_section_cells"
    mdata.uns["scmmgan"] = {"format": FORMAT, "derived": {"rna": np.array(["obs:scmmgan_section_cells"], dtype=object)}}
    assert found(mdata) is None


def test_sections_in_the_order_of_categories():
    of = _sections.read_column(
        spots(slide=pd.Categorical(THIRDS, categories=["s3", "none", "s1", "s2"])), "rna", "slide"
    )
    assert of.names == ("s3", "s1", "s2")
    np.testing.assert_array_equal(np.array(of.names)[of.codes], THIRDS)
    of = _sections.read_column(spots(fov=np.repeat([10, 9, 2], 30)), "rna", "fov")
    assert of.names == ("2", "9", "10")
    np.testing.assert_array_equal(of.codes, np.repeat([2, 1, 0], 30))


@pytest.mark.parametrize("fmt", ["h5mu", pytest.param("zarr", marks=pytest.mark.slow)])
def test_after_a_file(tmp_path: Path, fmt: str):
    mdata = spots(("s1", "s2", "s3"), slide=pd.Categorical(THIRDS, categories=["s3", "none", "s1", "s2"]), kind="a")
    path = tmp_path / f"a.{fmt}"
    if fmt == "h5mu":
        mdata.write(path)
        back = md.read(path)
    else:
        mdata.write_zarr(path)
        back = md.read_zarr(path)
    assert found(back) == "slide"
    of = _sections.read_column(back, "rna", "slide")
    assert of.names == ("s3", "s1", "s2")
    np.testing.assert_array_equal(np.array(of.names)[of.codes], THIRDS)


@pytest.mark.parametrize("gap", [None, np.nan, "NA", "", "-"])
def test_gaps(gap: object):
    values = THIRDS.astype(object)
    values[:4] = gap
    mdata = spots(slide=values)
    with pytest.raises(ValueError, match=r"'slide' of 'rna' has gaps, in 4 of 90 cells"):
        _sections.read_column(mdata, "rna", "slide")
    of = _sections.read_column(mdata, "rna", "slide", gaps=True)
    assert (of.codes[:4] == -1).all()
    assert (of.codes[4:] >= 0).all()


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("slid", KeyError, "No obs column in 'rna' for `library_key` 'slid'. Closest: \\['slide'\\]"),
        ("shared", KeyError, r"run `mdata.push_obs\(\['shared'\]\)`"),
        (3, TypeError, "must name an obs column of 'rna', got 3"),
        ("barcode", ValueError, "has 90 values for 90 cells: these are no sections"),
        ("depth", ValueError, "has 90 values for 90 cells"),
    ],
)
def test_errors(column: object, kind: type[Exception], message: str):
    mdata = spots(slide=THIRDS, barcode=[f"b{i}" for i in range(N)], depth=np.arange(N) / 7)
    mdata.obs["shared"] = "s1"
    with pytest.raises(kind, match=message):
        _sections.read_sections(mdata, ["rna", "cells"], column, {})


def test_one_name_or_a_dict():
    mdata = spots(slide=THIRDS)
    mdata["cells"].obs["plate"] = np.repeat(["p1", "p2"], 20)
    places = {"rna": mdata["rna"].obsm["spatial"]}
    names = ["rna", "cells"]
    assert list(_sections.read_sections(mdata, names, "slide", places)) == ["rna"]
    assert list(_sections.read_sections(mdata, names, {"cells": "plate"}, {})) == ["cells"]
    # the modality with places must have it
    with pytest.raises(KeyError, match="No obs column in 'rna' for `library_key` 'plate'"):
        _sections.read_sections(mdata, names, "plate", places)
    with pytest.raises(KeyError, match="names modalities \\['prot'\\]"):
        _sections.read_sections(mdata, names, {"prot": "slide"}, places)
    assert _sections.read_sections(mdata, names, None, {}) == {}


# --- frames that no column names ---------------------------------------------------------------------------------


def warned(mdata: md.MuData, places: np.ndarray, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    assert _sections.find_sections(mdata, "rna", places) is None
    assert len(caplog.messages) <= 1
    return " ".join(caplog.messages)


@pytest.mark.parametrize("column", ["sample", "Sample_ID", "slide", "batch", "region", "fov", "orig.ident"])
def test_frames_over_one_another_and_far_apart(column: str, caplog: pytest.LogCaptureFixture):
    mdata = spots(**{"cell_type": np.resize(["T", "B"], N), column: THIRDS})
    places = mdata["rna"].obsm["spatial"]
    assert f"differ in obs[{column!r}] lie over one another (3 values)" in warned(mdata, places, caplog)
    apart = places + np.repeat([0, 10, 20], 30)[:, None]
    text = warned(mdata, apart, caplog)
    assert f"differ in obs[{column!r}] lie far apart" in text
    assert f"`library_key={column!r}`" in text
    # parts of one frame touch
    thirds = np.column_stack([np.argsort(np.argsort(places[:, 0])) / N * 3, places[:, 1]])[np.argsort(places[:, 0])]
    assert warned(mdata, thirds, caplog) == ""


def test_one_frame_is_not_warned_of(caplog: pytest.LogCaptureFixture):
    mdata = spots(cell_type=np.resize(["T", "B"], N), sample=np.repeat("s1", N))
    assert warned(mdata, mdata["rna"].obsm["spatial"], caplog) == ""
    assert warned(spots(("s1",)), mdata["rna"].obsm["spatial"], caplog) == ""


def test_pictures_without_a_column(caplog: pytest.LogCaptureFixture):
    mdata = spots(("s1", "s2"), cell_type=np.resize(["T", "B"], N))
    text = warned(mdata, mdata["rna"].obsm["spatial"], caplog)
    assert (
        "`uns['spatial']` of 'rna' holds 2 sections (s1, s2), and no obs column says which cells are of which" in text
    )
    mdata.obs["slide"] = "s1"
    assert "run `mdata.push_obs(['slide'])`" in warned(mdata, mdata["rna"].obsm["spatial"], caplog)


def test_cells_at_one_place(caplog: pytest.LogCaptureFixture):
    mdata = spots(cell_type=np.resize(["T", "B"], N))
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(9.0)), -1).reshape(-1, 2)
    text = warned(mdata, np.vstack([grid, grid]), caplog)
    assert "45 of 90 cells of 'rna' lie exactly where another one does: sections drawn over one another?" in text
