"""The documentation as a site: strict on links, and without a request to another host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.browser import Browser

pytest.importorskip("furo", reason="furo comes with the extra dev")


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of `make docs` with another source and target."""
    (options,) = re.findall(
        r"-m sphinx (.*) --doctree-dir", (ROOT / "Makefile").read_text(encoding="utf-8")
    )
    command = [
        sys.executable,
        "-m",
        "sphinx",
        *options.split(),
        "--conf-dir",
        ROOT / "docs",
        source,
        out,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_no_page_loads_from_another_host_or_shows_a_mark(site: Path) -> None:
    pages = {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8")
        for path in site.rglob("*.html")
    }
    assert {
        "README.html",
        "docs/tutorial.html",
        "benchmarks/README.html",
        "CHANGELOG.html",
    } <= pages.keys()
    tags = " ".join(tag for text in pages.values() for tag in re.findall(r"<(?!a\b)\w[^>]*>", text))
    loaded = re.findall(r'\b(?:src|srcset|href|data|poster|action)="([^"]*)"', tags)
    assert {"_static/styles/furo.css", "_images/report-light.png", "_images/report-dark.png"} <= {
        address.partition("?")[0] for address in loaded
    }
    assert not [address for address in loaded if re.match(r"\w+:|//", address)]
    for text in [
        *pages.values(),
        *(path.read_text(encoding="utf-8") for path in site.rglob("*.css")),
    ]:
        assert not re.search(r"""(?:url\(|@import)\s*['"]?(?:https?:|//)""", text)
        # conf.py has read each picture, so it is there
        assert not re.search(r"<!-- [\w-]+ > |&lt;!--|<picture", text)


def test_a_browser_searches_the_site_and_asks_no_other_host(site: Path, browser: Browser) -> None:
    found = {
        "gate": "metrics",
        "PDF": "compare",
        "telemetry": "README",
        "rollback": "publish",
        "GDPR": "privacy",
    }
    searches = {
        f"search.html?q={word}": f"#search-results a[href*='{page}.html']"
        for word, page in found.items()
    }
    for page, shown in {"README.html": "h1", **searches}.items():
        browser.open(f"{site.as_uri()}/{page}", dark=True)
        browser.wait(f'document.querySelector("{shown}")')
        assert not [
            url for url in browser.requests if not url.startswith((f"{site.as_uri()}/", "data:"))
        ]
        assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(15, 20, 25)"


def test_links_that_lead_nowhere_and_pages_outside_the_navigation_are_faults(
    tmp_path: Path,
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "# A\n\n[a](#no) [b](docs/b.md#none) [c](no.md) [d](no.py) ![e](no.png)\n"
    )
    (tmp_path / "docs" / "README.md").write_text("# Index\n\n## Start\n\n- [B](b.md): a page.\n")
    for name in "bc":
        (tmp_path / "docs" / f"{name}.md").write_text(f"# {name}\n")
    done = build(tmp_path, tmp_path / "out")
    assert (done.returncode, done.stderr.count("WARNING")) == (1, 6)
    for fault in ("'no'", "'docs/b': 'none'", "'no.md'", "'no.py'", "no.png", "docs/c.md.*toctree"):
        assert re.search(fault, done.stderr), fault
