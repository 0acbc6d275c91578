"""Take the images of docs/reports.md anew: `python docs/screenshots.py PROJECT`, after `slmctl run` there.

Needs chromium, and ImageMagick to make the images small.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the browser that the tests use

from browser import Browser  # noqa: E402

SHOTS = (("prepared", "prepare", False, 1180), ("report", "evaluate", True, 1330))  # folder, image, dark, height
WIDTH, COLOURS = 1120, 64


def main(project: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        for noun, name, dark, height in SHOTS:
            pages = project.glob(f"runs/{noun}/[!.]*/report.html")
            browser.open(max(pages, key=lambda path: path.stat().st_mtime), dark=dark, width=WIDTH, height=height)
            image = ROOT / "docs" / f"{name}.png"
            image.write_bytes(browser.image())
            subprocess.run(["convert", image, "-colors", str(COLOURS), "-strip", f"png8:{image}"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
