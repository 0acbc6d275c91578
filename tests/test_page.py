"""Reports for people: their markup, and what Debian's chromium shows of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import CHROMIUM, Browser

from slmctl import chart, page
from slmctl.chart import Bar, Dot, Line, Point
from slmctl.console import shown
from slmctl.data import _report as data_report

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</style></title></textarea><img src=x onerror=\"document.title='owned'\">",
    "\u202eevil\u2066 right to left",
    "\x1b]0;owned\x07\x1b[31mred\x00 NUL \ud800 lone",
    "&lt;already&gt; {{ 7 * 7 }} {% raw %} ${7*7} ' \" `",
    "javascript:document.title='owned'",
    "=cmd|'/C calc'!A0",
    "W" * 10_000,
    "متجر 商店 🛒",
)
SIDES = ("train", "validation", "calibration", "test")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("Debian's chromium is not installed: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def prepare_facts(names: tuple[str, ...] = ("billing", "delivery", "returns"), text: str = "email") -> dict[str, Any]:
    """Everything that `prepare` may know; every text in it is one of `names`, or `text`."""
    rules = {"duplicate": 20, "near a held-out row": 9, text: 1}
    place = {"file": f"{text}.csv", "row": 17}
    labels = {
        name: {"train": 70 + k, "validation": 9, "calibration": 12, "test": 9 + k} for k, name in enumerate(names)
    }
    kept = {side: sum(sides[side] for sides in labels.values()) for side in SIDES}
    return {
        "project": text, "task": "classify", "base": text, "rows_in": sum(kept.values()) + 30, **kept, "rejected": 30,
        "rejected_by_reason": rules, "max_rejected": 0.01,
        "sources": [{"file": text, "sha256": "ab" * 32, "rows_in": 400, "rejected": 30, "shape": text, "split": None}],
        "splits": {"by": "group", "column": text, "groups": 81, "largest_group": 4},
        "labels": labels, "label_typos": [{"label": text, "count": 3, "likely": names[0], "likely_count": 80}],
        "odd_answers": {"empty": 0, text: 2},
        "sensitive": [{"kind": text, "rule": text, "column": text, "action": "keep", "count": 12}],
        "sensitive_rows": 11, "sensitive_searched": [text],
        "duplicates": {"policy": "drop", "exact": 15, "near": 5, "threshold": 0.9},
        "conflicts": {
            "pairs": 2, "rows": 4, "cap": 0.987,
            "examples": [{"first": place, "second": place, "similarity": 0.97, "answers": [names[0], names[-1]]}],
        },
        "near_held_out": {"left_out": 9, "threshold": 0.85,
                          "examples": [{"row": place, "near": place, "side": "test", "similarity": 0.91}]},
        "overlap": {"sides": {"test": {"measured": 25, "overlapping": 5, "too_short": 3}}, "gate": 0.01},
        "tokens": {
            "median": 71, "p95": 110, "max": 140, "total": 51234, "max_length": 128, "over_length": 4,
            "quantiles": {"0.05": 30, "0.25": 60, "0.5": 71, "0.75": 85, "0.95": 110, "1": 140},
            "histogram": {"edges": [0, 40, 80, 120, 160], "counts": [12, 130, 60, 4]},
        },
        "examples": {"duplicate": [place], text: [place] * 5},
    }  # fmt: skip


def written(out: Path, facts: dict[str, Any]) -> Path:
    data_report.write(out, facts)
    return out / "report.html"


# Charts


CHARTS = {
    "bars": lambda text: chart.bars([Bar(text, 3, text), Bar(text, 0), Bar("", 1e7, "10 M")], title=text),
    "no bars": lambda text: chart.bars([], title=text),
    "stack": lambda text: chart.stack([Bar(text, 3), Bar(text, 0)], title=text),
    "empty stack": lambda text: chart.stack([Bar(text, 0)], title=text),
    "histogram": lambda text: chart.histogram(
        [0, 1, 2], [5, 0], title=text, unit=text, strip=(0, 0, 1, 1, 2), limit=(3.5, text)
    ),
    "one length": lambda text: chart.histogram([7, 7], [5], title=text, unit=text),
    "dots": lambda text: chart.dots(
        [Dot(text, 0.5, 0.4, 0.6, text), Dot(text, 1, 1, 1)], title=text, reference=(0.5, text)
    ),
    "heat": lambda text: chart.heat([text, "b"], [text, "b"], [[5, 1], [0, 12345]], title=text),
    "lines": lambda text: chart.lines(
        [Line(text, [Point(0, 1, text, text), Point(3, 2)])], title=text, x_label=text, y_label=text
    ),
    "a point": lambda text: chart.lines([Line(text, [Point(1, 0, text)])], title=text, x_label=text, log=True),
}


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_chart_is_well_formed_and_its_texts_stay_texts(name: str, text: str) -> None:
    root = ElementTree.fromstring(chart.standalone(CHARTS[name](text)))
    kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert kinds <= {"svg", "title", "desc", "style", "rect", "g", "text", "line", "circle", "polyline"}
    assert root.find("{*}title").text == (shown(text) or None)  # type: ignore[union-attr]
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == shown(text)
    assert max(len(element.text or "") for element in root.iter() if not element.tag.endswith("style")) <= 400


@pytest.mark.parametrize("name", CHARTS)
def test_what_a_chart_draws_lies_inside_it(name: str) -> None:
    root = ElementTree.fromstring(chart.standalone(CHARTS[name]("words")))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for key, most in (("x", width), ("x1", width), ("x2", width), ("cx", width), ("y", height), ("y1", height),
                          ("y2", height), ("cy", height)):  # fmt: skip
            if key in element.attrib:
                assert -1 <= float(element.attrib[key]) <= most + 1, (element.tag, element.attrib)


def test_a_bar_is_as_long_as_its_value() -> None:
    root = ElementTree.fromstring(chart.bars([Bar("a", 10), Bar("b", 5), Bar("c", 0)], title="x"))
    ten, five, none = (float(rect.attrib["width"]) for rect in root.iter("rect"))
    assert five == pytest.approx(ten / 2, abs=0.1)
    assert none == 0


def test_the_colours_are_readable_on_their_ground() -> None:
    # WCAG 2.1: 4.5 for texts, in light and dark, on the page and on a panel
    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for colours in (chart.LIGHT, chart.DARK):
        for name in colours.keys() - {"page", "panel", "rule"}:
            for ground in ("page", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("c1", "c2"):  # the fullest cell of a grid is half of these over the panel
            mixed = [(int(colours[name][k : k + 2], 16) + int(colours["panel"][k : k + 2], 16)) // 2 for k in (1, 3, 5)]
            assert contrast(colours["ink"], "#" + "".join(f"{part:02x}" for part in mixed)) >= 4.5


# Pages


class _Tags(HTMLParser):
    """The tags and attributes of a page, and whether its elements close in order."""

    VOID = frozenset({"meta", "input", "br", "rect", "line", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("facts", [prepare_facts(), prepare_facts(HOSTILE), {"rows_in": 0}, {"rows_in": 3, "train": 3}])
def test_a_page_is_well_formed_names_nothing_outside_and_links_to_what_is_there(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    text = written(tmp_path, facts).read_text(encoding="utf-8")
    found = _Tags(text).tags
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in found if tag == "a"}
    assert links <= {f"#{name}" for name in ids}
    outside = {"src", "srcset", "action", "data", "poster", "background", "style"}
    assert not [
        tag for tag, attributes in found if attributes.keys() & outside or tag in ("link", "iframe", "img", "base")
    ]
    assert not [tag for tag, attributes in found if any(name.startswith("on") for name in attributes)]
    assert not re.search(r"https?://|url\(|@import", text)
    assert [tag for tag, _ in found].count("h1") == 1


def test_every_finding_leads_to_a_part_of_the_page() -> None:
    made = data_report._page(prepare_facts())
    titles = {section.title for section in made.sections}
    assert {notice.section for notice in made.notices} <= titles
    assert len(made.notices) == 8


def test_the_same_facts_make_the_same_bytes(tmp_path: Path) -> None:
    facts = prepare_facts()
    first = written(tmp_path, facts).read_bytes()
    backwards = {key: dict(reversed(value.items())) if key == "labels" else value for key, value in facts.items()}
    assert written(tmp_path, backwards).read_bytes() == first


def test_large_facts_make_a_page_of_modest_size_that_says_what_it_left_out(tmp_path: Path) -> None:
    facts = prepare_facts(tuple(f"label {k}" for k in range(3000)))
    facts["conflicts"]["examples"] *= 100_000
    facts["conflicts"]["pairs"] = 123_456
    path = written(tmp_path, facts)
    assert path.stat().st_size < 1_000_000
    text = path.read_text()
    assert f"The first {page.ROWS} of 123,456 rows." in text
    assert f"The first {page.ROWS} of 3,000 rows." in text


def test_no_finding_is_said_plainly(tmp_path: Path) -> None:
    facts = {
        "rows_in": 400,
        "train": 280,
        "validation": 40,
        "calibration": 40,
        "test": 40,
        "rejected": 0,
        "sensitive": [],
    }
    text = written(tmp_path, facts).read_text()
    assert "400 of 400 rows can be used: 280 to train on, 40 to measure with" in text
    assert "Nothing in them asks for a decision before training." in text
    assert "Look at first" not in text
    assert "Nothing was found." in text
    assert "They do not find names" in text


def test_a_row_that_was_lost_is_seen(tmp_path: Path) -> None:
    assert "but 10 came in." in written(tmp_path, {"rows_in": 10, "train": 5, "rejected": 4}).read_text()


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.925, "92.5%"), (0.0, "0.0%"), (1.0, "100.0%"), (0.9999, "99.99%"), (0.00031, "0.03%"), (1e-9, "0.0000%")],
)
def test_a_share_is_not_rounded_to_nothing_or_all(share: float, text: str) -> None:
    assert page.percent(share) == text


# In the browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_browser_shows_it_and_asks_for_nothing(browser: Browser, tmp_path: Path, dark: bool) -> None:
    path = written(tmp_path, prepare_facts())
    browser.open(path, dark=dark)
    assert browser.requests == [path.resolve().as_uri()]
    assert browser.complaints == []
    assert browser.ask("document.querySelectorAll('svg.chart').length") >= 5
    assert browser.ask("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().width > 100)")
    assert "306 of 336 rows can be used" in browser.ask("document.body.innerText")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(15, 20, 25)" if dark else "rgb(255, 255, 255)"
    )
    assert browser.ask("getComputedStyle(document.querySelector('.fill-c1')).fill") == (
        "rgb(108, 176, 255)" if dark else "rgb(11, 98, 196)"
    )


def test_light_and_dark_are_different_images(browser: Browser, tmp_path: Path) -> None:
    path = written(tmp_path, prepare_facts())
    browser.open(path)
    light = browser.image()
    browser.open(path, dark=True)
    assert browser.image() != light


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, tmp_path: Path, width: int) -> None:
    browser.open(written(tmp_path, prepare_facts(HOSTILE, HOSTILE[7])), width=width)
    assert browser.ask("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_data_stays_text(browser: Browser, tmp_path: Path, text: str) -> None:
    path = written(tmp_path, prepare_facts(HOSTILE, text))
    browser.open(path)
    assert browser.ask("document.title").startswith("Data set")
    assert browser.ask("document.scripts.length") == 1
    assert browser.ask("document.images.length") == 0
    assert browser.complaints == []
    assert browser.requests == [path.resolve().as_uri()]
    seen = browser.ask("document.body.textContent")
    assert HOSTILE[0] in seen
    assert not re.search("[\x00\x1b\u202a-\u202e\u2066-\u2069]", seen)
    assert shown(text, 200) in seen.replace("\n", " ")


def test_a_script_that_is_not_the_pages_own_does_not_run(browser: Browser, tmp_path: Path) -> None:
    # should a text ever get through the escaping, the policy of the page still stops it
    path = written(tmp_path, prepare_facts())
    broken = path.read_text().replace(
        "<main>", "<main><script>document.title = 'owned'</script><img src='x.png' onerror=''>"
    )
    path.write_text(broken)
    browser.open(path)
    assert browser.ask("document.title").startswith("Data set")
    assert any("Content Security Policy" in one for one in browser.complaints)


def test_a_head_sorts_its_table(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(tmp_path, prepare_facts()))
    column = "[...document.querySelectorAll('#labels ~ .blocks tbody tr')].slice(-3).map(r => r.cells[4].innerText)"
    browser.ask("document.querySelectorAll('#labels ~ .blocks details, #labels').length")
    assert browser.ask(column) == ["11", "10", "9"]
    click = "[...document.querySelectorAll('#labels ~ .blocks table')].at(-1).tHead.rows[0].cells[4].firstChild.click()"
    browser.ask(click)
    browser.ask(click)
    assert browser.ask(column) == ["9", "10", "11"]
    assert browser.ask("document.querySelectorAll('th[aria-sort=ascending]').length") == 1


def test_the_print_is_light_and_shows_what_is_folded(browser: Browser, tmp_path: Path) -> None:
    facts = prepare_facts(tuple(f"label {k}" for k in range(40)))
    browser.open(written(tmp_path, facts), dark=True, media="print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask("document.querySelector('details table').getBoundingClientRect().height") > 100
    assert browser.pdf().startswith(b"%PDF")


def test_headings_are_in_order_and_tables_have_captions(browser: Browser, tmp_path: Path) -> None:
    browser.open(written(tmp_path, prepare_facts()))
    levels = browser.ask("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert browser.ask("[...document.querySelectorAll('table')].every(t => t.caption && t.caption.innerText)")
    assert browser.ask("[...document.querySelectorAll('th')].every(t => t.scope === 'col')")
    assert browser.ask("[...document.querySelectorAll('svg.chart')].every(s => s.querySelector('title, desc'))")
    assert browser.ask("document.documentElement.lang") == "en"


def test_an_image_of_its_own_has_a_dark_form(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "loss.svg"
    path.write_text(chart.standalone(CHARTS["lines"]("loss")), encoding="utf-8")
    grounds = []
    for dark in (False, True):
        browser.open(path, dark=dark)
        assert browser.complaints == []
        grounds.append(browser.ask("getComputedStyle(document.querySelector('.fill-page')).fill"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(15, 20, 25)"]
