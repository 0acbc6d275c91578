"""Take the images of these pages anew: `python docs/screenshots.py PROJECT [SCREEN]`, after `slmctl run`.

SCREEN is a file with what `make demo` printed (`make demo 2>&1 | tee SCREEN`). Images of what the project has not made
are left as they are. Needs chromium.
"""

from __future__ import annotations

import base64
import html
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the demo's question, and the browser that the tests use

from support.browser import Browser  # noqa: E402

from examples.demo import QUESTION, SLMCTL  # noqa: E402
from slmctl.artifacts.json_lines import JsonLines  # noqa: E402
from slmctl.production.records import CollectedRow  # noqa: E402
from slmctl.task.contract import Task  # noqa: E402
from slmctl.task.records import read_records  # noqa: E402

SHOTS = (  # page below runs/, image, dark, height
    ("prepared/[!.]*/report.html", "prepare", False, 1180),
    ("report.html", "evaluate", True, 1330),
)
WIDTH, COLOURS = 1120, 128
SCREEN = (980, 400)  # of the demo's last screen
TERMINAL = """<!doctype html><meta charset=utf-8><title>terminal</title><style>
body { margin: 0; background: #14181f; color: #d7dde8 }
pre { margin: 22px 26px; font: 14px/1.5 "DejaVu Sans Mono", monospace; white-space: pre-wrap }
</style><pre>"""
PAGE = (900, 690)  # pixels, of the server's page
REVIEW = (900, 860)  # of the page of review
# An image as a palette of its commonest colours and an index a pixel: colours that agree in 5 bits a channel count as
# one, and stand as the first of them; each other pixel takes the colour that is nearest.
REDUCE = """async (source, most) => {
  const image = new Image(); image.src = source; await image.decode();
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height).data;
  const keyOf = at => (data[at] >> 3) << 10 | (data[at + 1] >> 3) << 5 | data[at + 2] >> 3;
  const seen = new Map();
  for (let at = 0; at < data.length; at += 4) {
    const entry = seen.get(keyOf(at)) || {colour: [...data.slice(at, at + 3)], count: 0};
    entry.count++; seen.set(keyOf(at), entry);
  }
  const palette = [...seen.values()].sort((a, b) => b.count - a.count).slice(0, most).map(entry => entry.colour);
  const far = (a, b) => a.reduce((sum, value, k) => sum + (value - b[k]) ** 2, 0);
  for (const entry of seen.values())
    entry.place = palette.reduce((best, colour, k) =>
      far(colour, entry.colour) < far(palette[best], entry.colour) ? k : best, 0);
  let text = '';
  for (let at = 0; at < data.length; at += 4) text += String.fromCharCode(seen.get(keyOf(at)).place);
  return [image.width, image.height, palette.flat(), btoa(text)];
}"""


def save(browser: Browser, name: str) -> None:
    """Write what is seen as an image of few colours, which is a quarter of chromium's own."""
    image = base64.b64encode(browser.image()).decode()
    browser.open("about:blank")
    script = f"({REDUCE})('data:image/png;base64,{image}', {COLOURS})"
    answer = browser.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"]
    width, height, palette, pixels = answer["value"]
    rows = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width)
    lines = np.pad(rows, ((0, 0), (1, 0)))  # each begins with its filter, which is none
    header = struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", bytes(palette)), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    (ROOT / "docs" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def reports(browser: Browser, project: Path) -> None:
    for place, name, dark, height in SHOTS:
        pages = list(project.glob(f"runs/{place}"))
        if pages:
            browser.open(max(pages, key=lambda path: path.stat().st_mtime), dark=dark, width=WIDTH, height=height)
            save(browser, name)


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
        save(browser, "serve")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def reviewed(browser: Browser, project: Path) -> None:
    """The page of `slmctl review` over a few of the project's own held-out questions, as if a server had answered."""
    sets = list(project.glob("runs/prepared/[!.]*/"))
    if not sets:
        return
    newest = max(sets, key=lambda path: path.stat().st_mtime)
    task = Task.read(newest)
    records = read_records(newest / "test.jsonl")[:40]
    labels = list(task.labels)
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "collected.jsonl"
        with JsonLines(lines) as file:
            for k, record in enumerate(records):
                other = labels[(labels.index(record.answer) + 1) % len(labels)]
                text = record.input.rpartition(" ")[0]  # not the row itself: one that is held out is not picked
                row = CollectedRow(
                    f"request-{k}", "2026-11-25T09:30:00Z", [{"role": "user", "content": text}], other,
                    general_answer=record.answer, p_correct=0.41, confidence=0.52, route="general",
                    labels={other: 0.52, record.answer: 0.39}, chosen="escalated",
                )  # fmt: skip
                file.append(row.to_json())
        command = [*SLMCTL, "-C", project, "review", lines, "--output", Path(folder) / "reviewed.jsonl"]
        page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert page.stdout is not None
            browser.open(page.stdout.readline().strip(), width=REVIEW[0], height=REVIEW[1])
            browser.wait("document.querySelector('.options')")
            save(browser, "review")
        finally:
            page.send_signal(signal.SIGTERM)
            page.wait(timeout=60)


def last_screen(browser: Browser, said: Path) -> None:
    """What `make demo` ends with, as a terminal of 110 columns shows it."""
    _, heading, rest = said.read_text(encoding="utf-8").rpartition("What this showed")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "screen.html"
        text = f"$ make demo\n…\n{heading}{rest.partition('Try next')[0]}"
        page.write_text(TERMINAL + html.escape(text), encoding="utf-8")
        browser.open(page, width=SCREEN[0], height=SCREEN[1])
        save(browser, "demo")


def main(project: Path, said: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        if said is not None:
            last_screen(browser, said)
        reports(browser, project)
        served(browser, project)
        reviewed(browser, project)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
