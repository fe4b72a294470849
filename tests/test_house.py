"""The rules of the house, read from the syntax tree and the text of the files; each checker is shown to fail."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "scmmgan"
FILES = sorted(path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py"))
TEXTS = {file: (SRC / file).read_text(encoding="utf-8") for file in FILES}
TREES = {file: ast.parse(text) for file, text in TEXTS.items()}

FunctionDef = ast.FunctionDef | ast.AsyncFunctionDef
PACKAGES = (
    *("scmmgan", "scmmgan.data", "scmmgan.pp", "scmmgan.tl", "scmmgan.pl"),
    *("scmmgan.model", "scmmgan.model.space", "scmmgan.model.coupling", "scmmgan.model.nets", "scmmgan.model.evidence"),
)
# subjects of model/, each of which may import those before it
LEVELS = ("defaults", "progress", "problem", "space", "coupling", "nets", "evidence")
# what public functions take and return
CONTAINERS = {"anndata", "mudata"}


def down_to(level: str) -> set[str]:
    """The subjects that one of them may import, its own among them."""
    return {f"scmmgan.model.{name}" for name in LEVELS[: LEVELS.index(level) + 1]}


# file pattern (the first that fits counts): importable by the module; further ones inside functions; and for types only.
# numpy and the standard library are importable everywhere
RULES: list[tuple[str, set[str], set[str], set[str]]] = [
    *((f"{room}/__init__.py", {f"scmmgan.{room}"}, set(), set()) for room in ("pp", "tl", "pl")),
    ("__init__.py", {"scmmgan.settings"}, set(), set()),
    ("__main__.py", {"scmmgan.cli"}, set(), set()),
    *((pattern, set(), set(), set()) for pattern in ("*/__init__.py", "data/keys.py")),
    ("settings.py", set(), {"mudata"}, set()),
    # the boundary between MuData and arrays
    (
        "data/*.py",
        CONTAINERS
        | {"pandas", "scipy", "scmmgan.data"}
        | {"scmmgan.model.problem", "scmmgan.model.defaults", "scmmgan.model.space", "scmmgan.settings"},
        {"dask", "h5py", "zarr"},  # what holds matrices that are not in memory
        {"scmmgan.model"},
    ),
    # arrays and tensors; torch where tensors are, as it must not come with `from scmmgan import tl`
    ("model/defaults.py", set(), set(), set()),
    ("model/progress.py", down_to("progress"), {"tqdm"}, set()),
    ("model/problem.py", {"scipy"} | down_to("problem"), set(), set()),
    (
        "model/space/*.py",
        {"scipy", "sklearn", "threadpoolctl"} | down_to("space"),
        {"torch", "pynndescent", "dask"},
        set(),
    ),
    ("model/coupling/*.py", {"scipy", "sklearn", "threadpoolctl"} | down_to("coupling"), {"ot", "pynndescent"}, set()),
    (
        "model/nets/*.py",
        {"scipy", "sklearn", "torch", "threadpoolctl", "tqdm"} | down_to("nets"),
        {"ot", "pynndescent"},
        set(),
    ),
    ("model/evidence/attribution.py", {"scipy", "torch"} | down_to("evidence"), {"captum"}, set()),
    ("model/evidence/scib.py", down_to("evidence"), {"scib_metrics"}, set()),
    (
        "model/evidence/*.py",
        {"scipy", "sklearn", "threadpoolctl", "tqdm"} | down_to("evidence"),
        {"torch", "ot", "pynndescent", "dask"},
        set(),
    ),
    # the public functions: read, compute, write
    # values may be scipy's sparse matrices
    (
        "pp/*.py",
        {"anndata", "pandas", "scipy", "scmmgan.data", "scmmgan.model.space", "scmmgan.model.defaults", "scmmgan.pp"},
        {"scanpy", "muon", "dask"},
        CONTAINERS,
    ),
    (
        "tl/*.py",
        {
            "pandas",
            "scipy",
            "scmmgan.data",
            "scmmgan.model",
            "scmmgan.get",
            "scmmgan.archive",
            "scmmgan.metrics",
            "scmmgan.settings",
            "scmmgan.tl",
        },
        {"torch", "anndata", "tqdm"},  # which devices there are; what is returned; progress
        CONTAINERS,
    ),
    # slots that `get` does not read: names, known pairs, checks
    (
        "pl/*.py",
        {"pandas", "scipy", "matplotlib", "scmmgan.data", "scmmgan.get", "scmmgan.pl"},
        {"sklearn"},
        CONTAINERS,
    ),
    ("get.py", {"pandas", "scmmgan.data"}, {"anndata", "scmmgan.model"}, CONTAINERS),
    ("archive.py", {"scmmgan.data"}, {"scmmgan.model"}, CONTAINERS),
    ("metrics.py", {"pandas", "scipy", "sklearn"}, set(), set()),
    ("datasets.py", CONTAINERS | {"pandas", "scipy", "scmmgan.settings"}, {"scanpy"}, set()),
    # figures are closed and files written by their own packages
    ("_demo.py", {"scmmgan", "scmmgan.settings"}, {"matplotlib"}, CONTAINERS),
    (
        "cli.py",
        {"scmmgan", "scmmgan._demo"}
        | {f"scmmgan.{name}" for name in ("pp", "tl", "pl", "get", "metrics", "datasets", "settings")},
        {"matplotlib", "mudata", "anndata", "pandas", "zarr"},
        CONTAINERS,
    ),
]


# --- imports -----------------------------------------------------------------------------------------------------


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST, package: str, when: str = "at import time") -> Iterator[tuple[str, str, int]]:
    """Imported module; `at import time`, `inside a function` or `for types`; line."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, when, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - child.level + 1]) if child.level else ""
            module = ".".join(part for part in (base, child.module) if part)
            names = [f"{module}.{alias.name}" for alias in child.names] if module in PACKAGES else [module]
            yield from ((name, when, child.lineno) for name in names)
        elif is_type_checking(child):
            yield from imports(child, package, "for types")
        elif isinstance(child, FunctionDef | ast.Lambda) and when == "at import time":
            yield from imports(child, package, "inside a function")
        else:
            yield from imports(child, package, when)


