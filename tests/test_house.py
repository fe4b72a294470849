"""The rules of the house (DESIGN §4, EXAMPLES §1 and §10), read from the syntax tree; each checker is shown to fail."""

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
TREES = {file: ast.parse((SRC / file).read_text(encoding="utf-8")) for file in FILES}

FunctionDef = ast.FunctionDef | ast.AsyncFunctionDef
PACKAGES = ("scmmgan", "scmmgan.model", "scmmgan.pp", "scmmgan.tl", "scmmgan.pl")
# what public functions take and return
CONTAINERS = {"anndata", "mudata", "pandas", "scipy"}
# file pattern (the first that fits counts): importable by the module, and further ones only inside functions
RULES: list[tuple[str, set[str], set[str]]] = [
    ("__init__.py", set(), set()),
    ("_keys.py", set(), set()),
    # the boundary between MuData and arrays: reading and checks, links, slots
    ("_domain.py", CONTAINERS | {"scmmgan.model.space.transform"}, set()),
    ("_links.py", CONTAINERS | {"scmmgan.data.modality"}, set()),
    ("_known.py", CONTAINERS | {"scmmgan.data.modality"}, set()),
    ("_genomic.py", CONTAINERS | {"scmmgan.data.modality", "scmmgan.data.links"}, set()),
    (
        "_slots.py",
        CONTAINERS
        | {"scmmgan.data.modality", "scmmgan.data.derived", "scmmgan.data.keys", "scmmgan.model.space.transform"},
        {"scmmgan.model.nets.aligner", "scmmgan.model.coupling.coupling"},
    ),
    ("_derived.py", CONTAINERS | {"scmmgan.data.keys"}, set()),
    ("model/__init__.py", set(), set()),
    *[
        (
            f"model/{name}.py",
            {"scipy", "sklearn", "tqdm", "scmmgan.model"},
            {"torch", "ot", "pynndescent", "threadpoolctl"},
        )
        for name in ("transform", "diffusion", "coupling", "diagnosis", "matching", "uncertainty")
    ],
    ("model/attribution.py", {"torch", "scmmgan.model"}, {"captum"}),
    (
        "model/*.py",
        {"scipy", "sklearn", "torch", "lightning", "lightning_fabric", "tqdm", "scmmgan.model"},
        {"ot", "pynndescent", "threadpoolctl"},  # threadpoolctl: what scikit-learn limits its threads with
    ),
    (
        "pp/*.py",
        CONTAINERS
        | {f"scmmgan.{name}" for name in ("_domain", "_links", "_genomic", "model.transform", "model.diffusion", "pp")},
        {"scanpy", "muon"},
    ),
    (
        "tl/*.py",
        CONTAINERS
        | {
            f"scmmgan.{name}"
            for name in ("_domain", "_links", "_known", "_slots", "_derived", "_keys", "get", "metrics", "model", "tl")
        },
        {"captum", "sklearn", "torch", "threadpoolctl"},
    ),
    (
        "pl/*.py",
        CONTAINERS | {"matplotlib", "scmmgan.data.keys", "scmmgan.data.known", "scmmgan.get", "scmmgan.pl"},
        {"sklearn"},
    ),
    (
        "get.py",
        CONTAINERS | {"scmmgan.data.modality", "scmmgan.data.slots", "scmmgan._reading", "scmmgan.data.keys"},
        {"scmmgan.model.nets.aligner"},
    ),
    (
        "_reading.py",
        CONTAINERS | {"scmmgan.data.modality", "scmmgan.data.slots", "scmmgan.data.keys"},
        {"scmmgan.model.evidence.uncertainty"},
    ),
    ("metrics.py", {"pandas", "scipy", "sklearn"}, set()),
    ("datasets.py", CONTAINERS, {"scanpy", "pooch"}),
    (
        "cli.py",
        {"scmmgan"} | {f"scmmgan.{name}" for name in ("pp", "tl", "pl", "get", "metrics", "datasets")},
        {"matplotlib", "anndata", "mudata"},
    ),
]


