"""Figures of README and docs: each that was measured stands in a results file of `benchmarks/`, and
equals it there.

A figure is followed by a mark, which no reader sees: `3.3 times<!-- finetune > SmolLM2-135M:
tokens/s > ratio -->`. It names the file below `benchmarks/results/`, the `metric` of a row, with `
@ ` and its peer where several rows have the metric, and the row's field; or a name among the file's
`intervals`, and `low` or `high`. A share is written in %, with any number of decimals.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NUMBER = r"\d[\d,]*(?:\.\d+)?"
MARK = r"<!-- (?P<file>[\w.-]+) > (?P<metric>[^\n>]+?) > (?P<field>ours|theirs|ratio|low|high) -->"
MARKED = re.compile(rf"(?P<number>{NUMBER})(?P<unit>[^\d\n<]{{0,40}}){MARK}")
# What a benchmark measures, in a paragraph that refers to the benchmarks.
MEASURED = re.compile(
    rf"({NUMBER}) ?(%|times|points|GB|ms|s\b|(?:rows|tokens|requests|questions|classifications) a "
    r"second)"
)


def value_of(file: str, metric: str, field: str) -> float:
    """The value that a mark names."""
    results = json.loads(
        (ROOT / "benchmarks" / "results" / f"{file}.json").read_text(encoding="utf-8")
    )
    if field in ("low", "high"):
        return float(results["intervals"][metric][field == "high"])
    rows = results["rows"]
    name, _, peer = metric.partition(" @ ")
    (value,) = {row[field] for row in rows if row["metric"] == name and peer in ("", row["peer"])}
    return float(value)


def shown(value: float, number: str, unit: str) -> str:
    """A value with as many decimals as a page shows of it."""
    decimals = len(number.partition(".")[2])
    return f"{value * 100 if unit.lstrip().startswith('%') else value:,.{decimals}f}"


def faults_of(page: str) -> list[str]:
    """Figures that are not what their results file says, and those without a
    mark beside a reference to benchmarks.
    """
    faults = []
    for paragraph in re.sub(r"```.*?```", "", page, flags=re.DOTALL).split("\n"):
        for found in MARKED.finditer(paragraph):
            value = value_of(found["file"], found["metric"], found["field"])
            if (said := shown(value, found["number"], found["unit"])) != found["number"]:
                faults.append(
                    f"{found['number']}{found['unit']}: {found['file']} says {said} "
                    f"({found['metric']})"
                )
        # tables without marks are made from results; blocks show what a command prints
        if "benchmarks/" in paragraph and not paragraph.startswith(("|", "    ", "#")):
            bare = re.sub(rf"{NUMBER}[^\d\n<]{{0,40}}{MARK}", "", paragraph)
            faults += [f"no mark: {' '.join(found.groups())}" for found in MEASURED.finditer(bare)]
    return faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_are_those_of_the_results(page: Path) -> None:
    assert faults_of(page.read_text(encoding="utf-8")) == []


def test_the_findings_are_those_of_the_results() -> None:
    findings = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert findings.count("<!-- ") >= 11 and faults_of(findings) == []


@pytest.mark.parametrize(
    ("paragraph", "fault"),
    [
        ("3.4 times<!-- finetune > SmolLM2-135M: tokens/s @ trl > ratio -->", "says 3.3"),
        (
            "| labels | **3.4**<!-- finetune > SmolLM2-135M: tokens/s @ trl > ratio --> |",
            "says 3.3",
        ),
        ("It took 4.5 times as long ([figures](benchmarks/README.md)).", "no mark: 4.5 times"),
        ("66.7 %<!-- documents > Q8_0 > low -->", "says 66.8"),
        ("12.3 %<!-- routing > in-scope questions kept > ours -->", "says 88.6"),
    ],
)
def test_a_wrong_or_bare_figure_is_found(paragraph: str, fault: str) -> None:
    assert [fault in found for found in faults_of(paragraph)] == [True]