def is_one_of(module: str, allowed: set[str]) -> bool:
    # `import scmmgan` itself opens no room
    return any(module == name or (name != "scmmgan" and module.startswith(f"{name}.")) for name in allowed)


def wrong_imports(file: str, tree: ast.AST) -> list[str]:
    rule = next((rule for rule in RULES if fnmatch(file, rule[0])), None)
    if rule is None:
        return [f"{file}: no import rule; add one to RULES"]
    _, anywhere, inside, types = rule
    everywhere = {"numpy", *sys.stdlib_module_names, *(["scmmgan.__version__"] if file == "cli.py" else [])} | anywhere
    allowed = {
        "at import time": everywhere,
        "inside a function": everywhere | inside,
        "for types": everywhere | inside | types,
    }
    package = ".".join(["scmmgan", *file.split("/")[:-1]])
    return [
        f"{file}:{line}: {module} {when}"
        for module, when, line in imports(tree, package)
        if not is_one_of(module, allowed[when])
    ]


@pytest.mark.parametrize("file", FILES)
def test_import_directions(file: str):
    assert wrong_imports(file, TREES[file]) == []


@pytest.mark.parametrize(
    ("file", "snippet", "wrong"),
    [
        ("data/keys.py", "import pandas", 1),
        ("data/_x.py", "import mudata, anndata, pandas, scipy.sparse", 0),
        ("data/_x.py", "from scmmgan.data import links\nfrom . import keys\nfrom scmmgan.model.space.pca import f", 0),
        ("data/_x.py", "from scmmgan.model import problem, defaults", 0),
        ("data/_x.py", "from scmmgan.model import nets", 1),
        ("data/_x.py", "from scmmgan.model.coupling.coupling import Coupling", 1),
        ("data/_x.py", "if TYPE_CHECKING:\n    from scmmgan.model.nets.aligner import Aligner", 0),
        ("data/_x.py", "def f():\n    from ..model.coupling import couple", 1),
        ("data/_x.py", "from scmmgan import get, tl", 2),
        ("data/_x.py", "import sklearn", 1),
        ("model/defaults.py", "from scmmgan.model import problem", 1),
        ("model/problem.py", "from scmmgan.model.defaults import X\nimport scipy.sparse as sp", 0),
        ("model/problem.py", "from scmmgan.model.space import pca", 1),
        ("model/problem.py", "import pandas", 1),
        ("model/space/_x.py", "from scmmgan.model.coupling.landmarks import Landmarks", 1),
        ("model/space/_x.py", "if TYPE_CHECKING:\n    from scmmgan.model.coupling.landmarks import Landmarks", 1),
        ("model/space/_x.py", "from scmmgan.model import defaults, problem\nfrom .diffusion import f", 0),
        ("model/space/_x.py", "import torch", 1),
        ("model/space/_x.py", "class A:\n    import torch", 1),
        ("model/space/_x.py", "try:\n    import torch\nexcept ImportError:\n    pass", 1),
        ("model/space/_x.py", "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch.linalg", 0),
        ("model/coupling/_x.py", "from scmmgan.model.space import linear", 0),
        ("model/coupling/_x.py", "def f():\n    from scmmgan.model.nets import training", 1),
        ("model/coupling/_x.py", "from ..evidence import heldout", 1),
        ("model/coupling/_x.py", "import ot", 1),
        ("model/nets/_x.py", "import anndata", 1),
        ("model/nets/_x.py", "if TYPE_CHECKING:\n    from mudata import MuData", 1),
        ("model/nets/_x.py", "def f():\n    import scanpy", 1),
        (
            "model/nets/_x.py",
            "import torch\nfrom scmmgan.model.space.diffusion import f\nfrom ..coupling import couple",
            0,
        ),
        ("model/nets/_x.py", "from scmmgan.model.evidence.verdict import verdict", 1),
        ("model/nets/_x.py", "from scmmgan import data", 1),
        ("model/nets/_x.py", "from ... import get", 1),
        ("model/evidence/_x.py", "from scmmgan.model import nets, coupling, space, problem, defaults, evidence", 0),
        ("model/evidence/_x.py", "import pandas", 1),
        ("model/evidence/_x.py", "import torch", 1),
        ("model/evidence/_x.py", "from scmmgan.data.keys import Keys", 1),
        ("model/evidence/_x.py", "def f():\n    import matplotlib", 1),
        ("model/new.py", "", 1),
        ("pp/_x.py", "import scanpy as sc", 1),
        ("pp/_x.py", "def f():\n    import scanpy as sc, muon", 0),
        ("pp/_x.py", "from scmmgan.model.space import diffusion", 0),
        ("pp/_x.py", "from scmmgan.model.nets import training", 1),
        ("pp/_x.py", "from ..tl import align", 1),
        ("tl/_x.py", "from scmmgan.data import read\nfrom scmmgan.model.nets import methods\nimport pandas", 0),
        ("tl/_x.py", "if TYPE_CHECKING:\n    from mudata import MuData", 0),
        ("tl/_x.py", "from mudata import MuData", 1),
        ("tl/_x.py", "def f():\n    from mudata import MuData", 1),
        ("tl/_x.py", "import torch", 1),
        ("tl/_x.py", "from scmmgan import pl", 1),
        ("pl/_x.py", "from scmmgan.tl import align", 1),
        ("pl/_x.py", "from scmmgan.model import problem", 1),
        ("pl/_x.py", "from scmmgan import get\nfrom scmmgan.pl._utils import finish\nimport matplotlib.pyplot", 0),
        ("get.py", "from scmmgan.model.nets.aligner import Aligner", 1),
        ("get.py", "def f():\n    from scmmgan.model.nets.aligner import Aligner", 0),
        ("metrics.py", "from scmmgan.model import defaults", 1),
        ("datasets.py", "def f():\n    import pooch", 1),
        ("cli.py", "import scmmgan as smm", 0),
        ("cli.py", "import scmmgan.data.modality", 1),
        ("new.py", "", 1),
    ],
)
def test_import_checker(file: str, snippet: str, wrong: int):
    assert len(wrong_imports(file, ast.parse(snippet))) == wrong


