"""Figures and a template -> one self-contained HTML file.

Every text in a template's values is cleaned, cut and escaped. A content security policy with hashes
forbids every request and every script but the page's own, so that text from data cannot run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from slmctl import console
from slmctl.console import percent, shown
from slmctl.reports import svg_chart

if TYPE_CHECKING:
    import jinja2

Tone = Literal["", "good", "warn", "bad"]
_APART = re.compile(r"(?<=\d) %")
_TICKS = re.compile("`+")
_HARMLESS = re.compile(r"(?!.*(?:://|www\.))[\w .,;:()'%/+=-]*")
ROWS = 500  # rows of a table that a page shows, so that a report of millions of rows opens at once
TEXT = 480  # characters of a text that a page shows


@dataclass(frozen=True)
class Notice:
    """A sentence about something to look at first, with a link to the section with this title."""

    text: str
    tone: Tone = ""
    section: str = ""


@dataclass(frozen=True)
class Cell:
    text: str
    tone: Tone = ""
    title: str = ""


def write(path: Path, template: str, **values: Any) -> None:
    """Render a template of `templates/report/` with these values to a
    file, the same bytes for the same values.
    """
    css, js = f"{_read('report.css')}\n{svg_chart.style()}", _read("report.js")
    page = _environment().get_template(template)
    # of sections with content; the template fills it while the page is rendered
    titles: list[str] = []
    hashes = {"css_hash": policy_hash(css), "js_hash": policy_hash(js)}
    html = page.render(titles=titles, css=Markup(css), js=Markup(js), **hashes, **values)  # noqa: S704 - own files
    path.write_text(html + "\n", encoding="utf-8")


def markdown(template: str, **values: Any) -> str:
    """Render a template of `templates/report/` as Markdown; texts are neither escaped nor cut."""
    environment = _environment().overlay(autoescape=False, finalize=None)
    return environment.from_string(_read(template)).render(**values).rstrip() + "\n"


def code(text: str) -> str:
    """A text as a code span of Markdown, which it cannot end."""
    line = shown(text, 10_000)
    fence = "`" * (1 + max(map(len, _TICKS.findall(line)), default=0))
    space = " " * ("`" in line)
    return f"{fence}{space}{line}{space}{fence}"


def inert(text: str) -> str:
    """A text from data for Markdown: as it is where no sign or address
    in it could mean more, else as code.
    """
    return text if _HARMLESS.fullmatch(text) else code(text)


def unmarked(text: str) -> str:
    """A sentence for Markdown, in which no name from data makes
    a link, an image, code or markup.
    """
    return re.sub(r"[\[\]<>`]", r"\\\g<0>", " ".join(text.split())).replace("://", r":\//")


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        finalize=_plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= {
        "anchor": anchor,
        "count": count,
        "cut": shown,
        "duration": console.duration,
        "either": either,
        "counted": svg_chart.counted,
        "is_wide": _is_wide,
        "most_first": most_first,
        "number": "{:,}".format,
        "percent": percent,
        "points": points,
        "place": place,
        "places": places,
        "size": console.size,
        "unmarked": unmarked,
    }
    environment.globals |= {
        "Bar": svg_chart.Bar,
        "bars": svg_chart.bars,
        "histogram": svg_chart.histogram,
        "Notice": Notice,
        "stack": svg_chart.stack,
        "most_rows": ROWS,
        "page_width": 2 * svg_chart.WIDTH,
    }
    return environment


def anchor(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


count = console.count  # a filter of the templates, too


def most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """(name, count) pairs, the largest count first, equal counts by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}"


def either(number: int, singular: str, plural: str) -> str:
    return singular if number == 1 else plural


def place(entry: Mapping[str, Any]) -> str:
    """`tickets.csv line 17`."""
    return console.place(entry["file"], entry["row"])


def places(entries: Sequence[Mapping[str, Any]]) -> str:
    """`tickets.csv lines 17, 90; more.xlsx row 3`."""
    rows: dict[str, list[int]] = {}
    for entry in entries:
        rows.setdefault(entry["file"], []).append(entry["row"])
    return "; ".join(console.place(file, *some) for file, some in rows.items())


def _is_wide(svg: Markup) -> bool:
    """True for a chart that takes the whole width of the page."""
    return float(svg.split('viewBox="0 0 ', 1)[1].split(" ", 1)[0]) > svg_chart.WIDTH


def _plain(value: Any) -> Any:
    """A value for the template: markup unchanged, anything else as one
    cleaned line, a no-break space before `%`.
    """
    return value if isinstance(value, Markup) else _APART.sub("\u00a0%", shown(str(value), TEXT))


def policy_hash(text: str) -> str:
    """The sha256 in base64 of an inline style or script, for a content security policy."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return (
        resources.files("slmctl.templates")
        .joinpath("report", name)
        .read_text(encoding="utf-8")
        .strip()
    )
