"""The self-contained HTML document of a page that a server of slmctl serves.

Style and script are inline and allowed by their hashes only, markup cannot be made from text
(trusted types), and the page may contact only its own server.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from slmctl.reports import svg_chart
from slmctl.reports.html_page import policy_hash

POLICY = (
    "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src "
    "'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for "
    "'script'; "
    "trusted-types 'none'"
)


@dataclass(frozen=True)
class ServedPage:
    """A page as it is sent; `headers` hold the content security policy
    with the hashes of its style and script.
    """

    html: str
    headers: Mapping[str, str]


@functools.cache
def served_page(package: str) -> ServedPage:
    """The page of a package: its `page.html`, `page.js` and, if it exists, `page.css`.

    `head.html` of this folder is its head; `page.css` and `shared.js` of this folder come before
    the package's.
    """
    has_style = resources.files(package).joinpath("page.css").is_file()
    own_style = _read(package, "page.css") if has_style else ""
    style = "\n".join([_read(__name__, "page.css"), own_style, svg_chart.style()])
    script = "\n".join([_read(__name__, "shared.js"), _read(package, "page.js")])
    html = _read(package, "page.html").replace("<!-- head -->", _read(__name__, "head.html"))
    html = html.replace("/* style */", style).replace("/* script */", script)
    headers = {
        "Content-Security-Policy": POLICY.format(
            style=policy_hash(style), script=policy_hash(script)
        ),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return ServedPage(html, headers)


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8").strip()
