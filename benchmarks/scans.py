"""Pages of paper as scanners, telephones and faxes leave them, read by slmctl and by tesseract.

    python -m benchmarks.scans

The pages are two texts of `examples/data/contracts_other_words`, set by fpdf2 in DejaVu Serif, made
to pictures and worn as each condition says. Each stands in a PDF of its own, which the child of
slmctl reads as it reads a folder; a page that it refuses counts as no word. Tesseract 5, of
Debian's packages `tesseract-ocr` and `tesseract-ocr-deu`, gets the same pictures with both
languages. A word is right if it is read letter by letter, with its punctuation. Seconds are those
of a page, so no other work may run meanwhile; the first page also carries the start of the child,
and tesseract starts for each. What was read is kept beside the results (`scans.jsonl`).
"""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fpdf
import pypdfium2

from benchmarks import result
from slmctl.sources.documents import folder
from tests.support import scans

TEXTS = Path("examples/data/contracts_other_words/contracts")
GERMAN, ENGLISH = "19-betriebsarzt.txt", "26-guarding-letter.txt"
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSerif.ttf"
STRAIGHT = scans.turned(0)
PAGES = {
    "German, 300 dpi": (GERMAN, 300, STRAIGHT),
    "English, 300 dpi": (ENGLISH, 300, STRAIGHT),
    "German, 150 dpi": (GERMAN, 150, STRAIGHT),
    "English, 150 dpi": (ENGLISH, 150, STRAIGHT),
    "German, tilted by 3 degrees, 200 dpi": (GERMAN, 200, scans.turned(3)),
    "English, upside down, 200 dpi": (ENGLISH, 200, scans.turned(180)),
    "German, photographed from one side, 200 dpi": (GERMAN, 200, scans.photographed),
    "English, photographed from one side, 200 dpi": (ENGLISH, 200, scans.photographed),
    "German, faxed, 200 dpi": (GERMAN, 200, scans.faxed),
    "blank, 200 dpi": ("", 200, STRAIGHT),
}
PEER = "tesseract 5"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        paths = {name: _written(Path(place), *page) for name, page in PAGES.items()}
        ours = _by_slmctl(paths)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # kB
        theirs = {name: _by_tesseract(path) for name, path in paths.items()}
    kept = [
        {"page": name, "text": _text(PAGES[name][0]), "slmctl": ours[name], PEER: theirs[name]}
        for name in PAGES
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (result.FOLDER / "scans.jsonl").write_text(lines, encoding="utf-8")
    written = [row for row in kept if row["text"]]
    rows = [
        result.single(f"{row['page']}: words right", _right(row, "slmctl"), PEER, _right(row, PEER))
        for row in written
    ]
    means = [_mean([_right(row, who) for row in written]) for who in ("slmctl", PEER)]
    rows.append(result.single("mean of the nine: words right", means[0], PEER, means[1]))
    after = [row for row in kept[1:] if row["text"]]
    seconds = [_mean([row[who]["seconds"] for row in after]) for who in ("slmctl", PEER)]
    rows.append(result.single("seconds a page", seconds[0], PEER, seconds[1]))
    blank = kept[-1]
    more: dict[str, Any] = {
        "peak_memory_gb": round(peak / 1e6, 2),
        "seconds_with_start": ours["German, 300 dpi"]["seconds"],
        "refused": {name: each["fault"] for name, each in ours.items() if each["fault"]},
        "certainty": {name: each["certainty"] for name, each in ours.items()},
        "blank_page_read_as": [blank["slmctl"]["text"], blank[PEER]["text"]],
    }
    packages = ("slmctl", "rapidocr", "onnxruntime", "pypdfium2")
    result.write("scans", "python -m benchmarks.scans", rows, packages, **more)


def _text(name: str) -> str:
    """What a page holds: as many words of a text as a page carries."""
    if not name:
        return ""
    return " ".join((TEXTS / name).read_text(encoding="utf-8").replace("–", "-").split()[:300])


def _written(place: Path, name: str, dpi: int, change: scans.Change) -> Path:
    paper = fpdf.FPDF()
    paper.add_font("serif", fname=FONT)
    paper.set_font("serif", size=10.5)
    paper.set_auto_page_break(False)
    paper.add_page()
    paper.multi_cell(0, 6, _text(name))
    path = place / f"{len(list(place.iterdir()))}-{dpi}.pdf"
    path.write_bytes(scans.scan(bytes(paper.output()), dpi=dpi, change=change))
    return path


def _by_slmctl(paths: dict[str, Path]) -> dict[str, dict[str, Any]]:
    named = [(str(path), f"{name}.pdf") for name, path in paths.items()]
    replies = {}
    began = time.perf_counter()
    for reply in folder.read(named, recognise="all"):
        ended = time.perf_counter()
        replies[reply["file"].removesuffix(".pdf")] = {
            "text": reply.get("text", ""),
            "fault": reply.get("fault", ""),
            "certainty": round(reply.get("certainty", 0.0), 3),
            "seconds": round(ended - began, 2),
        }
        began = ended
    return replies


def _by_tesseract(path: Path) -> dict[str, Any]:
    dpi = int(path.stem.partition("-")[2])
    picture = path.with_suffix(".png")
    with pypdfium2.PdfDocument(path) as pdf:
        pdf[0].render(scale=dpi / scans.POINTS).to_pil().save(picture)
    command = ["tesseract", str(picture), "-", "-l", "deu+eng", "--psm", "1", "--dpi", str(dpi)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return {"text": done.stdout, "seconds": round(time.perf_counter() - began, 2)}


def _right(row: dict[str, Any], who: str) -> float:
    """The share of the words of a page that were read."""
    words = row["text"].split()
    return (Counter(words) & Counter(row[who]["text"].split())).total() / len(words)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