def loaded_after(statement: str, names: list[str]) -> dict:
    """Seconds the statement takes in a fresh interpreter, and which of the modules it loads."""
    code = (
        f"import json, sys, time; start = time.perf_counter(); {statement}; seconds = time.perf_counter() - start\n"
        f"print(json.dumps(dict(seconds=seconds, loaded=[name for name in {names!r} if name in sys.modules])))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


HEAVY = [
    "torch",
    "scanpy",
    "muon",
    "pynndescent",
    "ot",
    "lightning",
    "lightning_fabric",
    "numba",
    "captum",
    "scib_metrics",
]


def test_import_is_light():
    runs = [loaded_after("import scmmgan", [*HEAVY, "mudata", "anndata", "pandas", "matplotlib"]) for _ in range(3)]
    assert runs[0]["loaded"] == []
    assert min(run["seconds"] for run in runs) < 0.5


def test_rooms_are_light():
    rooms = loaded_after("from scmmgan import datasets, get, metrics, pl, pp, tl", HEAVY)
    assert rooms["loaded"] == []


def test_light_checker():
    assert loaded_after("import pandas", ["pandas", "torch"])["loaded"] == ["pandas"]


# --- public functions --------------------------------------------------------------------------------------------


def functions(tree: ast.Module, public: bool = True) -> list[FunctionDef]:
    """Top-level functions."""
    return [n for n in tree.body if isinstance(n, FunctionDef) and not (public and n.name.startswith("_"))]


def arguments(node: FunctionDef) -> list[ast.arg]:
    """All arguments in order."""
    a = node.args
    every = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [arg for arg in every if arg is not None]


def wrong_types(where: str, node: FunctionDef) -> list[str]:
    untyped = [arg.arg for arg in arguments(node) if arg.annotation is None]
    return [f"{where}: {name} has no type" for name in untyped + (["return value"] if node.returns is None else [])]


OTHER_FIRST = {"translate": "cells", "load": "directory"}  # what comes first where it is not mdata


def wrong_signature(where: str, node: FunctionDef) -> list[str]:
    """`mdata` first, modalities and features by position, everything else by keyword only."""
    positional = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
    named = {"mdata", "modality", "modalities", "source", "target", "features", *OTHER_FIRST.values(), "directory"}
    wrong = [f"{where}: {name} must be keyword-only" for name in positional if name not in named]
    if positional[:1] != [OTHER_FIRST.get(node.name, "mdata")]:
        wrong.append(f"{where}: the first argument must be mdata")
    if node.args.kwarg is not None:
        wrong.append(f"{where}: **{node.args.kwarg.arg} hides misspelt arguments")
    return wrong


def sections(docstring: str) -> dict[str, str]:
    """Body of each section of a numpy docstring."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def wrong_docstring(where: str, node: FunctionDef) -> list[str]:
    """Every argument named, in order; what is returned and written; an example."""
    found = sections(ast.get_docstring(node) or "")
    entries = re.findall(r"^(\S[^:\n]*)", found.get("Parameters", ""), flags=re.MULTILINE)
    documented = [name.strip().lstrip("*") for entry in entries for name in entry.split(",")]
    wrong = []
    if documented != [arg.arg for arg in arguments(node)]:
        wrong.append(f"{where}: Parameters name {documented}, the signature {[arg.arg for arg in arguments(node)]}")
    if not found.get("Returns", "").strip():
        wrong.append(f"{where}: no Returns section")
    if ">>>" not in found.get("Examples", ""):
        wrong.append(f"{where}: no Examples section")
    return wrong


ROOMS = ("pp/_", "tl/_", "pl/_")
MODULES = ("get.py", "metrics.py", "datasets.py", "archive.py")
PUBLIC = [
    (file, node)
    for file in FILES
    if (file.startswith(ROOMS) and not file.endswith("__init__.py")) or file in MODULES
    for node in functions(TREES[file])
    if file in MODULES or Path(file).stem == f"_{node.name}"
]


@pytest.mark.parametrize(("file", "node"), PUBLIC, ids=[f"{file}:{node.name}" for file, node in PUBLIC])
def test_public_function(file: str, node: FunctionDef):
    wrong = wrong_types(node.name, node) + wrong_docstring(node.name, node)
    if file not in ("metrics.py", "datasets.py"):
        wrong += wrong_signature(node.name, node)
    assert wrong == []


GOOD = '''
def f(mdata: MuData, *modalities: str, layer: str | None = None) -> None:
    """Do it.

    Parameters
    ----------
    mdata
        Data: all of it.
    *modalities
        Names.
    layer
        Layer.

    Returns
    -------
    `None`.

    Examples
    --------
    >>> f(mdata)
    """
'''


def complaints(snippet: str) -> list[str]:
    (node,) = functions(ast.parse(snippet))
    return wrong_types("f", node) + wrong_signature("f", node) + wrong_docstring("f", node)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("MuData", "MuData", None),
        (": MuData", "", "mdata has no type"),
        (" -> None", "", "return value has no type"),
        ("*modalities: str, layer", "layer", "layer must be keyword-only"),
        ("mdata:", "adata:", "first argument must be mdata"),
        ("= None)", "= None, **kwargs: int)", "hides misspelt arguments"),
        ("    layer\n", "    layers\n", "Parameters name"),
        ("    Returns\n    -------\n", "", "no Returns"),
        (">>> f(mdata)", "f(mdata)", "no Examples"),
    ],
)
def test_public_function_checkers(old: str, new: str, complaint: str | None):
    found = complaints(GOOD.replace(old, new))
    assert any(complaint in text for text in found) if complaint else found == []


HELPERS = {"pl": {"utils", "measured", "predicted", "tissue", "below", "style"}}  # files that no user calls


def test_one_file_one_function_one_test():
    """Every public name of pp, tl and pl: `_name.py` with one public function, `tests/*/test_name.py`."""
    wrong = []
    for room in ("pp", "tl", "pl"):
        exported = exported_by(TREES[f"{room}/__init__.py"])
        for name in exported:
            wrong += wrong_home(room, name, TREES.get(f"{room}/_{name}.py"))
        files = {Path(file).stem[1:] for file in FILES if file.startswith(f"{room}/_") and "__init__" not in file}
        wrong += [f"{room}/_{name}.py is not in __all__" for name in files - set(exported) - HELPERS.get(room, set())]
        wrong += [
            f"{room}.{name} has no test file"
            for name in exported
            if not (ROOT / f"tests/{room}/test_{name}.py").exists()
        ]
    assert wrong == []


def exported_by(tree: ast.Module) -> list[str]:
    assigned = next(n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
    return ast.literal_eval(assigned.value)


def wrong_home(room: str, name: str, tree: ast.Module | None) -> list[str]:
    """Why a file is no home of a public function; in tl it lives alone."""
    if tree is None:
        return [f"{room}.{name} has no file of its own"]
    public = [n.name for n in tree.body if isinstance(n, FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    wrong = [] if name in public else [f"{room}/_{name}.py does not define {name}"]
    return wrong + [f"{room}/_{name}.py holds {other}, too" for other in public if room == "tl" and other != name]


def test_home_checker():
    assert exported_by(ast.parse('x = 1\n__all__ = ["a", "b"]')) == ["a", "b"]
    assert wrong_home("tl", "align", ast.parse("def align(): ...\ndef _helper(): ...\nclass _Own: ...")) == []
    assert len(wrong_home("tl", "align", ast.parse("def align(): ...\ndef helper(): ...\nclass Own: ..."))) == 2
    assert len(wrong_home("tl", "align", ast.parse("from ._other import align"))) == 1
    assert len(wrong_home("tl", "align", None)) == 1
    assert wrong_home("pl", "history", ast.parse("def history(): ...\ndef draw(): ...")) == []


# --- statements and sizes ----------------------------------------------------------------------------------------

FORBIDDEN_CALLS = {
    "warnings.filterwarnings": "warnings filter",
    "warnings.simplefilter": "warnings filter",
    "warnings.catch_warnings": "warnings filter",
    "filterwarnings": "warnings filter",
    "simplefilter": "warnings filter",
    "catch_warnings": "warnings filter",
    "np.random.seed": "global seed",
    "random.seed": "global seed",
}


def wrong_statements(file: str, tree: ast.AST) -> list[str]:
    """No assert; print in cli.py only; no warnings filter; nothing pickled."""
    wrong = []
    for node in ast.walk(tree):
        found = None
        if isinstance(node, ast.Assert):
            found = "assert"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found = FORBIDDEN_CALLS.get(name)
            if name == "print" and file != "cli.py":
                found = "print"
            for keyword in node.keywords:
                if (keyword.arg, ast.unparse(keyword.value)) in {("weights_only", "False"), ("allow_pickle", "True")}:
                    found = ast.unparse(keyword)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {name.split(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}:
                found = "pickle"
        if found:
            wrong.append(f"{file}:{node.lineno}: {found}")
    return wrong


def code_lines(node: FunctionDef, signature: bool = True) -> int:
    """Lines from `def`, or else from the first statement, to the end, without the docstring."""
    documented = ast.get_docstring(node, clean=False) is not None
    docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
    if signature:
        return node.end_lineno - node.lineno + 1 - docstring
    first = node.body[1:] if documented else node.body
    return node.end_lineno - first[0].lineno + 1 if first else 0


def too_long(file: str, text: str) -> list[str]:
    """Files over 600 lines, functions over 60; of `tl.align`, which has an argument for everything, the body counts."""
    wrong = [f"{file}: {n} lines"] if (n := len(text.splitlines())) > 600 else []
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, FunctionDef)]
    sizes = [(node.name, code_lines(node, (file, node.name) != ("tl/_align.py", "align"))) for node in nodes]
    return wrong + [f"{file}: {name} has {size} lines" for name, size in sizes if size > 60]


def untyped(file: str, tree: ast.AST) -> list[str]:
    """Every function, private ones and methods too (`self` and `cls` aside)."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, FunctionDef)]
    found = [complaint for node in nodes for complaint in wrong_types(f"{file}: {node.name}", node)]
    return [complaint for complaint in found if not re.search(r": (self|cls) has no type$", complaint)]


@pytest.mark.parametrize("file", FILES)
def test_statements_and_sizes(file: str):
    text = TEXTS[file]
    marks = [f"{file}: {mark}" for mark in re.findall(r"TODO|FIXME|XXX|NotImplementedError", text)]
    code = [node for node in TREES[file].body if not isinstance(node, ast.Expr)]
    future = [] if "from __future__ import annotations" in text or not code else [f"{file}: no __future__"]
    found = [*wrong_statements(file, TREES[file]), *too_long(file, text), *untyped(file, TREES[file]), *marks, *future]
    assert found == []


@pytest.mark.parametrize(
    ("snippet", "wrong"),
    [
        ("assert x", 1),
        ("def f():\n    print(1)", 1),
        ("with warnings.catch_warnings():\n    warnings.simplefilter('ignore')", 2),
        ("from warnings import filterwarnings\nfilterwarnings('ignore')", 1),
        ("import pickle", 1),
        ("from joblib import dump", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("np.load(f, allow_pickle=True)", 1),
        ("np.random.seed(0)", 1),
        ("warnings.warn('x')\nlogger.info('print')\ntorch.load(f, weights_only=True)", 0),
    ],
)
def test_statement_checker(snippet: str, wrong: int):
    assert len(wrong_statements("tl/_x.py", ast.parse(snippet))) == wrong


def test_print_belongs_to_the_command():
    assert wrong_statements("cli.py", ast.parse("print(1)")) == []


def test_size_checker():
    body = "\n    x = 1"
    assert too_long("a.py", "def f():" + body * 59) == []
    assert too_long("a.py", "def f():" + body * 60) == ["a.py: f has 61 lines"]
    assert too_long("a.py", 'def f():\n    """Title.\n' + "\n    text" * 80 + '\n    """' + body * 59) == []
    assert too_long("a.py", "x = 1\n" * 600) == []
    assert too_long("a.py", "x = 1\n" * 601) == ["a.py: 601 lines"]
    arguments = "def align(\n" + "".join(f"    a{i},\n" for i in range(30)) + '):\n    """Title."""'
    assert too_long("tl/_align.py", arguments + body * 60) == []
    assert too_long("tl/_align.py", arguments + body * 61) == ["tl/_align.py: align has 61 lines"]
    assert too_long("tl/_other.py", arguments + body * 60) == ["tl/_other.py: align has 92 lines"]


def test_type_checker():
    assert untyped("a.py", ast.parse("class A:\n    def f(self, x: int) -> int: ...")) == []
    assert untyped("a.py", ast.parse("def f(x) -> int: ...")) == ["a.py: f: x has no type"]


# --- constants ---------------------------------------------------------------------------------------------------

# what lists things by name decides nothing
TABLES = {
    "METHODS",
    "GEOMETRIES",
    "SETTINGS",
    "LATENT_SETTINGS",
    "OPTIONAL",
    "TRAINING",
    "GENERATORS",
    "DISCRIMINATORS",
    "OTHER_TERMS",
    "ALONE",
    "BASELINES",
}
CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")


def constants(tree: ast.AST) -> dict[str, int]:
    """Upper-case names that are assigned outside of functions, with their lines."""
    found: dict[str, int] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            found |= {name: node.lineno for name in names if CONSTANT.fullmatch(name)}
        elif not isinstance(node, FunctionDef):
            found |= constants(node)
    return found


def unexplained(text: str) -> list[str]:
    """Constants without a comment, behind them or on the line above."""
    lines = text.splitlines()
    tree = ast.parse(text)
    ends = {node.lineno: node.end_lineno for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign)}
    return [
        name
        for name, line in constants(tree).items()
        if not re.search(r"#.*\w", " ".join(re.sub(r"\"[^\"]*\"", "", text) for text in lines[line - 1 : ends[line]]))
        and not re.match(r"#.*\w", lines[line - 2] if line > 1 else "")
    ]


def used_names(tree: ast.AST) -> set[str]:
    """All names that are read."""
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} | {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
    }


