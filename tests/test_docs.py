"""The documentation builds without a warning, names every public function, and its examples run."""

from __future__ import annotations

import ast
import doctest
import hashlib
import importlib
import inspect
import itertools
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
import pytest

from scmmgan import datasets, load, save
from scmmgan.tl import align

DOCS = Path(__file__).parents[1] / "docs"


def public_functions() -> dict[str, Callable]:
    rooms = [importlib.import_module(f"scmmgan.{room}") for room in ("pp", "tl", "pl", "get", "metrics", "datasets")]
    found = {f"{room.__name__}.{name}": getattr(room, name) for room in rooms for name in public_names(room)}
    return found | {"scmmgan.load": load, "scmmgan.save": save}


def public_names(room: object) -> list[str]:
    """`__all__`, and any other function without an underscore that the module itself defines."""
    own = [n for n, f in inspect.getmembers(room, inspect.isfunction) if f.__module__ == room.__name__ and n[0] != "_"]
    return sorted({*own, *getattr(room, "__all__", [])})


@pytest.mark.slow
def test_build(tmp_path: Path):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-E"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in public_functions():
        page = (tmp_path / "html" / "generated" / f"{name}.html").read_text(encoding="utf-8")
        assert f'id="{name}"' in page


@pytest.mark.slow
def test_build_fails_on_a_warning(tmp_path: Path):
    (tmp_path / "conf.py").write_text("extensions = ['myst_parser']\n")
    (tmp_path / "index.md").write_text("# Title\n\n{doc}`nowhere`\n")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-q", str(tmp_path), str(tmp_path / "html")]
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_api_names_exactly_the_public_functions():
    listed = re.findall(r"^   (scmmgan\.\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(public_functions())


# numpydoc's checks that do not fit: types stand in signatures, and a Returns section begins with prose
NOT_CHECKED = {"PR04", "RT03", "RT04", "ES01", "SA01", "SS05"}
SECTIONS = ["Parameters", "Returns", "Raises", "Examples"]


def docstring_errors(name: str, function: Callable) -> list[str]:
    """What is missing or wrong in a docstring: parameters, sections, their order, and type hints of the signature."""
    from numpydoc.validate import validate

    found = [f"{code} {text}" for code, text in validate(name)["errors"] if code not in NOT_CHECKED]
    lines = inspect.getdoc(function).splitlines()
    heads = [line for line, below in itertools.pairwise(lines) if line and set(below) == {"-"}]
    found += [f"no section {section}" for section in SECTIONS if section not in heads]
    parameters = inspect.signature(function).parameters.values()
    found += [f"{p.name} has no type" for p in parameters if p.annotation is inspect.Parameter.empty]
    return found + ["no return type"] * (inspect.signature(function).return_annotation is inspect.Signature.empty)


@pytest.mark.parametrize("name", public_functions())
def test_docstrings_are_complete(name: str):
    assert docstring_errors(name, public_functions()[name]) == []


def test_docstring_checker(monkeypatch: pytest.MonkeyPatch):
    def wrong(a: int, b, *, c: int = 3) -> int:
        """Do nothing.

        Parameters
        ----------
        a
            A number.
        d
            Not there.
        """

    monkeypatch.setattr(datasets, "wrong", wrong, raising=False)
    found = " ".join(docstring_errors("scmmgan.datasets.wrong", wrong))
    for part in ("PR01 Parameters {'b', 'c'}", "PR02 Unknown parameters {'d'}", "no section Returns", "b has no type"):
        assert part in found.replace("{'c', 'b'}", "{'b', 'c'}")


def test_readers_say_what_they_refuse():
    for name, function in public_functions().items():
        if name.split(".")[1] in ("get", "tl", "pl") and name not in ("scmmgan.tl.align", "scmmgan.tl.translate"):
            raises = " ".join(function.__doc__.split("Raises\n")[1].split("Examples\n")[0].split())
            assert "ecord is damaged or of another version" in raises, name


def test_method_names_what_exists():
    """Every function and test that method.md names is there."""
    text = (DOCS / "method.md").read_text(encoding="utf-8")
    root = DOCS.parent
    named = re.findall(r"`(scmmgan(?:\.\w+)+)`", text)
    assert len(named) > 10
    wrong = []
    for name in named:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            wrong.append(name)
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        path = root / file
        if not path.exists() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
            wrong.append(f"{file}::{test}")
    assert wrong == []


def test_extending_runs(monkeypatch: pytest.MonkeyPatch):
    """The code of extending.md, from top to bottom; a new method has at most 30 lines."""
    from scmmgan.model.nets import methods

    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 30
    found: dict[str, Any] = {"__name__": "extending"}
    for block in blocks:
        exec(compile(block, "extending.md", "exec"), found)
    mdata, mapped, new = (found[name] for name in ("mdata", "mapped", "new"))
    assert mapped.shape == (mdata["rna"].n_obs, mdata["protein"].n_vars)
    np.testing.assert_allclose(new.X, mapped.X[:5], atol=1e-4)
    assert mdata.uns["scmmgan"]["params"]["method"] == "moments"
    assert mdata["rna"].obsm["X_anywhere"].shape == (mdata["rna"].n_obs, 2)


ALIGNED: dict[str, md.MuData] = {}  # by data and arguments


def align_once(mdata: md.MuData, *modalities: str, **arguments: Any) -> None:
    """`tl.align`, which most examples begin with alike: what one has made the next one gets."""
    values = [
        [name, adata.var_names.tolist(), sorted(adata.obsm), adata.to_df().to_numpy().tobytes()]
        for name, adata in mdata.mod.items()
    ]
    key = hashlib.sha256(repr((modalities, sorted(arguments.items()), values)).encode()).hexdigest()
    if key not in ALIGNED:
        align(mdata, *modalities, **arguments)
        ALIGNED[key] = mdata.copy()
        return
    found = ALIGNED[key].copy()
    mdata.uns = found.uns
    mdata.obsm.update(found.obsm)
    for name, adata in found.mod.items():
        for slot in ("obs", "obsm", "layers", "var"):
            for column, value in getattr(adata, slot).items():
                getattr(mdata[name], slot)[column] = value


@pytest.mark.usefixtures("few_tables")
def test_an_alignment_that_is_made_once():
    """The same slots as those of another one."""
    first, second, third = (datasets.toy(n_cells=50) for _ in range(3))
    for mdata in (first, second):
        align_once(mdata, links="gene", method="coupling")
    align(third, links="gene", method="coupling")
    for mdata in (first, second):
        for name, adata in third.mod.items():
            for slot in ("obs", "obsm", "layers", "var"):
                assert list(getattr(mdata[name], slot)) == list(getattr(adata, slot))
            pd.testing.assert_frame_equal(mdata[name].obs, adata.obs)
            np.testing.assert_array_equal(mdata[name].obsm["X_scmmgan"], adata.obsm["X_scmmgan"])
        assert set(mdata.uns) == set(third.uns)
    # nothing is shared, and other data or arguments are another alignment
    second["rna"].obsm["X_scmmgan"][:] = 0
    second.uns["scmmgan"]["params"]["links"] = "x"
    assert first["rna"].obsm["X_scmmgan"].any()
    align_once(again := datasets.toy(n_cells=50), links="gene", method="coupling")
    assert again["rna"].obsm["X_scmmgan"].any()
    assert again.uns["scmmgan"]["params"]["links"] == "gene"
    n = len(ALIGNED)
    align_once(datasets.toy(n_cells=51), links="gene", method="coupling")
    align_once(datasets.toy(n_cells=50), links="gene", method="coupling", smooth=0)
    assert len(ALIGNED) == n + 2


@pytest.mark.slow
@pytest.mark.parametrize("name", public_functions())
def test_example_runs(name: str, monkeypatch: pytest.MonkeyPatch):
    if name != "scmmgan.tl.align":
        monkeypatch.setattr("scmmgan.tl.align", align_once)
    function = public_functions()[name]
    tests = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0 or "+SKIP" in (function.__doc__ or "")


@pytest.mark.slow
def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its five lines, with few training steps."""
    monkeypatch.setattr("scmmgan.tl.align", partial(align, max_steps=5, progress_bar=False))
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", (DOCS.parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(block.splitlines()) <= 7
    found: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), found)
    assert found["rna_like_spots"].n_obs == md.read(tmp_path / "aligned.h5mu")["spatial"].n_obs


def test_gallery_calls_what_there_is():
    """Code that runs on real data only: of the gallery (docs/make_gallery.py) and of the page on comparing methods."""
    text = pages()["gallery.md"]
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    pictures = re.findall(r"^!\[[^]]*\]\((images/\w+\.png)\)", text, re.MULTILINE)
    assert len(blocks) == len(pictures) + 1 > 10
    assert [name for name in pictures if not (DOCS / name).exists()] == []
    # of other data that the reader has
    blocks += re.findall(r"^```python\n(.*?)^```", pages()["compare.md"], re.MULTILINE | re.DOTALL)
    for call in (node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
        if (name := ast.unparse(call.func)).startswith("smm."):
            known = inspect.signature(pkgutil.resolve_name(f"scmmgan.{name[4:]}")).parameters
            assert {str(keyword.arg) for keyword in call.keywords} <= set(known), name


def examples(text: str) -> str:
    """All fenced examples of a page, without what stands between."""
    return "\n".join(re.findall(r"^```pycon\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def pages() -> dict[str, str]:
    """Text of all pages by path; notebooks are executed elsewhere, and what is generated has no examples of its own."""
    found = sorted(path for folder in (DOCS, DOCS / "guide") for path in folder.glob("*.md"))
    return {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in found}


WITH_EXAMPLES = [name for name, text in pages().items() if examples(text)]


def test_code_on_pages_is_run():
    """As examples with prompts, but for an import, another program's rule, and what needs packages that are not here."""
    assert len(WITH_EXAMPLES) > 10
    plain = {name for name, text in pages().items() if re.search(r"^```(python|py)$", text, re.MULTILINE)}
    # examples of the tests above, and of tests/test_ecosystem.py
    elsewhere = {"extending.md", "scverse.md", "compare.md"}
    assert plain - elsewhere == {"api.md", "command_line.md", "gallery.md"}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With few training steps: what pages show does not depend on more."""

    def align_shortly(mdata: md.MuData, *modalities: str, **arguments: Any) -> None:
        align_once(mdata, *modalities, **{"max_steps": 20, "progress_bar": False, **arguments})

    monkeypatch.setattr("scmmgan.tl.align", align_shortly)
    monkeypatch.chdir(tmp_path)  # files are written where a reader is
    test = doctest.DocTestParser().get_doctest(examples(pages()[name]), {}, name, name, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
