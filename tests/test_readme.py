"""The documentation says what the code says."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from slmctl import config

PAGES = (
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "RELEASE", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
)
MAX_WORDS, MAX_ROWS = 80, 6  # of a paragraph, of a table
# parts of the manual for everybody, and words of a paragraph there
EASY, EASY_WORDS = ("Start", "Decide"), 60
HARD = (
    "adapters?",
    "artifacts?",
    "baselines?",
    "bootstrap",
    "calibration",
    "digests?",
    "ECE",
    "escalat\\w+",
    "gates?",
    "held-out",
    "KL divergence",
    "LoRA",
    "nats",
    "p-values?",
    "polic(?:y|ies)",
    "quanti[sz]\\w+",
    "shots",
)
# bold beside its meaning, or a link to a heading that has it
EXPLAINED = r"\*\*.+?\*\*|\[[^\]]*\]\([^)]*#[^)]*\)"
LONG_TABLES = {"design.md": {"stages"}, "config.md": {"config"}}  # generated ones


def without_generated(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    for name in LONG_TABLES.get(page.name, ()):
        text = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", "", text, flags=re.DOTALL)
    return text


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs and items of lists; no code, tables, headings or marks of figures."""
    text = re.sub(r"^```.*?^```|<!-- \S+ > .*? -->", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        lines = [
            line for line in block.splitlines() if not line.startswith(("|", "    ", "#", "<!--"))
        ]
        yield from re.split(r"\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))


def easy_pages() -> list[Path]:
    """The pages of docs/ that docs/README.md lists in the parts EASY."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.+)\n([^#]+)", index, flags=re.MULTILINE))
    links = [
        name
        for part in EASY
        for name in re.findall(r"^- \[.+?\]\((.+?)\)", parts[part], flags=re.MULTILINE)
    ]
    return [page for name in links if (page := ROOT / "docs" / name) in PAGES]


def unexplained(text: str) -> list[str]:
    """Hard words whose first use in prose is neither bold nor a link to a heading."""
    prose = re.sub(r"`[^`]*`", "", "\n\n".join(paragraphs(text)))
    spans = [found.span() for found in re.finditer(EXPLAINED, prose, flags=re.DOTALL)]
    uses = [re.search(rf"\b(?:{word})\b", prose, flags=re.IGNORECASE) for word in HARD]
    return [
        use[0]
        for use in uses
        if use and not any(begin <= use.start() < end for begin, end in spans)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_paragraph_is_long(page: Path) -> None:
    most = EASY_WORDS if page in easy_pages() else MAX_WORDS
    long = {len(text.split()): text[:80] for text in paragraphs(without_generated(page))}
    assert {count: text for count, text in long.items() if count > most} == {}


@pytest.mark.parametrize("page", easy_pages(), ids=lambda page: page.name)
def test_a_hard_word_is_explained_where_it_is_first_used(page: Path) -> None:
    assert unexplained(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A **gate**: a condition. The gate passed.", []),
        ("The gate passed. A **gate** is a condition.", ["gate"]),
        ("A [policy](glossary.md#measuring) and `adapter`; a gateway.\n\n    shots: 3\n", []),
        ("The [adapter](finetune.md) is quantized.", ["adapter", "quantized"]),
    ],
)
def test_an_unexplained_word_is_found(text: str, words: list[str]) -> None:
    assert unexplained(text) == words


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "glossary.md"], ids=lambda page: page.name
)
def test_no_table_is_long(page: Path) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", without_generated(page) + "\n", flags=re.MULTILINE)
    assert [table.splitlines()[0] for table in tables if table.count("\n") - 2 > MAX_ROWS] == []


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda page: page.name
)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto")):
            name, _, anchor = target.partition("#")
            found = page.parent / name if name else page
            assert found.exists(), target
            heads = (
                re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
                if anchor
                else []
            )
            assert not anchor or anchor in {
                re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads
            }


def test_the_shortest_config_is_whole(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert block.count("\n") == 12  # as the page says
    (tmp_path / "slmctl.yaml").write_text(block, encoding="utf-8")
    (tmp_path / "tickets.csv").write_text("text,category\na,b\n", encoding="utf-8")
    assert config.load(tmp_path / "slmctl.yaml").gates


def test_every_page_is_once_in_the_index_which_is_the_navigation_of_the_site() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", index, flags=re.MULTILINE) == [
        "Start",
        "Decide",
        "Run",
        "Trust",
        "Reference",
    ]
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    outside = [
        f"../{name}.md"
        for name in ("CHANGELOG", "CONTRIBUTING", "RELEASE", "SECURITY", "benchmarks/README")
    ]
    pages = {
        page: title
        for title, page in re.findall(r"^- \[(.+?)\]\((.+?)\)", index, flags=re.MULTILINE)
    }
    assert sorted(pages) == sorted([*names, *outside])
    heads = {
        page: (ROOT / "docs" / page).read_text(encoding="utf-8").partition("\n")[0]
        for page in pages
    }
    assert {
        page: head for page, head in heads.items() if not head.startswith(f"# {pages[page]}")
    } == {}


@pytest.mark.parametrize("terminal", ["80", "200"])
def test_the_pages_are_what_the_code_generates(
    terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", terminal)  # the width of the reader's terminal must not matter
    spec = importlib.util.spec_from_file_location("readme", ROOT / "docs" / "readme.py")
    assert spec is not None and spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    for path in readme.FILES:
        text = path.read_text(encoding="utf-8")
        assert readme.filled(text) == text, f"{path.name}: run make readme"
