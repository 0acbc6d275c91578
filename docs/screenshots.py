"""Take the images of docs/reports.md and docs/serve.md anew: `python docs/screenshots.py PROJECT`, after `slmctl run`.

Images of what the project has not made are left as they are. Needs chromium, and ImageMagick to make them small.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the demo's question, and the browser that the tests use

from support.browser import Browser  # noqa: E402

from examples.demo import QUESTION, SLMCTL  # noqa: E402

SHOTS = (  # page below runs/, image, dark, height
    ("prepared/[!.]*/report.html", "prepare", False, 1180),
    ("report.html", "evaluate", True, 1330),
)
WIDTH, COLOURS = 1120, 64
PAGE = (900, 690)  # pixels, of the server's page


def save(name: str, image: bytes) -> None:
    path = ROOT / "docs" / f"{name}.png"
    path.write_bytes(image)
    subprocess.run(["convert", path, "+dither", "-colors", str(COLOURS), "-strip", f"png8:{path}"], check=True)


def reports(browser: Browser, project: Path) -> None:
    for place, name, dark, height in SHOTS:
        pages = list(project.glob(f"runs/{place}"))
        if pages:
            browser.open(max(pages, key=lambda path: path.stat().st_mtime), dark=dark, width=WIDTH, height=height)
            save(name, browser.image())


def served(browser: Browser, project: Path) -> None:
    """The server's page, after the demo's question; it answers from the newest GGUF file."""
    models = list(project.glob("runs/gguf/[!.]*/"))
    if not models:
        return
    newest = max(models, key=lambda path: path.stat().st_mtime)
    server = subprocess.Popen([*SLMCTL, "serve", newest, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        browser.open(server.stdout.readline().strip() + "/", width=PAGE[0], height=PAGE[1])
        browser.wait("document.activeElement.id === 'text'")
        browser.type(QUESTION)
        browser.press("Enter")
        browser.wait("document.querySelector('.facts')")
        save("serve", browser.image())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def main(project: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        reports(browser, project)
        served(browser, project)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
