"""The commands that work on files: two h5ad to an aligned h5mu, new cells, scores; exit statuses; whole output or none."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.image import imread

import scmmgan as smm
from scmmgan.cli import _documented, _say_support, main

pytestmark = pytest.mark.usefixtures("few_tables_throughout")

NAMES = ("rna", "protein")
QUICK = ["--method", "coupling", "--links", "gene"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two h5ad, and an aligned h5mu that the command made of them."""
    where = tmp_path_factory.mktemp("files")
    mdata = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    for name in NAMES:
        mdata[name].write(where / f"{name}.h5ad")
    files = [str(where / f"{name}.h5ad") for name in NAMES]
    assert main(["align", *files, "--source", "rna", "--target", "protein", *QUICK, "-o", str(where / "a.h5mu")]) == 0
    return where


def test_align_is_the_function(folder: Path):
    got = md.read(folder / "a.h5mu")
    expected = smm.datasets.toy(n_cells=60, n_features=[30, 20])
    smm.tl.align(expected, links="gene", method="coupling", progress_bar=False)
    assert list(got.mod) == list(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(got[name].obsm["X_scmmgan"], expected[name].obsm["X_scmmgan"])


def test_translate_evaluate_uncertainty(folder: Path, capsys: pytest.CaptureFixture[str]):
    way, aligned = ["--source", "rna", "--target", "protein"], md.read(folder / "a.h5mu")
    smm.save(aligned, folder / "model")
    for model in ("a.h5mu", "model"):
        command = ["translate", str(folder / "rna.h5ad"), "--model", str(folder / model), *way]
        assert main([*command, "-o", str(folder / "mapped.h5ad"), "--features", aligned["protein"].var_names[0]]) == 0
        assert "60 cells × 1 features of protein" in capsys.readouterr().out
        mapped = ad.read_h5ad(folder / "mapped.h5ad")
        np.testing.assert_allclose(mapped.X[:, 0], aligned["rna"].obsm["scmmgan_protein"][:, 0], atol=1e-3)
    assert (
        main(["evaluate", str(folder / "a.h5mu"), *way, "--labels", "cell_type", "--json", "-o", str(folder / "t.csv")])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    table = smm.tl.evaluate(aligned, *NAMES, labels="cell_type")
    assert [row["metric"] for row in rows] == table["metric"].tolist()
    np.testing.assert_allclose([row["value"] for row in rows], table["value"])
    pd.testing.assert_frame_equal(pd.read_csv(folder / "t.csv"), table)
    assert main(["uncertainty", str(folder / "a.h5mu"), *way, "-o", str(folder / "u.h5mu")]) == 0
    assert "uncertainty" in capsys.readouterr().out
    assert "scmmgan_uncertainty" in md.read(folder / "u.h5mu")["protein"].var


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_translate_leaves_zarr_on_disk(folder: Path, form: Callable, monkeypatch: pytest.MonkeyPatch):
    """X is read a part at a time, of a file of one modality or of several; the values are those of an h5ad."""
    cells, seen, found = ad.read_h5ad(folder / "rna.h5ad"), [], []
    cells.X = form(cells.X)
    several = folder / f"{form.__name__}.zarr"
    md.MuData({"rna": cells}).write_zarr(several)
    real = smm.tl.translate
    spy = wraps(real)(lambda x, *rest, **how: seen.append(x) or real(x, *rest, **how))
    monkeypatch.setattr(smm.tl, "translate", spy)
    for file in (folder / "rna.h5ad", several / "mod" / "rna", several):
        command = ["translate", str(file), "--model", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein"]
        assert main([*command, "-o", str(folder / "mapped.h5ad")]) == 0
        got = ad.read_h5ad(folder / "mapped.h5ad")
        found.append(got)
        np.testing.assert_allclose(got.X, found[0].X, atol=1e-5)
        pd.testing.assert_frame_equal(got.obs, found[0].obs, atol=1e-5)
    for x in (seen[1].X, seen[2]["rna"].X):
        assert not isinstance(x, np.ndarray | sp.csr_matrix)


def test_translate_replaces_nothing_but_its_results(folder: Path, capsys: pytest.CaptureFixture[str]):
    before = (folder / "protein.h5ad").read_bytes()
    command = ["translate", str(folder / "rna.h5ad"), "--model", str(folder / "a.h5mu"), "--source", "rna"]
    assert main([*command, "--target", "protein", "-o", str(folder / "protein.h5ad")]) == 2
    said = capsys.readouterr().err
    assert said.endswith("is no earlier result of `scmmgan.tl.translate`. Name another, or delete it.\n")
    assert (folder / "protein.h5ad").read_bytes() == before
    for _ in range(2):
        assert main([*command, "--target", "protein", "-o", str(folder / "anew.h5ad")]) == 0


def test_transfer(folder: Path, capsys: pytest.CaptureFixture[str]):
    expected = md.read(folder / "a.h5mu")
    smm.tl.transfer(expected, "rna", "protein", obs=["cell_type", "gradient"])
    names = ["scmmgan_protein_cell_type", "scmmgan_protein_gradient"]
    command = ["transfer", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein", "--obs", "cell_type"]
    for output in ("labels.csv", "labels.h5mu"):
        assert main([*command, "--obs", "gradient", "-o", str(folder / output), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert list(said) == names
        counts = expected["rna"].obs[names[0]].value_counts()
        assert {label: said[names[0]][label] for label in counts.index} == counts.to_dict()
        assert sum(said[names[0]].values()) == 60
        assert said[names[1]]["count"] + said[names[1]]["no value"] == 60
        assert said[names[1]]["mean"] == pytest.approx(expected["rna"].obs[names[1]].mean())
    table = pd.read_csv(folder / "labels.csv", index_col="cell")
    shares = [column for column in table if ": " in column]
    assert shares == [f"{names[0]}: type_{of}" for of in "ABCDE"]
    np.testing.assert_allclose(table.pop(shares[0]), expected["rna"].obsm[names[0]][:, 0], atol=1e-6)
    table = table.drop(columns=shares[1:])
    beside = ["unassigned", "probability"], ["unassigned", "spread"]
    assert set(table) == {*names, *(f"{name}_{of}" for name, some in zip(names, beside) for of in some)}
    got = md.read(folder / "labels.h5mu")["rna"].obs
    for column in table:
        for found in (table[column], got[column]):
            assert found.tolist() == pytest.approx(expected["rna"].obs[column].tolist(), nan_ok=True)
    # what must be given
    with pytest.raises(SystemExit, match="2"):
        main([*command[:-2], "-o", str(folder / "x.csv")])
    assert "--obs" in capsys.readouterr().err
    assert main([*command[:-1], "nothing", "-o", str(folder / "x.csv")]) == 1
    assert "nothing" in capsys.readouterr().err
    assert not (folder / "x.csv").exists()


def test_other_processes_do_not_write(folder: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(smm.tl, "align", wraps(smm.tl.align)(lambda *_, **how: seen.append(how["devices"])))
    monkeypatch.setenv("RANK", "1")
    assert main(["align", str(folder / "a.h5mu"), "--devices", "2", "-o", str(folder / "two.h5mu")]) == 0
    assert seen == [2]
    assert not (folder / "two.h5mu").exists()


def test_compare(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from scmmgan.tl import _compare

    data, kept, picture = folder / "a.h5mu", folder / "kept", folder / "methods.png"
    way = ["--source", "rna", "--target", "protein", "--embeddings", "old=X_scmmgan", "--labels", "cell_type"]
    methods = ["--methods", "cyclegan", "--methods", "coupling", "--seeds", "0", "--arguments", "max_steps=2"]
    monkeypatch.setattr(_compare, "align", fails := Fails())
    command = ["compare", str(data), *way, *methods, "-o", str(picture), "--keep", str(kept)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "median (worst seed)"
    assert said.splitlines()[1].split() == ["cyclegan", "coupling", "old"]
    assert "label_transfer, rna → protein" in said
    assert "cyclegan: RuntimeError: 2 steps, seed 0" in said
    assert fails.n == 2
    assert imread(picture).std() > 0.01
    # what was kept is not computed again
    (stored,) = [json.loads(path.read_text()) for path in kept.glob("old-*.json")]
    monkeypatch.setattr(_compare._Other, "run", lambda *_, **__: pytest.fail("was computed again"))
    again = [
        *way,
        "-o",
        str(folder / "again.svg"),
        "--seeds",
        "0",
        "--methods",
        "coupling",
        "--keep",
        str(kept),
        "--json",
    ]
    assert main(["compare", str(data), *again]) == 0
    assert fails.n == 3
    rows = [row for row in json.loads(capsys.readouterr().out) if row["method"] == "old" and row["needs"] != "nothing"]
    found = {(of["metric"], of["direction"]): of["value"] for of in stored["scores"]}
    assert [row["median"] for row in rows] == [found[row["metric"], row["direction"]] for row in rows] != []
    assert main(["compare", str(data), *way, "-o", str(folder / "x.txt")]) == 2
    assert main(["compare", str(data), *way, "-o", str(picture), "--keep", str(data)]) == 1
    assert str(data) in capsys.readouterr().err


def test_compare_where_every_method_fails(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from scmmgan.tl import _compare

    monkeypatch.setattr(_compare, "align", Fails())
    command = ["compare", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein", "-o", str(folder / "f.png")]
    assert main([*command, "--methods", "cyclegan", "--methods", "coupling"]) == 1
    said = capsys.readouterr()
    assert "every method failed; cyclegan: RuntimeError: None steps, seed 0" in said.err
    assert "coupling: RuntimeError" in said.out


def test_compare_where_every_method_fails_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from scmmgan.tl import _compare

    monkeypatch.setattr(_compare, "align", Fails(1, otherwise=_compare.align))
    command = ["compare", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein", "-o", str(folder / "f.png")]
    assert main([*command, "--methods", "random", "--seeds", "0", "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "random: RuntimeError: None steps, seed 1" in said
    assert "neighborhood_overlap, rna → protein" in said


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What commands hand to `tl.compare`, which does nothing but fail."""
    found: list[dict[str, Any]] = []

    @wraps(smm.tl.compare)
    def record(*_: object, **how: Any) -> None:
        found.append(how)
        raise RuntimeError

    monkeypatch.setattr(smm.tl, "compare", record)
    return found


def test_compare_takes_a_table_among_arguments(folder: Path, given: list[dict[str, Any]]):
    pairs = pd.DataFrame({name: [f"{name}_{i}" for i in range(12)] for name in NAMES})
    pairs.to_csv(folder / "known.csv", index=False)
    command = ["compare", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein", "-o", str(folder / "b.png")]
    how = ["--arguments", f"pairs={folder / 'known.csv'}", "--arguments", "max_steps=5", "--seeds", "1", "--seeds", "x"]
    assert main([*command, *how]) == 1
    (found,) = given
    pd.testing.assert_frame_equal(found["arguments"]["pairs"], pairs)
    assert found["arguments"]["max_steps"] == 5
    # what is no number is refused by the function, under the argument's name
    assert found["seeds"] == [1, "x"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seeds", "0,1"], "--seeds 0 --seeds 1"),
        (["--seeds", "[0, 1]"], "--seeds 0 --seeds 1"),
        (["--methods", "random,coupling"], "--methods random --methods coupling"),
        (["--methods", "random", "--embeddings", "a b=X_1,X_2"], "--embeddings 'a b=X_1' --embeddings 'a b=X_2'"),
        (["--methods", "random", "--heldout-features", "g1,g 2"], "--heldout-features g1 --heldout-features 'g 2'"),
    ],
)
def test_several_values_in_one_word(folder: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    command = ["compare", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein", "-o", str(folder / "b.png")]
    assert main([*command, *words]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(f" For several values repeat the option: {says}")


def test_a_name_may_have_a_comma(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """What is wrong is another word: nothing is said of the first."""

    @wraps(smm.tl.evaluate)
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no 'y', and 1,2 of 'x'")

    monkeypatch.setattr(smm.tl, "evaluate", fail)
    command = ["evaluate", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein"]
    for words in (["--features", "1,2"], ["--labels", "x,y"], []):
        assert main([*command, *words]) == 1
        assert capsys.readouterr().err.endswith("1,2 of 'x'\n")


def test_options_that_take_several_values_say_so(capsys: pytest.CaptureFixture[str]):
    several = {"compare": ("--seeds", "--methods"), "align": ("--features",)}
    one = {"compare": ("--k", "--labels"), "align": ("--layer", "--n-pcs", "--weights")}
    for command in several:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        for option in (*several[command], *one[command]):
            about = said.partition("options:")[2].partition(f" {option} ")[2].partition(" --")[0]
            assert ("Repeat it for several" in about) == (option in several[command]), option


class Fails:
    """An alignment that does not work."""

    n = 0

    def __init__(self, *seeds: int, otherwise: Callable[..., object] | None = None) -> None:
        self.seeds, self.otherwise = seeds, otherwise

    def __call__(self, mdata: md.MuData, *names: str, **how: object) -> object:
        self.n += 1
        if self.otherwise is not None and how["random_state"] not in self.seeds:
            return self.otherwise(mdata, *names, **how)
        raise RuntimeError(f"{how.get('max_steps')} steps, seed {how['random_state']}")


def test_info_and_support(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(folder / "a.h5mu"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["modalities"]["rna"] == {"cells": 60, "features": 30}
    verdict = found["alignments"]["scmmgan"]["rna, protein"]
    assert main(["info", str(folder / "rna.h5ad")]) == 0
    assert "rna: {'cells': 60, 'features': 30}" in capsys.readouterr().out
    supported = verdict.startswith("supported")
    assert main(["diagnose", str(folder / "a.h5mu"), "--require-support"]) == (0 if supported else 3)
    assert main(["diagnose", str(folder / "a.h5mu"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n[")[2].join(["[", ""]))[0]["verdict"] == verdict


def test_init_is_an_aligned_file_or_a_model(folder: Path, capsys: pytest.CaptureFixture[str]):
    smm.save(md.read(folder / "a.h5mu"), folder / "earlier")
    files = [str(folder / f"{name}.h5ad") for name in NAMES]
    for init in ("a.h5mu", "earlier"):
        # networks of another method: read, and refused
        command = ["align", *files, "--links", "gene", "--init", str(folder / init), "-o", str(folder / "more.h5mu")]
        assert main(command) == 1
        assert "`init` was trained with another `method`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grades", "status"), [(["supported", "in part"], 0), (["supported", "weak"], 3), (["not identifiable"], 3)]
)
def test_what_is_supported_in_part_passes(grades: list[str], status: int, capsys: pytest.CaptureFixture[str]):
    of = {
        f"b{i}": {"verdict": g, "grade": g, "supported": g == "supported", "statement": g} for i, g in enumerate(grades)
    }
    mdata: Any = SimpleNamespace(uns={"scmmgan": {"diagnosis": {"a": of}}})
    assert _say_support(mdata, "scmmgan", Namespace(json=True, require_support=True)) == status
    assert [found["grade"] for found in json.loads(capsys.readouterr().out)] == grades
    assert _say_support(mdata, "scmmgan", Namespace(json=False, require_support=False)) == 0


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.h5mu").write_text("no file of HDF5")
    for what in (tmp_path / "x.h5mu", tmp_path):
        assert main(["info", str(what)]) == 1
        err = capsys.readouterr().err
        assert f"{str(what)!r} cannot be read as h5mu, h5ad or zarr" in err
        assert err.count("\n") == 1


def test_not_supported_is_written_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from scmmgan.model.coupling import couple

    monkeypatch.setattr(couple, "SHAPE_LANDMARKS", 24)
    files = [str(folder / f"{name}.h5ad") for name in NAMES]
    out = folder / "shapes.h5mu"
    assert main(["align", *files, "--links", "None", "--method", "coupling", "--require-support", "-o", str(out)]) == 3
    assert list(md.read(out).mod) == list(NAMES)


def test_config(folder: Path, capsys: pytest.CaptureFixture[str]):
    config = folder / "c.toml"
    config.write_text(
        '[align]\nlinks = "gene"\nmethod = "coupling"\nn_pcs = {rna = 7, protein = 5}\nsave_model = false\nkey_added = "x"\n'
    )
    files = [str(folder / f"{name}.h5ad") for name in NAMES]
    assert main(["align", *files, "--config", str(config), "--key-added", "mine", "-o", str(folder / "c.h5mu")]) == 0
    params = md.read(folder / "c.h5mu").uns["mine"]
    assert {m: int(n) for m, n in params["params"]["n_pcs"].items()} == {"rna": 7, "protein": 5}
    assert "transforms" not in params["model"]
    for text in ("[align\n", '[align]\nlinx = "gene"\n'):
        config.write_text(text)
        with pytest.raises(SystemExit) as end:
            main(["align", *files, "--config", str(config), "-o", str(folder / "d.h5mu")])
        assert end.value.code == 2
        assert "usage: scmmgan" in capsys.readouterr().err


def test_what_is_typed_counts_before_the_config(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given: list[dict[str, Any]] = []

    @wraps(smm.tl.evaluate)
    def record(*_: object, **how: Any) -> pd.DataFrame:
        given.append(how)
        return pd.DataFrame({"metric": ["mmd"]})

    monkeypatch.setattr(smm.tl, "evaluate", record)
    config, typed, other = folder / "c.toml", folder / "typed.csv", folder / "config.csv"
    config.write_text(f'[evaluate]\noutput = {json.dumps(str(other))}\nk = 3\n[align]\nlinks = "gene"\n')
    command = ["evaluate", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein", "--config", str(config)]
    assert main([*command, "-o", str(typed)]) == 0
    assert typed.exists()
    assert not other.exists()
    # tables of other commands are not this one's
    config.write_text('[align]\nlinks = "gene"\n')
    assert main([*command, "-o", str(typed)]) == 0
    assert given == [{"k": 3}, {}]
    # of a shortened option nobody would know that it was typed
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--out", str(typed)])
    assert "unrecognized arguments: --out" in capsys.readouterr().err


def test_tables_in_the_config_and_in_words(folder: Path, given: list[dict[str, Any]]):
    command = ["compare", str(folder / "a.h5mu"), "--source", "rna", "--target", "protein", "-o", str(folder / "b.png")]
    config = folder / "c.toml"
    config.write_text(
        '[compare]\nembeddings = {T = ["X_a", "X_b"], U = "X_c"}\n'
        "arguments = {cycle_as_real = true, max_steps = 5, weights = {links = 2.0}}\n"
        '[compare.methods."5 steps"]\nmethod = "cyclegan"\nmax_steps = 5\n[compare.methods.random]\n'
    )
    methods = {"5 steps": {"method": "cyclegan", "max_steps": 5}, "random": {}}
    words = ["--embeddings", "T=X_a", "--embeddings", "U=X_c", "--embeddings", "T=X_b"]
    words += [word for name, of in methods.items() for word in ("--methods", f"{name}={json.dumps(of)}")]
    words += ["--arguments", "cycle_as_real=true", "--arguments", 'weights={"links": 2}', "--arguments", "max_steps=5"]
    for how in (["--config", str(config)], words):
        assert main([*command, *how]) == 1
        found = given.pop()
        assert found["methods"] == methods
        assert found["embeddings"] == {"T": ["X_a", "X_b"], "U": "X_c"}
        assert found["arguments"] == {"cycle_as_real": True, "max_steps": 5, "weights": {"links": 2}}


def test_options_of_a_method_in_words(folder: Path, capsys: pytest.CaptureFixture[str]):
    known = ["--labels", "cell_type", "--max-steps", "2", "--hidden", "8", "--links", "None"]
    command = ["align", str(folder / "a.h5mu"), "-o", str(folder / "o.h5mu"), "--method", "cmae", *known]
    for word in ("true", "True"):
        assert main([*command, "--options", f"conditional_adversary={word}"]) == 0
        stored = md.read_h5mu(folder / "o.h5mu").uns["scmmgan"]["params"]["options"]
        assert stored == {"conditional_adversary": True}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["align", "--help"])
    assert "--options NAME=VALUE" in capsys.readouterr().out


FAILS: dict[str, tuple[list[str], int, str]] = {
    "no file": (["align", "nowhere.h5mu", "-o", "x.h5mu"], 1, "FileNotFoundError: there is no 'nowhere.h5mu'"),
    "one modality": (["align", "rna.h5ad", "-o", "x.h5mu"], 1, "holds one modality"),
    "one name": (["align", "a.h5mu", "--source", "rna", "-o", "x.h5mu"], 1, "give both --source and --target"),
    "bad value": (["align", "a.h5mu", "--max-steps", "0", "-o", "x.h5mu"], 1, "`max_steps` must be at least 1"),
    "two values": (["align", "a.h5mu", "--method", "a", "--method", "b", "-o", "x.h5mu"], 1, "one value is taken"),
    "two under a name": (
        ["align", "a.h5mu", "--n-pcs", "rna=3", "--n-pcs", "rna=4", "-o", "x.h5mu"],
        1,
        "'rna' is given 2 values; one is taken",
    ),
    "no JSON": (["align", "a.h5mu", "--weights", "links={2", "-o", "x.h5mu"], 1, "'{2' is no JSON"),
    "no modality": (["evaluate", "a.h5mu", "--source", "x", "--target", "rna"], 1, "KeyError: No modality 'x'"),
    "ending": (["align", "a.h5mu", "-o", "x.txt"], 2, "its name must end in .h5mu or .zarr"),
    "no h5mu": (
        ["info", "text.h5mu"],
        1,
        "ValueError: 'text.h5mu' cannot be read as h5mu, h5ad or zarr, or is cut off",
    ),
    "a folder of others": (["align", "a.h5mu", "-o", "mine.zarr"], 2, "'mine.zarr': it is a folder and no zarr"),
    "a file as a folder": (["align", "a.h5mu", "-o", "rna.h5ad/x.h5mu"], 2, "cannot write to"),
}


@pytest.mark.parametrize("kind", FAILS)
def test_one_line_and_a_status(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command, status, message = FAILS[kind]
    monkeypatch.chdir(folder)
    Path("text.h5mu").write_text("text")
    Path("mine.zarr").mkdir(exist_ok=True)
    before = sorted(os.listdir())
    assert main(command) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err.splitlines()[-1]
    assert sorted(os.listdir()) == before


def test_an_error_while_writing_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def full(self: md.MuData, path: Path) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(md.MuData, "write", full)
    before = (folder / "a.h5mu").read_bytes()
    files = [str(folder / f"{name}.h5ad") for name in NAMES]
    assert main(["align", *files, *QUICK, "-o", str(folder / "a.h5mu")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert (folder / "a.h5mu").read_bytes() == before
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_every_argument_is_an_option_with_its_help(capsys: pytest.CaptureFixture[str]):
    for name in ("align", "translate", "uncertainty", "diagnose", "evaluate", "compare"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said, function = capsys.readouterr().out, getattr(smm.tl, name)
        for argument in inspect.signature(function).parameters:
            if argument not in ("mdata", "cells", "modalities", "source", "target", "model", "copy"):
                assert f"--{argument.replace('_', '-')}" in said
                assert len(_documented(function)[argument]) > 5


def test_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["scmmgan", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("scmmgan", run_name="__main__", alter_sys=True)
    assert end.value.code == 0
    assert capsys.readouterr().out == f"scmmgan {smm.__version__}\n"


@pytest.mark.slow
def test_the_commands_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Slow: real cells, each command in a process of its own."""
    text = (Path(__file__).parents[1] / "docs" / "command_line.md").read_text(encoding="utf-8")
    python, shell = re.findall(r"```(?:python|bash)\n(.*?)```", text.partition("## From two files")[2], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(python, {})
    for command in shell.splitlines():
        words = [sys.executable, "-m", "scmmgan", *command.split()[1:]]
        assert subprocess.run(words, capture_output=True, text=True).returncode == 0, command
    scores = pd.read_csv("scores.csv").set_index(["metric", "direction"])["value"]
    assert scores.loc["foscttm"].iloc[0] < 0.2
    assert ad.read_h5ad("mapped.h5ad").shape == (100, ad.read_h5ad("panel_b.h5ad").n_vars)
