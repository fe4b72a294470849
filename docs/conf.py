"""Sphinx configuration. Nothing is fetched from the network, but by Read the Docs."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import intersphinx

import scmmgan

HERE = Path(__file__).parent

project = "scmmgan"
author = "The scmmgan developers"
copyright = f"2026, {author}"
version = release = scmmgan.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
]
exclude_patterns = ["_build", "_inventories", "**.ipynb_checkpoints"]
nitpicky = True

# pages
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]
nb_execution_mode = "off"  # notebooks are executed by tutorials/execute.py, and shown as they are
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
ogp_site_url = "https://scmmgan.readthedocs.io/"
ogp_social_cards = {"enable": False}

# functions: one page each, made anew so that none is left of a function that went
shutil.rmtree(HERE / "generated", ignore_errors=True)
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_google_docstring = False
# as written: prose and the list of fields (napoleon would take each line of prose for a type)
napoleon_custom_sections = ["Returns"]
default_role = "literal"

# other packages: the names that our signatures and pages use, in inventories made here; Read the Docs has the whole ones
EXTERNAL = {
    "anndata": ("https://anndata.readthedocs.io/en/stable/", "generated/{}.html", ["anndata.AnnData"]),
    "matplotlib": (
        "https://matplotlib.org/stable/",
        "api/{}.html",
        ["matplotlib.axes.Axes", "matplotlib.colors.Colormap", "matplotlib.figure.Figure"],
    ),
    "mudata": ("https://mudata.readthedocs.io/stable/", "generated/{}.html", ["mudata.MuData"]),
    "numpy": ("https://numpy.org/doc/stable/", "reference/generated/{}.html", ["numpy.ndarray"]),
    "pandas": ("https://pandas.pydata.org/docs/", "reference/api/{}.html", ["pandas.DataFrame"]),
    "python": (
        "https://docs.python.org/3/",
        "library/index.html",
        [
            *("bool", "dict", "float", "int", "str", "tuple", "list", "None"),
            *("collections.abc.Mapping", "collections.abc.Sequence", "os.PathLike", "pathlib.Path", "typing.Any"),
        ],
    ),
    "scipy": ("https://docs.scipy.org/doc/scipy/", "reference/generated/{}.html", ["scipy.sparse.csr_matrix"]),
    "torch": ("https://docs.pytorch.org/docs/stable/", "tensor_attributes.html", ["torch.device"]),
}
# the class of trained models has no page of its own
nitpick_ignore_regex = [("py:class", r"(.*\.)?Trained(Latent)?")]
# as type hints spell them, which are not evaluated
SPELLINGS = {name.rsplit(".", 1)[-1]: name for _, _, names in EXTERNAL.values() for name in names if "." in name} | {
    "np.ndarray": "numpy.ndarray",
    "pd.DataFrame": "pandas.DataFrame",
    "mudata._core.mudata.MuData": "mudata.MuData",
}


def inventory(name: str, page: str, names: list[str]) -> str:
    """Write an inventory of these classes; its path."""
    folder = HERE / "_inventories"
    folder.mkdir(exist_ok=True)
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n# The remainder of this file is compressed using zlib.\n"
    lines = "".join(f"{entry} py:class 1 {page.format(entry)}#{entry} -\n" for entry in names)
    path = folder / f"{name}.inv"
    path.write_bytes(head.encode() + zlib.compress(lines.encode()))
    return str(path)


online = os.environ.get("READTHEDOCS") == "True"
intersphinx_mapping = {
    name: (url, (None, inventory(name, page, names)) if online else inventory(name, page, names))
    for name, (url, page, names) in EXTERNAL.items()
}

html_theme = "sphinx_book_theme"
html_title = "scmmgan"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
}


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement) -> nodes.reference | None:
    """Names of other packages as our type hints spell them."""
    if node.get("reftarget") not in SPELLINGS:
        return None
    node["reftarget"] = SPELLINGS[node["reftarget"]]
    return intersphinx.missing_reference(app, env, node, text)


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("missing-reference", resolve)
