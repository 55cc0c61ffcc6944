"""Sphinx's settings; ``build.py`` copies this beside the pages."""

project = "Qua²SeDiMo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
html_theme = "furo"
html_title = project
html_show_sphinx = False
myst_heading_anchors = 3
autodoc_default_options = {"member-order": "bysource", "no-value": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
