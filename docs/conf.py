"""How Sphinx makes a site of these pages: scripts/docs site."""

from __future__ import annotations

from maestrale import __version__

project = "maestrale"
author = "The maestrale authors"
copyright = author
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["conf.py"]
root_doc = "index"
html_theme = "furo"
html_title = f"maestrale {version}"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
# Anchors as GitHub makes them, so that a link works in both.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
# Names of libraries that no highlighter knows are no reason to stop.
suppress_warnings = ["misc.highlighting_failure"]
