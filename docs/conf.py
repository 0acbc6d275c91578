"""Make a site of these pages with Sphinx: `make docs`. The lists of
docs/README.md are its navigation.
"""

import posixpath
import re
from pathlib import Path

from sphinx.application import Sphinx

from slmctl.reports.svg_chart import DARK, LIGHT

project = html_title = "slmctl"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "benchmarks/*.md"]
myst_heading_anchors = 6
myst_enable_extensions = ["attrs_inline"]  # the class of a picture
highlight_language = "text"  # of indented code
smartquotes = False  # a value in quotes is typed as it stands
html_theme = "furo"
html_static_path = html_css_files = ["site.css"]
html_copy_source = html_use_index = html_show_copyright = False
COLOURS = {
    "brand-primary": "c1",
    "brand-content": "c1",
    "brand-visited": "c1",
    "background-primary": "page",
    "background-secondary": "panel",
    "background-border": "rule",
    "foreground-primary": "ink",
    "foreground-secondary": "muted",
}
html_theme_options = {
    f"{mode}_css_variables": {f"color-{name}": palette[colour] for name, colour in COLOURS.items()}
    for mode, palette in (("light", LIGHT), ("dark", DARK))
}


# A dark picture and a light one, as GitHub shows them; Furo goes by classes, since its reader can
# choose.
PICTURE = r'<picture><source media=".+?" srcset="(.+?)"><img alt="(.+?)" src="(.+?)"></picture>'


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Leave out the marks that bind figures to results, take both pictures,
    and give the first page the navigation.
    """
    source[0] = re.sub("<!--.*?-->", "", source[0], flags=re.DOTALL)
    source[0] = re.sub(PICTURE, r"![\2](\3){.only-light} ![\2](\1){.only-dark}", source[0])
    if page == root_doc:
        index = (Path(app.srcdir) / "docs" / "README.md").read_text(encoding="utf-8")
        source[0] += "\n\n```{toctree}\n:hidden:\n\ndocs/README\n```\n"
        for title, body in re.findall(r"^## (.+)\n([^#]+)", index, flags=re.MULTILINE):
            pages = re.findall(r"^- \[(.+?)\]\((.+?)\.md\)", body, flags=re.MULTILINE)
            lines = [
                f"{name.replace('`', '')} <{posixpath.normpath(f'docs/{path}')}>"
                for name, path in pages
            ]
            source[0] += "\n".join(
                ["\n```{toctree}", ":hidden:", f":caption: {title}", "", *lines, "```\n"]
            )


def setup(app: Sphinx) -> None:
    app.connect("source-read", read)
