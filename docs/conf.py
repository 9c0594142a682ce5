"""How Sphinx builds the site; ``python -m tools.site`` calls it on pages that it gathered."""

import proxflow

project = "proxflow"
author = "proxflow contributors"
release = version = proxflow.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = "proxflow"
html_show_sphinx = False
html_show_copyright = False
html_static_path: list[str] = []
templates_path: list[str] = []
exclude_patterns = ["conf.py", "tutorials/kept"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # the reports begin at their own level

nb_execution_mode = "off"  # tools/tutorials.py ran them
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
copybutton_prompt_text = r"\$ "


def _plain(app, what, name, obj, options, lines):
    """Take stars and bars of docstrings, as in *event and |x|, as they are: no docstring marks up with them."""
    for k, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("*", "\\*").replace("|", "\\|") for part in parts[::2]]
        lines[k] = "``".join(parts)


def setup(app):
    """Connect what docstrings need; called by Sphinx."""
    app.connect("autodoc-process-docstring", _plain, priority=100)
