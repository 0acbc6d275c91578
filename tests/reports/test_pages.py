"""Reports for people: their markup, and what Debian's chromium shows of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.browser import Browser
from support.reported import (
    HOSTILE,
    bare_prepare_facts,
    evaluate_opening,
    evaluate_report,
    evaluate_rows,
    label_facts,
    prepare_facts,
)

from slmctl.console import shown
from slmctl.reports import html_page, svg_chart
from slmctl.reports.svg_chart import Bar, Dot, LineSeries, Point
from slmctl.stages.evaluate import report_page as model_report
from slmctl.stages.label import report_page as teacher_report
from slmctl.stages.prepare import report_page as data_report


def written(out: Path, facts: dict[str, Any]) -> Path:
    data_report.write(out, facts, base="tiny")
    return out / "report.html"


def of_prepare(
    out: Path, names: tuple[str, ...] = ("billing", "delivery", "returns"), text: str = "email"
) -> Path:
    data_report.write(out, prepare_facts(names, text), base=text)
    return out / "report.html"


def of_evaluate(
    out: Path, names: tuple[str, ...] = ("billing", "delivery", "returns"), text: str = "tickets"
) -> Path:
    report = evaluate_report(names, text, ("base", "adapter", "Q8_0", f"Q4 {text}"))
    rows = evaluate_rows(report, names, text, cut=200)
    model_report.write(
        out / "report.html", report, rows, labels=names, opening=evaluate_opening(text)
    )
    return out / "report.html"


def of_label(
    out: Path, names: tuple[str, ...] = ("billing", "delivery", "returns"), text: str = "big"
) -> Path:
    teacher_report.write(
        out, label_facts(names, text), {"hosts_contacted": [text], "bytes_out": 1_000_000}
    )
    return out / "report.html"


Make = Callable[..., Path]
BOTH = pytest.mark.parametrize("make", [of_prepare, of_evaluate, of_label])


# Charts


CHARTS = {
    "bars": lambda text: svg_chart.bars(
        [Bar(text, 3, text), Bar(text, 0), Bar("", 1e7, "10 M")], title=text
    ),
    "no bars": lambda text: svg_chart.bars([], title=text),
    "stack": lambda text: svg_chart.stack([Bar(text, 3), Bar(text, 0)], title=text),
    "empty stack": lambda text: svg_chart.stack([Bar(text, 0)], title=text),
    "histogram": lambda text: svg_chart.histogram(
        [0, 1, 2], [5, 0], title=text, unit=text, strip=(0, 0, 1, 1, 2)
    ),
    "one length": lambda text: svg_chart.histogram(
        [7, 7], [5], title=text, unit=text, strip=[7] * 5
    ),
    "dots": lambda text: svg_chart.dots(
        [Dot(text, 0.5, 0.4, 0.6, text), Dot(text, 1, 1, 1)], title=text, reference=(0.5, text)
    )[0],
    "heat": lambda text: svg_chart.heat([text, "b"], [text, "b"], [[5, 1], [0, 12345]], title=text),
    "lines": lambda text: svg_chart.lines(
        [LineSeries(text, [Point(0, 1, text, text), Point(3, 2)])],
        title=text,
        x_label=text,
        y_label=text,
    ),
    "a point": lambda text: svg_chart.lines(
        [LineSeries(text, [Point(1, 0, text)])], title=text, x_label=text, log=True
    ),
}


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("text", HOSTILE)
def test_a_chart_is_well_formed_and_its_texts_stay_texts(name: str, text: str) -> None:
    root = ElementTree.fromstring(svg_chart.standalone(CHARTS[name](text)))
    kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert kinds <= {
        "svg",
        "title",
        "desc",
        "style",
        "rect",
        "g",
        "text",
        "line",
        "circle",
        "polyline",
    }
    assert root.find("{*}title").text == (shown(text) or None)  # type: ignore[union-attr]
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == shown(text)
    assert (
        max(len(element.text or "") for element in root.iter() if not element.tag.endswith("style"))
        <= 400
    )


@pytest.mark.parametrize("name", CHARTS)
def test_what_a_chart_draws_lies_inside_it(name: str) -> None:
    root = ElementTree.fromstring(svg_chart.standalone(CHARTS[name]("words")))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for key, most in (
            ("x", width),
            ("x1", width),
            ("x2", width),
            ("cx", width),
            ("y", height),
            ("y1", height),
            ("y2", height),
            ("cy", height),
        ):
            if key in element.attrib:
                assert -1 <= float(element.attrib[key]) <= most + 1, (element.tag, element.attrib)


def test_a_bar_is_as_long_as_its_value() -> None:
    root = ElementTree.fromstring(
        svg_chart.bars([Bar("a", 10), Bar("b", 5), Bar("c", 0)], title="x")
    )
    ten, five, none = (float(rect.attrib["width"]) for rect in root.iter("rect"))
    assert five == pytest.approx(ten / 2, abs=0.1)
    assert none == 0
    (shared,) = ElementTree.fromstring(svg_chart.bars([Bar("a", 10)], title="x", most=40)).iter(
        "rect"
    )
    assert float(shared.attrib["width"]) == pytest.approx(ten / 4, abs=0.1)


def test_the_colours_are_readable_on_their_ground() -> None:
    # WCAG 2.1: 4.5 for texts, in light and dark, on the page and on a panel
    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for colours in (svg_chart.LIGHT, svg_chart.DARK):
        for name in colours.keys() - {"page", "panel", "rule"}:
            for ground in ("page", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("c1", "c2"):  # the fullest cell of a grid is half of these over the panel
            mixed = [
                (int(colours[name][k : k + 2], 16) + int(colours["panel"][k : k + 2], 16)) // 2
                for k in (1, 3, 5)
            ]
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


PAGES = {
    "prepare": of_prepare,
    "prepare, hostile": lambda out: of_prepare(out, HOSTILE, HOSTILE[0]),
    "no rows": lambda out: written(out, bare_prepare_facts()),
    "evaluate": of_evaluate,
    "evaluate, hostile": lambda out: of_evaluate(out, HOSTILE, HOSTILE[1]),
    "label": of_label,
    "label, hostile": lambda out: of_label(out, HOSTILE, HOSTILE[1]),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed_names_nothing_outside_and_links_to_what_is_there(
    name: str, tmp_path: Path
) -> None:
    text = PAGES[name](tmp_path).read_text(encoding="utf-8")
    found = _Tags(text).tags
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in found if tag == "a"}
    assert links <= {f"#{name}" for name in ids}
    outside = {"src", "srcset", "action", "data", "poster", "background", "style"}
    assert not [
        tag
        for tag, attributes in found
        if attributes.keys() & outside or tag in ("link", "iframe", "img", "base")
    ]
    assert not [
        tag for tag, attributes in found if any(name.startswith("on") for name in attributes)
    ]
    assert not re.search(r"https?://|url\(|@import", text)
    assert [tag for tag, _ in found].count("h1") == 1


def test_every_finding_leads_to_a_part_of_the_page(tmp_path: Path) -> None:
    text = of_prepare(tmp_path).read_text()
    findings = text[text.index('<section class="first"') : text.index("<nav")]
    assert findings.count("<li ") == findings.count('<a href="#') == 12


def test_a_slip_is_not_also_a_label_with_few_rows_and_places_are_grouped_by_file(
    tmp_path: Path,
) -> None:
    facts = prepare_facts()
    facts["label_typos"][0]["label"] = "billing"  # which has 9 test rows
    facts["examples"]["duplicate"] = [
        {"file": "a.csv", "row": 3},
        {"file": "a.csv", "row": 5},
        {"file": "b", "row": 1},
    ]
    text = written(tmp_path, facts).read_text()
    assert "fewer than 10 test rows (" not in text
    assert "a.csv lines 3, 5; b row 1" in text


def test_the_same_facts_make_the_same_bytes(tmp_path: Path) -> None:
    facts = prepare_facts()
    first = written(tmp_path, facts).read_bytes()
    backwards = {
        key: dict(reversed(value.items())) if key == "labels" else value
        for key, value in facts.items()
    }
    assert written(tmp_path, backwards).read_bytes() == first


def test_large_facts_make_a_page_of_modest_size_that_says_what_it_left_out(tmp_path: Path) -> None:
    facts = prepare_facts(tuple(f"label {k}" for k in range(3000)))
    facts["conflicts"]["examples"] *= 100_000
    facts["conflicts"]["pairs"] = 123_456
    path = written(tmp_path, facts)
    assert path.stat().st_size < 1_000_000
    text = path.read_text()
    assert f"The first {html_page.ROWS} of 123,456 rows." in text
    assert f"The first {html_page.ROWS} of 3,000 rows." in text


def test_no_finding_is_said_plainly(tmp_path: Path) -> None:
    facts = bare_prepare_facts(rows_in=600, train=280, validation=40, calibration=40, test=240)
    text = written(tmp_path, facts).read_text()
    assert "600 of 600 rows can be used: 280 to train on, 240 to measure with" in text
    assert "Nothing in them asks for a decision before training." in text
    assert "Look at first" not in text
    assert "Nothing was found." in text
    assert "They do not find names" in text


def test_a_row_that_was_lost_is_seen(tmp_path: Path) -> None:
    assert (
        "but 10 came in."
        in written(tmp_path, bare_prepare_facts(rows_in=10, train=5, rejected=4)).read_text()
    )


# In the browser


@BOTH
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_browser_shows_it_and_asks_for_nothing(
    browser: Browser, tmp_path: Path, make: Make, dark: bool
) -> None:
    path = make(tmp_path)
    browser.open(path, dark=dark)
    assert browser.requests == [path.resolve().as_uri()]
    assert browser.complaints == []
    assert browser.ask("document.querySelectorAll('svg.chart').length") >= (
        3 if make is of_label else 5
    )
    drawn = "[...document.querySelectorAll('svg')].filter(s => s.checkVisibility())"
    assert browser.ask(f"{drawn}.every(s => s.getBoundingClientRect().width > 100)")
    headline = {
        of_prepare: "306 of 336 rows can be used",
        of_evaluate: "answers 88.0\u00a0% of 100 held-out rows right",
        of_label: "812 of 1,000 rows accepted, at most 4.8\u00a0% wrong",
    }
    assert headline[make] in browser.ask("document.body.innerText")
    # an adapter stood there as the merged model
    assert ("Over the unquantized model" in browser.ask("document.body.innerText")) == (
        make is of_evaluate
    )
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(15, 20, 25)" if dark else "rgb(255, 255, 255)"
    )
    assert browser.ask("getComputedStyle(document.querySelector('.fill-c1')).fill") == (
        "rgb(108, 176, 255)" if dark else "rgb(11, 98, 196)"
    )


@BOTH
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_screen(
    browser: Browser, tmp_path: Path, make: Make, width: int
) -> None:
    browser.open(make(tmp_path, HOSTILE, HOSTILE[7]), width=width)
    assert browser.ask("document.documentElement.scrollWidth") == width


def test_on_a_phone_a_table_says_that_it_goes_on_and_a_chart_keeps_its_intervals(
    browser: Browser, tmp_path: Path
) -> None:
    # the table of figures was cut at its interval without a sign, and the chart lost its intervals
    signs = "[...document.querySelectorAll('.sideways')].filter(sign => sign.checkVisibility())"
    cut = (
        "[...document.querySelectorAll('.table')].filter(e => e.checkVisibility() && "
        "e.scrollWidth > e.clientWidth + 1)"
    )
    page = of_evaluate(tmp_path)
    for width in (400, 1280):
        browser.open(page, width=width)
        assert browser.ask(f"{signs}.length") == browser.ask(f"{cut}.length")
        assert (browser.ask(f"{cut}.length") > 3) == (width == 400)
        charts = "[...document.querySelectorAll(\"svg[aria-label$='less each other model']\")]"
        visible = f"{charts}.filter(svg => svg.checkVisibility())"
        assert browser.ask(f"{visible}.length") == 1
        texts = browser.ask(
            f"[...{visible}[0].querySelectorAll('text')].map(text => text.textContent)"
        )
        assert "-2.0 (-4.0 to +0.0), p=0.03: may be chance" in texts
        assert browser.ask(f"{visible}[0].getBoundingClientRect().right") <= width


@pytest.mark.parametrize(
    ("make", "title"), [(of_prepare, "Rows by label"), (of_label, "Accepted rows")]
)
def test_a_bar_is_seen_to_its_end_on_a_phone(
    browser: Browser, tmp_path: Path, make: Make, title: str
) -> None:
    # bars by label ran out of the screen, and their numbers with them
    browser.open(make(tmp_path), width=390)
    charts = f"""[...document.querySelectorAll("svg[aria-label='{title}']")].filter(svg => svg.checkVisibility())"""
    assert browser.ask(f"{charts}.length") == 1
    assert browser.ask(f"{charts}[0].getBoundingClientRect().right") <= 390


@BOTH
@pytest.mark.parametrize("text", [" ".join(HOSTILE[:3]), " ".join(HOSTILE[3:7]), *HOSTILE[7:]])
def test_text_from_data_stays_text(browser: Browser, tmp_path: Path, make: Make, text: str) -> None:
    path = make(tmp_path, HOSTILE, text)
    browser.open(path)
    assert browser.ask("document.title").startswith(("Data set", "Report", "Labels of a teacher"))
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
    path = of_prepare(tmp_path)
    broken = path.read_text().replace(
        "<main>", "<main><script>document.title = 'owned'</script><img src='x.png' onerror=''>"
    )
    path.write_text(broken)
    browser.open(path)
    assert browser.ask("document.title").startswith("Data set")
    assert any("Content Security Policy" in one for one in browser.complaints)


def test_a_head_sorts_its_table(browser: Browser, tmp_path: Path) -> None:
    browser.open(of_prepare(tmp_path))
    column = (
        "[...document.querySelectorAll('#labels ~ .blocks tbody tr')].slice(-3).map(r => "
        "r.cells[4].innerText)"
    )
    assert browser.ask(column) == ["11", "10", "9"]
    click = (
        "[...document.querySelectorAll('#labels ~ .blocks "
        "table')].at(-1).tHead.rows[0].cells[4].firstChild.click()"
    )
    browser.ask(click)
    browser.ask(click)
    assert browser.ask(column) == ["9", "10", "11"]
    assert browser.ask("document.querySelectorAll('th[aria-sort=ascending]').length") == 1


def test_the_rows_of_two_models_are_found(browser: Browser, tmp_path: Path) -> None:
    # the rows are right from the first on: Q8_0 (91) and the baseline (20) differ on 71 of them,
    # Q8_0 and Q4 (88) on 3
    browser.open(of_evaluate(tmp_path))
    shown_rows = (
        "[...document.querySelectorAll('.search tbody tr')].filter(r => !r.hidden).map(r "
        "=> r.cells[0].innerText)"
    )
    choose = """(name) => { const select = document.querySelector('.controls select');
        const option = [...select.options].find(o => o.text.startsWith(name));
        select.value = option.value; select.dispatchEvent(new Event('change')); return option.text }"""
    assert len(browser.ask(shown_rows)) == 71
    assert browser.ask(f"({choose})('Q8_0 right, Q4 tickets wrong')").endswith(": 3 rows")
    assert browser.ask(shown_rows) == ["89", "90", "91"]
    assert (
        browser.ask("document.querySelector('.controls output').innerText") == "3 of 71 rows here"
    )
    search = "const found = document.querySelector('.controls input'); found.value = 'SENSITIVE';"
    browser.ask(search + "found.dispatchEvent(new Event('input'))")
    assert browser.ask(shown_rows) == ["90"]


def test_the_print_is_light_and_shows_what_is_folded(browser: Browser, tmp_path: Path) -> None:
    facts = prepare_facts(tuple(f"label {k}" for k in range(40)))
    browser.open(written(tmp_path, facts), dark=True, media="print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (
        browser.ask("document.querySelector('details table').getBoundingClientRect().height") > 100
    )
    assert browser.pdf().startswith(b"%PDF")
    browser.open(of_evaluate(tmp_path), media="print")
    assert browser.ask("document.querySelector('.search').scrollHeight") > 1000
    assert (
        browser.ask("(e => e.scrollHeight - e.clientHeight)(document.querySelector('.search'))")
        == 0
    )


@BOTH
def test_headings_are_in_order_and_tables_have_captions(
    browser: Browser, tmp_path: Path, make: Make
) -> None:
    browser.open(make(tmp_path))
    levels = browser.ask("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert browser.ask(
        "[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent)"
    )
    assert browser.ask("[...document.querySelectorAll('th')].every(t => t.scope === 'col')")
    assert browser.ask(
        "[...document.querySelectorAll('svg.chart')].every(s => s.querySelector('title, desc'))"
    )
    assert browser.ask("document.documentElement.lang") == "en"


def test_an_image_of_its_own_has_a_dark_form(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "loss.svg"
    path.write_text(svg_chart.standalone(CHARTS["lines"]("loss")), encoding="utf-8")
    grounds = []
    for dark in (False, True):
        browser.open(path, dark=dark)
        assert browser.complaints == []
        grounds.append(browser.ask("getComputedStyle(document.querySelector('.fill-page')).fill"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(15, 20, 25)"]
