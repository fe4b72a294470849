"""Execute the notebooks, or check that they are as they were executed.

python tutorials/execute.py [NAME ...] [--to DIR] [--check]

Without --check every notebook is run from top to bottom and written back with its outputs (or to DIR), and the code that was
run is marked by a digest. With --check nothing is run: a notebook fails if it holds an error, was not run from top to bottom,
if its code was changed since, or if it calls functions or arguments that scmmgan does not have (any more).

SCMMGAN_DATA names a folder with the data sets that some notebooks read (tutorials/index.md).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import pkgutil
import re
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

HERE = Path(__file__).parent
SECONDS = 600  # of one cell


def code(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: NotebookNode) -> str:
    """Of the code of all cells."""
    return hashlib.sha256("\0".join(cell.source for cell in code(notebook)).encode()).hexdigest()


def execute(path: Path, to: Path) -> None:
    """Run a notebook in the folder it lies in, and write it with its outputs."""
    from nbclient import NotebookClient

    notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": HERE}}).execute()
    # times and names of the machine change with every run
    for cell in code(notebook):
        cell.metadata.pop("execution", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "python"},
        "scmmgan": {"digest": digest(notebook)},
    }
    nbformat.write(notebook, to / path.name)
    print(f"{path.stem}: {time.perf_counter() - start:.0f} s")


def calls(source: str) -> Iterator[tuple[str, list[str]]]:
    """Functions of scmmgan that are called as `smm.…`, with the names of their keyword arguments."""
    text = "\n".join("" if line.startswith(("%", "!")) else line for line in source.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and (name := re.fullmatch(r"smm\.([\w.]+)", ast.unparse(node.func))):
            yield f"scmmgan.{name[1]}", [k.arg for k in node.keywords if k.arg is not None]


def unknown(source: str) -> list[str]:
    """Functions and arguments that scmmgan does not have."""
    found = []
    for name, keywords in calls(source):
        try:
            function = pkgutil.resolve_name(name)
        except (AttributeError, ImportError):
            found.append(name)
            continue
        there = inspect.signature(function).parameters
        found += [f"{name}({keyword}=)" for keyword in keywords if keyword not in there]
    return found


def errors(notebook: NotebookNode) -> list[str]:
    """What is wrong with an executed notebook."""
    cells = code(notebook)
    found = [
        f"cell {i}: {output.ename}: {output.evalue}"
        for i, cell in enumerate(cells, 1)
        for output in cell.outputs
        if output.output_type == "error"
    ]
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("was not run from top to bottom")
    if notebook.metadata.get("scmmgan", {}).get("digest") != digest(notebook):
        found.append("its code was changed since it was executed")
    return found + [f"scmmgan has no {name}" for cell in cells for name in unknown(cell.source)]


def main() -> None:
    """Execute or check what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in HERE.glob("*.ipynb")))
    parser.add_argument("--to", type=Path, default=HERE, help="folder to write to (default: in place)")
    parser.add_argument("--check", action="store_true", help="execute nothing")
    arguments = parser.parse_args()
    wrong = []
    for name in arguments.names:
        path = HERE / f"{name}.ipynb"
        if arguments.check:
            wrong += [f"{name}: {error}" for error in errors(nbformat.read(path, as_version=4))]
        else:
            execute(path, arguments.to)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
