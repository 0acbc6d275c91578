"""Make the pictures of these pages anew: `python docs/pictures.py PROJECT [SCREEN]`, after `slmctl
run`.

Each is made twice, `docs/pictures/NAME-light.png` and `NAME-dark.png`. SCREEN is a file with what
`make demo` printed (`make demo 2>&1 | tee SCREEN`). Pictures of what the project has not made are
left as they are. Needs chromium.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
# the demo's question, and the browser that the tests use
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.browser import Browser  # noqa: E402

from examples.demo import QUESTION, SLMCTL  # noqa: E402
from slmctl.artifacts.json_lines import JsonLines  # noqa: E402
from slmctl.production.records import CollectedRow  # noqa: E402
from slmctl.reports.svg_chart import DARK, LIGHT  # noqa: E402
from slmctl.task.records import read_records  # noqa: E402

REPORTS = (  # page below runs/, picture, its width in CSS pixels, and the part that it ends with
    ("prepared/[!.]*/report.html", "data", 900, "[aria-labelledby=kept-and-rejected-rows]"),
    ("report.html", "report", 940, "[aria-labelledby=at-a-glance]"),
)
# CSS pixels of a served page, device pixels of each, and colours
WIDTH, SCALE, COLOURS = 720, 1.25, 48
NEAR = 120  # squared distance of two colours that one stands for
AIR = 20  # CSS pixels below what a picture ends with
COLUMNS = 110  # characters of a terminal's line
SHEET = "{stylesheet} body {{ background: {background}; color: {foreground} }}"
TERMINAL = """<!doctype html><meta charset=utf-8><title>terminal</title><style>
{} @media (prefers-color-scheme: dark) {{ {} }}
body {{ margin: 0 }}
pre {{ margin: 18px 22px; width: {}ch; font: 14px/1.5 "DejaVu Sans Mono", monospace }}
</style><pre>{}</pre>"""
# An image as a palette of its commonest colours and an index a pixel: colours that agree in 5 bits
# a channel count as one, and stand as the first of them; each other pixel takes the colour that is
# nearest.
REDUCE = """async (source, most, near) => {
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
  const far = (a, b) => a.reduce((sum, value, k) => sum + (value - b[k]) ** 2, 0), palette = [];
  for (const {colour} of [...seen.values()].sort((a, b) => b.count - a.count))
    const isNew = palette.every(other => far(other, colour) > near);
    if (palette.length < most && isNew) palette.push(colour);
  for (const entry of seen.values())
    entry.place = palette.reduce((best, colour, k) =>
      far(colour, entry.colour) < far(palette[best], entry.colour) ? k : best, 0);
  let text = '';
  for (let at = 0; at < data.length; at += 4)
    text += String.fromCharCode(seen.get(keyOf(at)).place);
  return [image.width, image.height, palette.flat(), btoa(text)];
}"""


def save(browser: Browser, name: str, last: str, *, width: int = WIDTH) -> None:
    """Write what is seen of a page down to an element, light and dark, as images of few colours: a
    quarter of chromium's own.
    """
    bottom = browser.ask(
        f"document.querySelector('{last}').getBoundingClientRect().bottom + scrollY"
    )
    size = {
        "width": width,
        "height": round(bottom) + AIR,
        "deviceScaleFactor": SCALE,
        "mobile": False,
    }
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    images = {}
    for scheme in ("light", "dark"):
        browser.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        images[scheme] = base64.b64encode(browser.image()).decode()
    browser.open("about:blank")
    for scheme, image in images.items():
        script = f"({REDUCE})('data:image/png;base64,{image}', {COLOURS}, {NEAR})"
        answer = browser.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )["result"]
        (ROOT / "docs" / "pictures" / f"{name}-{scheme}.png").write_bytes(_png(*answer["value"]))


def _png(width: int, height: int, palette: list[int], pixels: str) -> bytes:
    rows = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width)
    lines = np.pad(rows, ((0, 0), (1, 0)))  # each begins with its filter, which is none
    header = struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", bytes(palette)),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def reports(browser: Browser, project: Path) -> None:
    for place, name, width, last in REPORTS:
        if pages := list(project.glob(f"runs/{place}")):
            browser.open(newest(pages), width=width)
            save(browser, name, last, width=width)


def served(browser: Browser, project: Path) -> None:
    """The server's page, after the demo's question; it answers from the newest GGUF file."""
    if not (models := list(project.glob("runs/gguf/[!.]*/"))):
        return
    with started("-C", project, "serve", newest(models), "--port", "0") as address:
        for _ in range(2):  # the first answer of a server takes longer
            browser.open(address + "/", width=WIDTH)
            browser.wait("document.activeElement.id === 'text'")
            browser.type(QUESTION)
            browser.press("Enter")
            browser.wait("document.querySelector('.facts')")
        save(browser, "served", "footer")


def reviewed(browser: Browser, project: Path) -> None:
    """The page of `slmctl review` over a few of the project's own held-out
    questions, as if a server had answered.
    """
    if not (sets := list(project.glob("runs/prepared/[!.]*/"))):
        return
    records = [row for row in read_records(newest(sets) / "test.jsonl") if row.input.isascii()][:40]
    labels = sorted({record.answer for record in records})
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "collected.jsonl"
        with JsonLines(lines) as file:
            for k, record in enumerate(records):
                other = labels[(labels.index(record.answer) + 1) % len(labels)]
                # not the row itself: one that is held out is not picked
                text = f"Hello! {record.input}"
                row = CollectedRow(
                    f"request-{k}",
                    "2026-11-25T09:30:00Z",
                    [{"role": "user", "content": text}],
                    other,
                    general_answer=record.answer,
                    p_correct=0.41,
                    confidence=0.52,
                    route="general",
                    labels={other: 0.52, record.answer: 0.39},
                    chosen="escalated",
                )
                file.append(row.to_json())
        with started(
            "-C", project, "review", lines, "--output", Path(folder) / "reviewed.jsonl"
        ) as address:
            browser.open(address, width=WIDTH)
            browser.wait("document.querySelector('.options')")
            save(browser, "review", "footer")


def newest(paths: list[Path]) -> Path:
    return max(paths, key=lambda path: path.stat().st_mtime)


@contextlib.contextmanager
def started(*args: str | Path) -> Iterator[str]:
    """The address that a command serves its page at."""
    child = subprocess.Popen([*SLMCTL, *args], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield child.stdout.readline().strip()
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=60)


def terminals(browser: Browser, said: Path | None) -> None:
    """What `init` and `run --plan` print of the example tickets,
    and what `make demo` ended with.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(
            ROOT / "examples" / "data" / "support_tickets.csv", Path(folder) / "tickets.csv"
        )
        screen(browser, "init", "slmctl init tickets.csv", typed(folder, "init", "tickets.csv"))
        typed(folder, "run", "--plan")  # the first on a machine measures its speed
        screen(browser, "plan", "slmctl run --plan", typed(folder, "run", "--plan"))
    if said is not None:
        _, heading, rest = said.read_text(encoding="utf-8").rpartition("What this showed")
        screen(
            browser, "demo", "make demo", f"…\n{heading}{rest.partition('Try next')[0].rstrip()}"
        )