def test_constants_are_explained_and_used():
    text = TEXTS["model/defaults.py"]
    assert unexplained(text) == []
    names = constants(TREES["model/defaults.py"])
    assert len(names) > 80
    assert len(re.findall(rf"^({CONSTANT.pattern})\b.* = ", text, re.MULTILINE)) == len(names), "one name, one constant"
    used = set.union(*(used_names(tree) for file, tree in TREES.items() if file != "model/defaults.py"))
    # a constant may follow from others
    used |= used_names(TREES["model/defaults.py"])
    assert sorted(set(names) - used) == []


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith(("model/", "tl/")) and f != "model/defaults.py"])
def test_constants_stand_in_one_place(file: str):
    assert {name: line for name, line in constants(TREES[file]).items() if name not in TABLES} == {}


def test_constant_checkers():
    text = (
        "A = 1  # of a\n# of b\nB: int = 2\nC = 3\nD, _E = 4, 5  # both\nF = {\n    1: 2,\n}\n"
        "G = '#'\nH = \"# no\"\nif A:\n    J = 1\nclass K:\n    L = 2\ndef f():\n    M = 3\nlow = 7\nN = 8  #\n"
    )
    assert list(constants(ast.parse(text))) == ["A", "B", "C", "D", "_E", "F", "G", "H", "J", "L", "N"]
    assert unexplained(text.replace("G = '#'\n", "")) == ["C", "F", "H", "J", "L", "N"]
    assert used_names(ast.parse("A = 1\nprint(B, x.C)\nfrom d import D")) == {"print", "B", "x", "C"}