# --- imports -----------------------------------------------------------------------------------------------------


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST, package: str, at_import: bool = True) -> Iterator[tuple[str, bool, int]]:
    """Imported module, whether that happens at import time, line."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, at_import, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - child.level + 1]) if child.level else ""
            module = ".".join(part for part in (base, child.module) if part)
            names = [f"{module}.{alias.name}" for alias in child.names] if module in PACKAGES else [module]
            yield from ((name, at_import, child.lineno) for name in names)
        else:
            deferred = isinstance(child, FunctionDef | ast.Lambda) or is_type_checking(child)
            yield from imports(child, package, at_import and not deferred)


def is_one_of(module: str, allowed: set[str]) -> bool:
    # `import scmmgan` itself opens no room
    return any(module == name or (name != "scmmgan" and module.startswith(f"{name}.")) for name in allowed)


def wrong_imports(file: str, tree: ast.AST) -> list[str]:
    rule = next((rule for rule in RULES if fnmatch(file, rule[0])), None)
    if rule is None:
        return [f"{file}: no import rule; add one to RULES"]
    _, anywhere, inside = rule
    everywhere = {"numpy", *sys.stdlib_module_names, *(["scmmgan.__version__"] if file == "cli.py" else [])}
    package = ".".join(["scmmgan", *file.split("/")[:-1]])
    return [
        f"{file}:{line}: {module}" + (" at import time" if is_one_of(module, inside) else "")
        for module, at_import, line in imports(tree, package)
        if not is_one_of(module, everywhere | anywhere | (set() if at_import else inside))
    ]


@pytest.mark.parametrize("file", FILES)
def test_import_directions(file: str):
    assert wrong_imports(file, TREES[file]) == []


@pytest.mark.parametrize(
    ("file", "snippet", "wrong"),
    [
        ("_keys.py", "import pandas", 1),
        ("model/losses.py", "import anndata", 1),
        ("model/losses.py", "if TYPE_CHECKING:\n    from mudata import MuData", 1),
        ("model/losses.py", "def f():\n    import scanpy", 1),
        ("model/losses.py", "import torch\nfrom scmmgan.model.space.diffusion import f\nfrom .diffusion import f", 0),
        ("model/losses.py", "from scmmgan import _domain", 1),
        ("model/losses.py", "from .. import get", 1),
        ("model/diffusion.py", "import torch", 1),
        ("model/diffusion.py", "class A:\n    import torch", 1),
        ("model/diffusion.py", "try:\n    import torch\nexcept ImportError:\n    pass", 1),
        ("model/diffusion.py", "if TYPE_CHECKING:\n    import torch\ndef f():\n    import torch.linalg", 0),
        ("pp/_x.py", "import scanpy as sc", 1),
        ("pp/_x.py", "def f():\n    import scanpy as sc", 0),
        ("pp/_x.py", "from scmmgan.model import transform", 0),
        ("pp/_x.py", "from scmmgan.model import training", 1),
        ("pp/_x.py", "from ..tl import align", 1),
        ("tl/_x.py", "import torch", 1),
        ("pl/_x.py", "from scmmgan.tl import align", 1),
        ("get.py", "from scmmgan.model.nets.aligner import Aligner", 1),
        ("get.py", "def f():\n    from scmmgan.model.nets.aligner import Aligner", 0),
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


HEAVY = ["torch", "scanpy", "muon", "pynndescent", "ot", "lightning", "lightning_fabric", "numba", "captum"]


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


def wrong_signature(where: str, node: FunctionDef) -> list[str]:
    """`mdata` first, modalities and features by position, everything else by keyword only."""
    positional = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
    named = {"mdata", "modality", "modalities", "source", "target", "features"}
    wrong = [f"{where}: {name} must be keyword-only" for name in positional if name not in named]
    if positional[:1] != ["mdata"]:
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
MODULES = ("get.py", "metrics.py", "datasets.py")
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


def test_one_file_one_function_one_test():
    """Every public name of pp, tl and pl: `_name.py` with one public function, `tests/*/test_name.py`."""
    wrong = []
    for room in ("pp", "tl", "pl"):
        tree = TREES[f"{room}/__init__.py"]
        assigned = next(n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
        exported = ast.literal_eval(assigned.value)
        for name in exported:
            wrong += wrong_home(room, name, TREES.get(f"{room}/_{name}.py"))
        files = {Path(file).stem[1:] for file in FILES if file.startswith(f"{room}/_") and "__init__" not in file}
        wrong += [
            f"{room}/_{name}.py is not in __all__"
            for name in files
            - set(exported)
            - {"utils", "measured", "predicted", "prior", "problem", "quality", "smoothing", "tissue", "verdict"}
            - {"determined", "draws", "evidence", "intervals", "told"}
        ]
        wrong += [
            f"{room}.{name} has no test file"
            for name in exported
            if not (ROOT / f"tests/{room}/test_{name}.py").exists()
        ]
    assert wrong == []


def wrong_home(room: str, name: str, tree: ast.Module | None) -> list[str]:
    if tree is None:
        return [f"{room}.{name} has no file of its own"]
    return [] if name in [node.name for node in functions(tree)] else [f"{room}/_{name}.py does not define {name}"]


def test_home_checker():
    assert wrong_home("tl", "align", ast.parse("def align(): ...\ndef helper(): ...")) == []
    assert len(wrong_home("tl", "align", ast.parse("from ._other import align"))) == 1
    assert len(wrong_home("tl", "align", None)) == 1


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


def code_lines(node: FunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = node.body[0]
    has_docstring = ast.get_docstring(node, clean=False) is not None
    return node.end_lineno - node.lineno + 1 - (first.end_lineno - first.lineno + 1 if has_docstring else 0)


def too_long(file: str, text: str) -> list[str]:
    wrong = [f"{file}: {n} lines"] if (n := len(text.splitlines())) > 400 else []
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, FunctionDef)]
    return wrong + [f"{file}: {node.name} has {code_lines(node)} lines" for node in nodes if code_lines(node) > 60]


def untyped(file: str, tree: ast.AST) -> list[str]:
    """Every function, private ones and methods too (`self` and `cls` aside)."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, FunctionDef)]
    found = [complaint for node in nodes for complaint in wrong_types(f"{file}: {node.name}", node)]
    return [complaint for complaint in found if not re.search(r": (self|cls) has no type$", complaint)]


@pytest.mark.parametrize("file", FILES)
def test_statements_and_sizes(file: str):
    text = (SRC / file).read_text(encoding="utf-8")
    marks = [f"{file}: {mark}" for mark in re.findall(r"TODO|FIXME|XXX|NotImplementedError", text)]
    future = [] if "from __future__ import annotations" in text or not TREES[file].body else [f"{file}: no __future__"]
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
    assert too_long("a.py", "x = 1\n" * 401) == ["a.py: 401 lines"]


def test_type_checker():
    assert untyped("a.py", ast.parse("class A:\n    def f(self, x: int) -> int: ...")) == []
    assert untyped("a.py", ast.parse("def f(x) -> int: ...")) == ["a.py: f: x has no type"]


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
