"""How `.ci/docs` builds the site: warnings are errors, and nothing on a page is from elsewhere."""

from __future__ import annotations

import millis_hooks

project = "millis_hooks"
author = "The millis_hooks authors"
copyright = "The millis_hooks authors, under the MIT license"
release = version = millis_hooks.__version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
smartquotes = False  # they would change the JSON in settings

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"millis_hooks {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"
