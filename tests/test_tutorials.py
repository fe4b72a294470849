"""Tutorials are as they were executed, and call what there is; the checker is shown to fail."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorials_execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def executed(script: ModuleType, *sources: str) -> nbformat.NotebookNode:
    """A notebook as `execute.py` leaves it."""
    notebook = new_notebook(cells=[new_code_cell(text, execution_count=i) for i, text in enumerate(sources, 1)])
    notebook.metadata["scmmgan"] = {"digest": script.digest(notebook)}
    return notebook


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_as_it_was_executed(name: str, script: ModuleType):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert script.errors(notebook) == []
    # tables or pictures are there
    kinds = {kind for cell in script.code(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert kinds & {"image/png", "text/plain"}
    # nothing of the machine it ran on
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert [word for word in ("/work/", "/tmp/", "/root/", "site-packages", "Warning:") if word in text] == []


def test_all_are_listed():
    text = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) > 0
    assert [name for name in NOTEBOOKS if f"{{doc}}`{name}`" not in text] == []


def test_checker(script: ModuleType):
    assert script.errors(executed(script, "import scmmgan as smm", "smm.datasets.toy(n_cells=60)")) == []
    wrong = executed(script, "smm.datasets.toy(cells=60)", "smm.tl.aline(mdata)", "smm.tl.align(mdata, links=None)")
    assert script.errors(wrong) == ["scmmgan has no scmmgan.datasets.toy(cells=)", "scmmgan has no scmmgan.tl.aline"]
    failed = executed(script, "1 / 0")
    failed.cells[0].outputs = [new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])]
    assert script.errors(failed) == ["cell 1: ZeroDivisionError: division by zero"]
    changed = executed(script, "x = 1")
    changed.cells[0].source = "x = 2"
    assert script.errors(changed) == ["its code was changed since it was executed"]
    jumped = executed(script, "x = 1", "y = 2")
    jumped.cells[1].execution_count = 5
    assert script.errors(jumped) == ["was not run from top to bottom"]


def test_execute(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A notebook is run and marked; one that fails stays as it was."""
    ran: list[str] = []

    class Client:
        def __init__(self, notebook, **_):
            self.notebook = notebook

        def execute(self):
            for i, cell in enumerate(self.notebook.cells, 1):
                exec(cell.source, {"ran": ran})
                cell.execution_count = i
                cell.metadata["execution"] = {"iopub.status.busy": "now"}

    fake = ModuleType("nbclient")
    fake.NotebookClient = Client
    monkeypatch.setitem(sys.modules, "nbclient", fake)
    nbformat.write(new_notebook(cells=[new_code_cell("ran.append('a')")]), tmp_path / "a.ipynb")
    script.execute(tmp_path / "a.ipynb", tmp_path)
    after = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    assert ran == ["a"]
    assert script.errors(after) == []
    assert "execution" not in after.cells[0].metadata
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), tmp_path / "b.ipynb")
    before = (tmp_path / "b.ipynb").read_text()
    with pytest.raises(ZeroDivisionError):
        script.execute(tmp_path / "b.ipynb", tmp_path)
    assert (tmp_path / "b.ipynb").read_text() == before