# --- words -------------------------------------------------------------------------------------------------------

# sections of documents that a clone lacks, and the folder they lie in
OUTSIDE = re.compile(r"(?:METHOD|DESIGN|EXAMPLES|SYSTEMS) ?\u00a7|\.\./" + "shared")
# words of our own, also as parts of names: imputed, label purity, require, weigh, round trip say the same
OWN_WORDS = re.compile(
    r"(?<![a-z])(told|telling|borne[ _]out|judg(?:e|es|ed|ing)|earn(?:s|ed|ing)?|(?:bring|brings|brought)[ _]back)(?![a-z])",
    re.IGNORECASE,
)
OWN_NAMES = {"stretch", "stretches", "outline", "outlines"}
# a slot that earlier versions wrote, and that an alignment of the same name removes
OLD_SLOTS = {"data/slots.py": "_told_"}


def outside(text: str) -> list[str]:
    """References to what a clone lacks."""
    return [match.group() for match in OUTSIDE.finditer(text)]


def own_words(text: str) -> list[str]:
    return [match.group() for match in OWN_WORDS.finditer(text)]


def own_names(tree: ast.AST) -> list[str]:
    """Names of functions, classes, arguments and variables, not the attributes of other packages' objects."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Name):
            names.append(node.id)
        elif isinstance(node, ast.arg | ast.keyword):
            names.append(node.arg or "")
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
            names.append(node.attr)
    return [name for name in names if set(re.split(r"_", name.lower())) & OWN_NAMES]


def texts(*places: str) -> dict[str, str]:
    """All text files of the clone in these places, by path."""
    found = {}
    for place in places:
        path = ROOT / place
        files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.suffix in (".py", ".md", ".toml", ".txt", ".typed") and "_build" not in file.parts:
                found[file.relative_to(ROOT).as_posix()] = file.read_text(encoding="utf-8")
    return found


def test_a_clone_is_complete():
    files = texts("src", "docs", "benchmarks", "tests", "README.md")
    assert len(files) > 100
    assert {file: found for file, text in files.items() if (found := outside(text))} == {}


@pytest.mark.parametrize("file", FILES)
def test_no_file_names_what_a_wheel_lacks(file: str):
    assert re.findall(r"benchmarks/[\w.]*", TEXTS[file]) == []


def test_plain_words():
    files = texts("src", "docs", "README.md")
    for file, slot in OLD_SLOTS.items():
        text = files[f"src/scmmgan/{file}"]
        assert text.count(slot) == 1
        files[f"src/scmmgan/{file}"] = text.replace(slot, "")
    assert {file: found for file, text in files.items() if (found := own_words(text))} == {}
    assert {file: found for file, tree in TREES.items() if (found := own_names(tree))} == {}


def test_word_checkers():
    mark, folder = chr(0xA7), ".." + "/shared"
    assert outside(f"see METHOD {mark}3, DESIGN{mark}4 and EXAMPLES {mark}1 in {folder}/docs") == [
        f"METHOD {mark}", f"DESIGN{mark}", f"EXAMPLES {mark}", folder,
    ]  # fmt: skip
    assert outside(f"Methods {mark}3 of the paper; design; shared/docs") == []
    assert own_words("values told by links; k_told_b; Telling; labels that neighbours bear out are borne out") == [
        "told", "told", "Telling", "borne out",
    ]  # fmt: skip
    assert own_words("judge_all judges; links earn weights that were earned; borne_out; what brings back") == [
        "judge", "judges", "earn", "earned", "borne_out", "brings back",
    ]  # fmt: skip
    assert own_words("learn, learned, stolen, untold, adjudged, bolder, year and learning; bring cells back") == []
    code = "def stretch(outline): ...\nself.stretch = 1\nbar.outline.set(1)\nf(stretches=2)\nx_stretch = 'stretch'"
    assert sorted(own_names(ast.parse(code))) == ["outline", "stretch", "stretch", "stretches", "x_stretch"]


# --- the repository ----------------------------------------------------------------------------------------------


def test_ci_runs_what_the_readme_says():
    readme, ci = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^pip install -c constraints\.txt .*$", readme, flags=re.MULTILINE)
    assert commands == [
        "pip install -c constraints.txt . && scmmgan demo",
        'pip install -c constraints.txt -e ".[test]" && pytest',
    ]
    for part in (part for command in commands for part in command.split(" && ")):
        assert part in ci


def test_constraints_are_pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins[0] == "torch==2.13.0"
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", pin)] == []


def test_options_of_mudata_are_set_in_one_place():
    """mudata 0.4 has none."""
    assert [file for file, text in TEXTS.items() if "set_options" in text] == ["settings.py"]
