"""How `.ci/docs` builds the site: warnings are errors, and nothing on a page is from elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import millis_hooks
import millis_hooks.testing

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# Before autodoc does it as type checkers do, which pydantic's models do not bear.
for name in millis_hooks.__all__:
    getattr(millis_hooks, name)

project = "millis_hooks"
author = "The millis_hooks authors"
copyright = "The millis_hooks authors, under the MIT licence"
release = version = millis_hooks.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "made_pages", "plain_docstrings"]
exclude_patterns = ["_build"]
smartquotes = False  # they would change the JSON in settings
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures that no page describes

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"exclude-members": "model_config, model_post_init"}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"millis_hooks {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"
