"""The documentation site: `python -m sphinx -W -c docs . build/site`, from the repository's root.

The source folder is the repository, so that a link between the README, docs/, benchmarks/ and patches/ is the same
relative path here and on a code host. What a page links to and is no page (JSON, YAML) is copied into the site.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "_ext")]

from docstrings import to_restructured_text
from methods_table import methods_reference, methods_table
from results import results_table
from sphinx.application import Sphinx

from vllm_prune._version import __version__

project = "vllm-prune"
author = "the vllm-prune authors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxarg.ext", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**",
    "patches/README.md",
    "benchmarks/results/*.md",
    "benchmarks/*/README.md",
    "benchmarks/tiny_model/RESULTS*.md",
]
exclude_patterns = [".venv", "build", "dist", "docs/_*", "vllm_prune", "tests", "**/node_modules"]

# Docstrings put code between single backticks.
default_role = "code"
smartquotes = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
# Types of packages whose documentation is not ours.
nitpick_ignore_regex = [("py:.*", r"(torch|vllm|collections|pathlib|typing)\..*|Tensor|optional")]

myst_heading_anchors = 4
myst_enable_extensions = ["substitution", "colon_fence"]
myst_substitutions = {"methods": methods_table(), "methods_reference": methods_reference(), "results": results_table()}

html_theme = "furo"  # system fonts, no address outside the site
html_title = "vllm-prune"
html_extra_path = ["_root"]
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: Sphinx) -> None:
    """Has docstrings rewritten as they are read."""
    app.connect("autodoc-process-docstring", to_restructured_text)
