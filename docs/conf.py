"""Sphinx configuration. Nothing is fetched from the network."""

from __future__ import annotations

import scmmgan

project = "scmmgan"
author = "The scmmgan developers"
copyright = f"2026, {author}"
version = release = scmmgan.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
napoleon_google_docstring = False
# as written: prose and the list of fields (napoleon would take each line of prose for a type)
napoleon_custom_sections = ["Returns"]
default_role = "literal"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

html_theme = "sphinx_book_theme"
html_title = "scmmgan"
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False}