def typed(folder: str, *args: str) -> str:
    """What a command prints on a terminal, whose user takes all that it proposes."""
    user, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 50, COLUMNS, 0, 0))
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")
    }
    child = subprocess.Popen(
        [*SLMCTL, *args],
        cwd=folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=kept | {"TERM": "xterm-256color"},
    )
    os.close(terminal)
    printed = b""
    with contextlib.suppress(OSError):  # how Linux ends the terminal of a program that has ended
        while part := os.read(user, 1 << 16):
            printed += part
            if printed.endswith(b"]: "):
                os.write(user, b"\n")
    os.close(user)
    assert child.wait() == 0, printed
    return printed.decode().replace("\r\n", "\n").replace(str(ROOT), "~/slmctl")


def screen(browser: Browser, name: str, command: str, printed: str) -> None:
    """Lines of a terminal as they are seen there."""
    console = Console(
        record=True,
        file=io.StringIO(),
        width=COLUMNS,
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(Text("$ ", "blue"), Text(command, "bold"), sep="")
    console.print(Text.from_ansi(printed.rstrip()))
    code, light, dark = (
        console.export_html(theme=theme, code_format=form, clear=False)
        for form, theme in (("{code}", None), (SHEET, _theme(LIGHT)), (SHEET, _theme(DARK)))
    )
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "screen.html"
        page.write_text(TERMINAL.format(light, dark, COLUMNS, code), encoding="utf-8")
        browser.open(page, width=WIDTH)
        save(
            browser,
            name,
            "pre",
            width=browser.ask("document.querySelector('pre').offsetWidth + 44"),
        )


def _theme(colours: dict[str, str]) -> TerminalTheme:
    # black, red, green, yellow, blue, ...
    names = ("ink", "bad", "good", "warn", "c1", "c4", "c3", "muted")
    ansi = [tuple(bytes.fromhex(colours[name][1:])) for name in ("panel", "ink", *names)]
    return TerminalTheme(ansi[0], ansi[1], ansi[2:])  # type: ignore[arg-type]


def main(project: Path, said: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder)) as browser:
        for make in (reports, served, reviewed):
            make(browser, project)
        terminals(browser, said)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
