"""Models as directories: whole and the same to the last bit, or refused with the reason."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import scmmgan as smm
from scmmgan.data import directory
from scmmgan.data.keys import FORMAT

ARCHIVE = Path(__file__).parent / "data" / "archive"
FILES = ["README.md", "arrays.npz", "model.json"]


@pytest.fixture(scope="module")
def trained() -> md.MuData:
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    links = pd.DataFrame({"rna": mdata["rna"].var_names[:10], "protein": mdata["protein"].var_names[:10]})
    smm.tl.align(mdata, links=links, max_steps=3, progress_bar=False)
    return mdata


@pytest.fixture
def folder(trained: md.MuData, tmp_path: Path) -> Path:
    smm.save(trained, tmp_path / "sub" / "model")
    return tmp_path / "sub" / "model"


def test_what_is_saved_is_loaded(trained: md.MuData, folder: Path):
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    loaded, stored = smm.load(folder), smm.get.model(trained)
    assert loaded.modalities == ["rna", "protein"]
    whole = directory.read(folder)
    for name in directory.KEPT:
        assert directory._record.digest(whole[name]) == trained.uns["scmmgan"]["digest"][name]
    pd.testing.assert_frame_equal(whole["params"]["links"], trained.uns["scmmgan"]["params"]["links"])
    a, b = (smm.tl.translate(trained, "rna", "protein", model=model) for model in (loaded, stored))
    np.testing.assert_array_equal(a.X, b.X)
    for m in loaded.modalities:
        for name, value in stored.transforms[m].state().items():
            np.testing.assert_array_equal(loaded.transforms[m].state()[name], value)


def test_the_card(trained: md.MuData, folder: Path):
    card = (folder / "README.md").read_text(encoding="utf-8")
    found = smm.get.diagnosis(trained, "rna", "protein")
    for text in (
        "license:\n", "Licence of the data: \n", "| rna | 60 | 30 | `X` | – |", "| protein | 60 | 20 | `X` | – |",
        f"**rna, protein: {found['verdict']}.** {found['statement']}", "`quality_cycle`: ", "links: a table of 10 rows",
        f"scmmgan {smm.__version__}", "max_steps: 3",
        "- geometry: heat\n", "- weights: adversarial 0.5, ", "- options: None\n", "- hidden: None\n",
    ):  # fmt: skip
        assert text in card
    # no names of cells are given away
    text = card + (folder / "model.json").read_text(encoding="utf-8")
    assert not any(f'"{cell}"' in text for cell in trained["rna"].obs_names)


def test_a_model_is_replaced_and_nothing_else_is(trained: md.MuData, folder: Path):
    (folder / "README.md").write_text("old")
    smm.save(trained, folder)
    assert (folder / "README.md").read_text() != "old"
    (folder / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="no model of scmmgan"):
        smm.save(trained, folder)
    with pytest.raises(FileExistsError, match="no model of scmmgan"):
        smm.save(trained, folder / "mine.txt")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "mine.txt"])
    empty = folder.parent / "empty"
    empty.mkdir()
    smm.save(trained, str(empty))
    assert smm.load(str(empty)).modalities == ["rna", "protein"]


@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_what_was_there(trained: md.MuData, folder: Path, there: bool, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object, **how: object) -> None:
        raise OSError(28, "No space left on device")

    where = folder if there else folder.parent / "other"
    monkeypatch.setattr(directory.np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        smm.save(trained, where)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    smm.load(folder)


def test_the_key(trained: md.MuData, tmp_path: Path):
    with pytest.raises(KeyError, match="No alignment 'mine'"):
        smm.save(trained, tmp_path / "x", key="mine")
    assert not (tmp_path / "x").exists()


def write_tree(folder: Path, change: Callable[[dict], object]) -> None:
    tree = json.loads((folder / "model.json").read_text())
    change(tree)
    (folder / "model.json").write_text(json.dumps(tree))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    """One bit of one array, its checksum made to fit."""
    with np.load(folder / "arrays.npz") as stored:
        arrays = dict(stored)
    name = max(arrays, key=lambda name: arrays[name].nbytes)
    arrays[name].view(np.uint8).flat[100] ^= 1
    np.savez(folder / "arrays.npz", **arrays)


def pickled(folder: Path) -> None:
    with np.load(folder / "arrays.npz") as stored:
        arrays = dict(stored)
    arrays["a0"] = np.array([{"x": 1}], dtype=object)
    np.savez(folder / "arrays.npz", allow_pickle=True, **arrays)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tree": (lambda f: (f / "model.json").unlink(), "is no model of scmmgan: it has no 'model.json'"),
    "another program's": (lambda f: (f / "model.json").write_text("{}"), "another program's"),
    "a list": (lambda f: (f / "model.json").write_text("[1]"), "another program's"),
    "cut JSON": (lambda f: cut(f / "model.json"), "is damaged: save it again.*no JSON"),
    "deep JSON": (lambda f: (f / "model.json").write_text("[" * 100_000), "is damaged: save it again"),
    "newer": (
        lambda f: write_tree(f, lambda t: t.update(scmmgan=FORMAT + 1)),
        f"format {FORMAT + 1}; this one reads {FORMAT}",
    ),
    "older": (lambda f: write_tree(f, lambda t: t.update(scmmgan=1)), "another version of scmmgan"),
    "no arrays": (lambda f: (f / "arrays.npz").unlink(), "is damaged: save it again"),
    "cut arrays": (lambda f: cut(f / "arrays.npz"), "is damaged: save it again"),
    "no zip": (lambda f: (f / "arrays.npz").write_bytes(b"x" * 1000), "is damaged: save it again"),
    "one bit": (flip, "is damaged: save it again.*is not what was written"),
    "pickled": (pickled, "is damaged: save it again"),
    "an entry gone": (lambda f: write_tree(f, lambda t: t["record"].pop("model")), "'model' is not what was written"),
    "another verdict": (
        lambda f: write_tree(f, lambda t: t["record"]["diagnosis"]["rna"]["protein"].update(verdict="perfect")),
        "'diagnosis' is not what was written",
    ),
    "no digests": (lambda f: write_tree(f, lambda t: t.pop("digest")), "is damaged: save it again"),
    "no record": (lambda f: write_tree(f, lambda t: t.update(record=3)), "is damaged: save it again"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(folder: Path, kind: str):
    change, message = REFUSED[kind]
    change(folder)
    with pytest.raises(ValueError, match=message):
        smm.load(folder)


def test_parts_that_do_not_fit(folder: Path):
    """Of a record that somebody made to look whole."""
    for name, change in {
        "decoder": lambda m: m["transforms"]["rna"].update(decoder=np.zeros((2, 2))),
        "training cells": lambda m: m["reference"]["rna"]["0"].update(width=np.zeros(3)),
        "reference": lambda m: m.pop("reference"),
    }.items():
        record = directory.read(folder)
        change(record["model"])
        directory.write(folder.parent / name, directory._record.sealed({n: record[n] for n in directory.KEPT}), "")
        with pytest.raises(ValueError, match=f"is damaged: save it again.*{name}"):
            smm.load(folder.parent / name)


def test_no_path(trained: md.MuData):
    for wrong in (None, 3, "", trained):
        with pytest.raises(
            TypeError,
            match=r"(?s)A directory is needed, got.*The model of an aligned MuData: `scmmgan.get.model\(mdata\)`",
        ):
            smm.load(wrong)
        with pytest.raises(TypeError, match="A directory is needed, got"):
            smm.save(trained, wrong)


def test_there_is_none(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no directory .*`scmmgan.save\(mdata"):
        smm.load(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no model"):
        smm.load(tmp_path / "file")


def test_nothing_is_pickled(folder: Path):
    with zipfile.ZipFile(folder / "arrays.npz") as file:
        assert all(name.endswith(".npy") for name in file.namelist())
    with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype.kind in "biuf" for name in stored)
    assert os.path.getsize(folder / "model.json") < 100_000


# --- files of earlier versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", sorted(path.name for path in ARCHIVE.glob("format*")))
@pytest.mark.parametrize("form", ["aligned.h5mu", "model"])
def test_files_of_every_format_since_the_third_are_read(version: str, form: str, tmp_path: Path):
    """tests/data/archive/make.py wrote them, with the version of then; another machine may round otherwise."""
    where = ARCHIVE / version / form
    model = md.read(where) if form == "aligned.h5mu" else where
    with np.load(ARCHIVE / version / "expected.npz") as stored:
        expected = dict(stored)
    whole = md.read(ARCHIVE / version / "aligned.h5mu")["rna"]
    cells = ad.AnnData(expected["cells"], var=pd.DataFrame(index=whole.var_names))
    got = smm.tl.translate(cells, "rna", "protein", model=model)
    np.testing.assert_allclose(got.X, expected["mapped"], atol=1e-4)
    np.testing.assert_allclose(got.obsm["X_scmmgan"], expected["embedding"], atol=1e-4)
    for name in ("scmmgan_unmatched", "scmmgan_ood"):
        np.testing.assert_allclose(got.obs[name], expected[name], atol=1e-4)
    if form == "aligned.h5mu":
        smm.save(model, tmp_path / "model")
        assert "- method: " in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_this_format_is_in_the_archive():
    assert (ARCHIVE / f"format{FORMAT}").is_dir(), "run tests/data/archive/make.py once"
