"""A report in blocks -> one self-contained HTML file.

Reports build the classes below from plain text and charts, without HTML. Every text is cleaned and cut here and
escaped by the template. A content security policy with hashes forbids every request and every script but the page's
own, so that no text from data can act.
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
from typing import Any, ClassVar, Literal

import jinja2
from markupsafe import Markup

from slmctl import console
from slmctl.console import percent, shown
from slmctl.reports import svg_chart

Tone = Literal["", "good", "warn", "bad"]
_APART = re.compile(r"(?<=\d) %")
ROWS = 500  # rows of a table that a page shows, so that a report of millions of rows opens at once
HEAD = 60  # characters of a column's name
TEXT = 480  # characters of a text that a page shows


@dataclass(frozen=True)
class Figure:
    """One number to remember."""

    label: str
    value: str
    note: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Notice:
    """One sentence; in a list of what to look at first, it leads to the section of that title."""

    kind: ClassVar[str] = "notice"
    text: str
    tone: Tone = ""
    section: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of `slmctl.reports.svg_chart` with its title; `slim` stands in its place on a small screen."""

    kind: ClassVar[str] = "chart"
    title: str
    svg: Markup
    note: str = ""
    slim: Markup | None = None

    @property
    def wide(self) -> bool:
        """True for a chart that takes the whole width."""
        return float(self.svg.split('viewBox="0 0 ', 1)[1].split(" ", 1)[0]) > svg_chart.WIDTH


@dataclass(frozen=True)
class Cell:
    """A cell with a tone and a tooltip."""

    text: str
    tone: Tone = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first `texts` columns are text, the others figures.

    `total` is the number of rows, where `rows` holds only some of them. `choices` name sets of row indices, for a table
    that a reader can filter.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    texts: int = 1
    total: int | None = None
    note: str = ""
    choices: Sequence[tuple[str, Sequence[int]]] = ()
    folded: bool = False
    half: bool = False  # as wide as a chart, beside one

    @property
    def heads(self) -> list[str]:
        """The head, cut so that no column is wider than its cells for the sake of a name."""
        return [shown(name, HEAD) for name in self.head]

    @property
    def shown(self) -> list[list[Cell]]:
        """The rows of the page."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows[:ROWS]]

    @property
    def capped(self) -> str:
        """`The first 500 of 1,200 rows.`; empty where the page holds all of them."""
        total = max(self.total or 0, len(self.rows))
        here = min(len(self.rows), ROWS)
        return f"The first {here:,} of {total:,} rows." if here < total else ""

    @property
    def sets(self) -> list[list[str]]:
        """For each row of the page, the numbers of the choices that it belongs to."""
        numbers: list[list[str]] = [[] for _ in self.rows[:ROWS]]
        for number, (_, places) in enumerate(self.choices):
            for place in places:
                if place < len(numbers):
                    numbers[place].append(str(number))
        return numbers


Block = Chart | Table | Notice


@dataclass(frozen=True)
class PageSection:
    """A part of the page with a title."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""

    @property
    def id(self) -> str:
        """The anchor of the section."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True)
class Page:
    """Headline, figures, what to look at first, details."""

    kicker: str  # what kind of report, of which project
    headline: str
    lead: str = ""
    tone: Tone = ""
    facts: Sequence[Figure] = ()  # lines about where the report comes from
    figures: Sequence[Figure] = ()
    notices: Sequence[Notice] = ()
    noticed: str = "Look at first"  # what the notices are under
    sections: Sequence[PageSection] = ()
    foot: str = ""


def write_report(path: Path, template: str, **values: Any) -> None:
    """Render a template of `templates/report/` with these values to a file, the same bytes for the same values."""
    css, js = f"{_read('report.css')}\n{svg_chart.style()}", _read("report.js")
    html = (
        _environment()
        .get_template(template)
        .render(
            titles=[],  # of the sections that have content, which enter it while the page is rendered
            css=Markup(css),  # noqa: S704 - files of this package, and no text from data
            js=Markup(js),  # noqa: S704
            css_hash=_hash(css),
            js_hash=_hash(js),
            **values,
        )
    )
    path.write_text(html + "\n", encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, finalize=_plain, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.do"],
    )  # fmt: skip
    environment.filters |= {
        "anchor": anchor, "count": count, "cut": shown, "duration": console.duration, "either": either,
        "counted": svg_chart.counted, "is_wide": _is_wide, "most_first": most_first, "number": "{:,}".format,
        "percent": percent, "points": points, "place": place, "places": places, "size": console.size,
    }  # fmt: skip
    environment.globals |= {
        "Bar": svg_chart.Bar, "bars": svg_chart.bars, "heat": svg_chart.heat, "histogram": svg_chart.histogram,
        "Notice": Notice, "stack": svg_chart.stack, "most_rows": ROWS, "page_width": 2 * svg_chart.WIDTH,
    }  # fmt: skip
    return environment


def write(path: Path, page: Page) -> None:
    """Render a page to a file."""
    path.write_text(render(page), encoding="utf-8")


def render(page: Page) -> str:
    """A page as one HTML document, the same bytes for the same page."""
    css, js = f"{_read('report.css')}\n{svg_chart.style()}", _read("report.js")
    environment = jinja2.Environment(
        autoescape=True, finalize=_plain, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_read("report.html"))
    ids = {section.title: section.id for section in page.sections}
    return template.render(
        page=page,
        ids=ids,
        css=Markup(css),  # noqa: S704 - files of this package, and no text from data
        js=Markup(js),  # noqa: S704
        css_hash=_hash(css),
        js_hash=_hash(js),
    )


def anchor(title: str) -> str:
    """The id of a section."""
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names and counts, the largest first, equal ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def count(number: int, noun: str = "") -> str:
    """`10,003`; `1 row`, `3 rows`."""
    return f"{number:,}" + (f" {noun}" if noun else "") + ("s" if noun and number != 1 else "")


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}"


def either(number: int, singular: str, plural: str) -> str:
    """The form of a word that goes with a number: `is` or `are`."""
    return singular if number == 1 else plural


def place(entry: Mapping[str, Any]) -> str:
    """The place of a row: `tickets.csv line 17`."""
    return console.place(entry["file"], entry["row"])


def places(entries: Sequence[Mapping[str, Any]]) -> str:
    """The places of rows by file: `tickets.csv lines 17, 90; more.xlsx row 3`."""
    rows: dict[str, list[int]] = {}
    for entry in entries:
        rows.setdefault(entry["file"], []).append(entry["row"])
    return "; ".join(console.place(file, *some) for file, some in rows.items())


def _is_wide(svg: Markup) -> bool:
    """True for a chart that takes the whole width of the page."""
    return float(svg.split('viewBox="0 0 ', 1)[1].split(" ", 1)[0]) > svg_chart.WIDTH


def _plain(value: Any) -> Any:
    """A value for the template: markup as it is, anything else as one cleaned line; `%` stays beside its number."""
    return value if isinstance(value, Markup) else _APART.sub("\u00a0%", shown(str(value), TEXT))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _read(name: str) -> str:
    return resources.files("slmctl.templates").joinpath("report", name).read_text(encoding="utf-8").strip()
