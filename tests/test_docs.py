"""The documentation builds without a warning, names every public function, and its examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def public_functions() -> dict[str, Callable]:
    rooms = [importlib.import_module(f"scmmgan.{room}") for room in ("pp", "tl", "pl", "get", "metrics", "datasets")]
    return {f"{room.__name__}.{name}": getattr(room, name) for room in rooms for name in public_names(room)}


def public_names(room: object) -> list[str]:
    """`__all__`, and any other function without an underscore that the module itself defines."""
    own = [n for n, f in inspect.getmembers(room, inspect.isfunction) if f.__module__ == room.__name__ and n[0] != "_"]
    return sorted({*own, *getattr(room, "__all__", [])})


def test_build(tmp_path: Path):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-E"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
    assert [name for name in public_functions() if f'id="{name}"' not in page] == []


def test_build_fails_on_a_warning(tmp_path: Path):
    (tmp_path / "conf.py").write_text("extensions = ['myst_parser']\n")
    (tmp_path / "index.md").write_text("# Title\n\n{doc}`nowhere`\n")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-q", str(tmp_path), str(tmp_path / "html")]
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_api_names_exactly_the_public_functions():
    listed = re.findall(r"^\.\. autofunction:: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(public_functions())


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


@pytest.mark.parametrize("name", public_functions())
def test_example_runs(name: str):
    function = public_functions()[name]
    tests = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0 or "+SKIP" in (function.__doc__ or "")
