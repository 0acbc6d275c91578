"""`model: auto` over CLINC150, Banking77 and SNIPS, with questions that are for none of them, beside simpler routers.

A specialist is trained for each data set, and a router on their rows and on CLINC150's out-of-scope ones. Every test
row is asked of a real server as `auto`. The peers route the same rows to the same specialists: TF-IDF with logistic
regression, and the nearest training row by the cosine of TF-IDF, each with a threshold of `slmctl calibrate` on the
router's calibration rows. An answer that is kept is right if it is that of the row's own task; one to a question that
is for no task is wrong.
"""

from __future__ import annotations

import csv
import json
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import yaml

from benchmarks import result
from slmctl.config import NO_TASK, CalibrateConfig
from slmctl.errors import GateError
from slmctl.metrics import error_threshold, linear_baseline
from slmctl.metrics.error_threshold import CalibrationRows, place_of
from slmctl.metrics.statistics import error_bound
from slmctl.task.records import SPLITS, read_records

ERRORS = (0.05, 0.1, 0.2, 0.4)  # calibrate.max_error: the first that can be shown
CONFIDENCE = 0.95
HELD = 10  # rows of a label for calibration, and half as many for validation, where a data set has no split for it
LEAST = {"train": 1, "validation": 1, "test": 1, "label": 0}  # prepare.min_rows: of a few rows some repeat others
AT_ONCE = 16
KEPT = ("confident", "no-policy")
SYSTEMS = {"clinc": "Name the intent.", "banking": "Name the intent of the bank's customer.",
           "snips": "Name what the assistant is to do."}  # fmt: skip
Rows = list[tuple[str, str]]  # text, label
Answers = dict[tuple[str, str], dict[str, Any]]  # of a model to a text


@dataclass(frozen=True)
class Asked:
    """A test row as it was answered.

    Attributes:
        task: The name of the specialist that it is for, or NO_TASK.
        named: The model that a router named for it.
        kept: Nothing was unsure.
    """

    task: str
    label: str
    named: str
    answer: str
    kept: bool
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return self.task != NO_TASK and (self.named, self.answer) == (self.task, self.label)


def measure(
    clinc: Path, banking: Path, snips: Path, base: str, *, rows: int, training: str, folder: Path, test_rows: int
) -> None:
    """Write results/fleet-auto.json."""
    data = read(clinc, banking, snips, rows)
    begun = time.monotonic()
    errors = {name: trained(folder, name, data[name], base, training) for name in SYSTEMS}
    errors["router"] = routed(folder, data[NO_TASK], training)
    trained_s = time.monotonic() - begun
    tests = [(task, text, label) for task, splits in data.items() for text, label in splits["test"][:test_rows]]
    with server(folder / "router") as url:
        answers: Answers = {}
        auto, away = through_auto(url, tests, answers)
        peers = {name: through(url, tests, router, answers) for name, router in peers_of(folder / "router").items()}
    found = {"auto": told(auto), **{name: told(asked) for name, asked in peers.items()}}
    made = [
        row
        for name in peers
        for row in (
            figure("accuracy among kept answers", "accuracy", found, name, ">= 1"),
            figure("share of in-scope questions kept", "kept", found, name, ""),
            figure("bound of the error among kept answers, and 1 %", "bound_and_one", found, name, ""),
            figure("questions for no task that are sent away", "away", found, name, ""),
        )
    ]
    command = (
        f"python -m benchmarks.fleet auto {base} --clinc CLINC --banking BANKING --snips SNIPS --rows {rows} "
        f"--training '{training}'"
    )
    path = result.write(
        "fleet-auto", command, made, ["llama-cpp-python", "scikit-learn"], routers=found, max_error=errors,
        data={task: {split: len(listed) for split, listed in splits.items()} for task, splits in data.items()},
        tested=len(tests), reasons=dict(away), training_s=round(trained_s),
        median_s=round(statistics.median(each.seconds for each in auto), 4),
    )  # fmt: skip
    sys.stdout.write(f"{path}\n{result.table('fleet-auto')}\n")


def figure(metric: str, key: str, found: Mapping[str, Mapping[str, Any]], peer: str, goal: str) -> result.Row:
    """A figure of ours beside a peer's; a share of nothing is so small that it has a ratio."""
    ours, theirs = (max(found[name][key], 1e-6) for name in ("auto", peer))
    return result.compared(metric, [ours], [theirs], peer=peer, goal=goal, digits=4)


def told(asked: Sequence[Asked]) -> dict[str, Any]:
    """The figures of a router with its specialists."""
    inside = [each for each in asked if each.task != NO_TASK]
    outside = [each for each in asked if each.task == NO_TASK]
    kept = [each for each in asked if each.kept]
    wrong = sum(not each.right for each in kept)
    bound = error_bound(wrong, max(len(kept), 1), CONFIDENCE)
    confusion = Counter((each.task, each.named) for each in asked)
    tasks = {}
    for task in sorted({each.task for each in inside}):
        own = [each for each in inside if each.task == task]
        sure = [each for each in own if each.kept]
        tasks[task] = {
            "rows": len(own), "kept": round(len(sure) / len(own), 4),
            "accuracy": round(sum(each.right for each in sure) / max(len(sure), 1), 4),
            "named_right": round(sum(each.named == task for each in own) / len(own), 4),
        }  # fmt: skip
    return {
        "rows": len(asked), "kept_rows": len(kept), "wrong": wrong,
        "accuracy": 1 - wrong / max(len(kept), 1), "error_bound": round(bound, 4), "bound_and_one": bound + 0.01,
        "kept": sum(each.kept for each in inside) / max(len(inside), 1),
        "away": sum(not each.kept for each in outside) / max(len(outside), 1),
        "accuracy_of_all": round(sum(each.right for each in inside) / max(len(inside), 1), 4),
        "tasks": tasks, "confusion": [[*pair, number] for pair, number in sorted(confusion.items())],
    }  # fmt: skip


# Data


def read(clinc: Path, banking: Path, snips: Path, count: int) -> dict[str, dict[str, Rows]]:
    """The rows of each task by split, so many of a label for training; test sets whole."""
    every = json.loads(clinc.read_text(encoding="utf-8"))
    parts = {name: [(text, label) for text, label in listed] for name, listed in every.items()}
    snip = {
        split: [
            (line["utterance"], line["intent"])
            for line in map(json.loads, (snips / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
        ]
        for split in ("train", "test")
    }
    bank = {split: csv_rows(banking / f"{split}.csv") for split in ("train", "test")}
    validation, calibration = dealt(parts["val"], HELD // 2, HELD)
    return {
        "clinc": {
            "train": dealt(parts["train"], count)[0], "validation": validation, "calibration": calibration,
            "test": parts["test"],
        },
        "banking": held_out(bank, count, HELD),
        "snips": held_out(snip, count, 10 * HELD),
        NO_TASK: {
            "train": parts["oos_train"], "validation": [], "calibration": parts["oos_val"], "test": parts["oos_test"],
        },
    }  # fmt: skip


def csv_rows(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def held_out(given: Mapping[str, Rows], count: int, held: int) -> dict[str, Rows]:
    """A data set of two splits as four."""
    train, validation, calibration = dealt(given["train"], count, max(1, held // 2), held)
    return {"train": train, "validation": validation, "calibration": calibration, "test": given["test"]}


def dealt(rows: Rows, *counts: int) -> list[Rows]:
    """Rows dealt out: of each label so many to each part, in order; what is left over goes to none."""
    parts: list[Rows] = [[] for _ in counts]
    seen: dict[str, int] = defaultdict(int)
    ends = np.cumsum(counts)
    for text, label in rows:
        place = int(np.searchsorted(ends, seen[label], side="right"))
        seen[label] += 1
        if place < len(parts):
            parts[place].append((text, label))
    return parts


# Projects


def trained(folder: Path, name: str, splits: Mapping[str, Rows], base: str, training: str) -> float:
    """Train, calibrate and publish a specialist; returns the largest error that its policy promises."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    sources = []
    for split, rows in splits.items():
        written(place / f"{split}.csv", rows)
        sources.append({"path": f"{split}.csv", "input": "text", "output": "label", "split": split})
    settings = {
        "project": name, "version": "1.0", "base": base, "pull": {"rehearse": False},
        "task": {"kind": "classify", "labels": "from-data", "system": SYSTEMS[name]},
        "prepare": {"sources": sources, "max_overlap": 1.0, "min_rows": LEAST},
        "finetune": yaml.safe_load(training), "quantize": {"types": ["Q8_0"]}, "evaluate": {"models": ["gguf"]},
        "calibrate": {"max_error": ERRORS[0]}, "publish": {"to": "dir:../registry"},
    }  # fmt: skip
    (place / "slmctl.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return ran(place, name, "1.0")


def routed(folder: Path, outside: Mapping[str, Rows], training: str) -> float:
    """Build the router's project of the registry, with rows for no task in splits of their own, and run it."""
    place, files = folder / "router", {}
    for split, rows in outside.items():
        if rows:
            files[split] = written(folder / f"none-{split}.csv", rows)
    if not (place / "slmctl.yaml").exists():
        nothing = [word for path in files.values() for word in ("--none", str(path.resolve()))]
        slmctl(folder, "init", "fleet-router", "--from", "dir:registry", "router", "--input", "text", *nothing)
    config = place / "slmctl.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    for source in settings["prepare"]["sources"]:
        if source["label"] == NO_TASK:
            source["split"] = next(split for split, path in files.items() if Path(source["path"]).name == path.name)
    settings |= {"version": "1.0", "gates": [], "finetune": yaml.safe_load(training)}
    settings["evaluate"] = {"models": ["gguf"]}
    settings["prepare"]["min_rows"] = LEAST
    settings["pull"] = {**settings.get("pull", {}), "rehearse": False}
    settings["serve"] |= {"context_length": 512, "sequences": 4, "port": 0, "max_waiting_requests": 4 * AT_ONCE}
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    error = ran(place, "router", "1.0")
    settings["serve"]["fleet"]["auto"]["policy"] = error < 1
    if error == 1:
        settings.pop("calibrate", None)
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return error


def ran(place: Path, project: str, version: str) -> float:
    """Run a project and put its release into production; returns the error that its policy promises, 1 without one."""
    for error in (*ERRORS, 1.0):
        words = ["run", f"--set=calibrate.max_error={error}"]
        if error == 1:
            settings = yaml.safe_load((place / "slmctl.yaml").read_text(encoding="utf-8"))
            settings.pop("calibrate")
            (place / "slmctl.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
            words = ["run"]
        done = subprocess.run(command(place, *words), text=True, stdout=subprocess.PIPE, check=False)
        if done.returncode == 0:
            slmctl(place, "promote", f"{project}@{version}", "--tag", "production")
            return error
        if done.returncode != GateError.code:
            break
    raise SystemExit(f"slmctl run in {place} ended with {done.returncode}")


def slmctl(folder: Path, *words: str) -> None:
    subprocess.run(command(folder, *words), check=True, stdout=subprocess.PIPE)


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "slmctl", "-C", str(folder), *words]


def written(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


# Routers


class RouterPeer(Protocol):
    """Names a model for each text, and says whether it is sure."""

    def names(self, texts: Sequence[str]) -> list[tuple[str, bool]]: ...


class Thresholded:
    """A router with scores in [0, 1], under the threshold that `slmctl calibrate` would set."""

    def __init__(self, rows: Mapping[str, Rows], ids: Sequence[str]) -> None:
        self.fit(rows["train"], rows["validation"])
        texts = [text for text, _ in rows["calibration"]]
        named, scores = self.scored(texts)
        right = np.array([name == label for name, (_, label) in zip(named, rows["calibration"], strict=True)])
        says = np.array([name == NO_TASK for name in named])
        fits = np.array([place_of(id) < error_threshold.FIT_SHARE for id in ids])
        outside = np.array([label == NO_TASK for _, label in rows["calibration"]])
        table = CalibrationRows(("odds",), log_odds(scores)[:, None], right, outside, says, fits)
        self.least = float("inf")
        for error in ERRORS:
            try:
                fitted = error_threshold.fit(table, CalibrateConfig(max_error=error))
            except GateError:
                continue
            self.weight, self.bias, self.least = fitted["weights"]["odds"], fitted["bias"], fitted["threshold"]
            break

    def names(self, texts: Sequence[str]) -> list[tuple[str, bool]]:
        named, scores = self.scored(texts)
        kept = np.isfinite(self.least) & (self.weight * log_odds(scores) + self.bias >= self.least - 1e-9)
        return [(name, bool(sure) and name != NO_TASK) for name, sure in zip(named, kept, strict=True)]

    def fit(self, train: Rows, validation: Rows) -> None:
        raise NotImplementedError

    def scored(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        raise NotImplementedError


class Linear(Thresholded):
    """TF-IDF with logistic regression: the model that every report compares with."""

    def fit(self, train: Rows, validation: Rows) -> None:
        self.model = linear_baseline.fit(
            [text for text, _ in train], [label for _, label in train],
            choosing=[text for text, _ in validation], chosen=[label for _, label in validation],
        )  # fmt: skip

    def scored(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        named, chances = self.model.answers(texts)
        return named, np.array(chances if chances is not None else [1.0] * len(texts))


class Nearest(Thresholded):
    """The task of the nearest training row, by the cosine of TF-IDF."""

    def fit(self, train: Rows, validation: Rows) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.neighbors import NearestNeighbors

        self.labels = [label for _, label in train]
        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        self.rows = NearestNeighbors(n_neighbors=1, metric="cosine")
        self.rows.fit(self.words.fit_transform([text for text, _ in train]))

    def scored(self, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        distances, places = self.rows.kneighbors(self.words.transform(texts))
        return [self.labels[k] for k in places[:, 0]], 1 - distances[:, 0]


def log_odds(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def peers_of(project: Path) -> dict[str, RouterPeer]:
    """The other routers, trained on the rows that the router's project prepared."""
    prepared = max((project / "runs" / "prepared").glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    records = {split: read_records(prepared / f"{split}.jsonl") for split in SPLITS}
    rows = {split: [(record.input, record.answer) for record in listed] for split, listed in records.items()}
    ids = [record.id for record in records["calibration"]]
    return {"TF-IDF router": Linear(rows, ids), "nearest row": Nearest(rows, ids)}


# Asking


@contextmanager
def server(project: Path) -> Iterator[str]:
    with (project / "server.log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command(project, "serve"), stdout=subprocess.PIPE, stderr=log, text=True)
        assert child.stdout is not None
        try:
            url = child.stdout.readline().strip()
            assert url, (project / "server.log").read_text(encoding="utf-8")[-2000:]
            yield url
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


def through_auto(
    url: str, tests: Sequence[tuple[str, str, str]], answers: Answers
) -> tuple[list[Asked], Counter[str]]:  # fmt: skip
    """Every test row asked as `auto`, and how often each model answered for each reason.

    Answers on which the named model's own policy decided are kept for the peers, which would get the same.
    """
    reasons: Counter[str] = Counter()

    def one(row: tuple[str, str, str]) -> Asked:
        task, text, label = row
        body, seconds = ask(http, "auto", text)
        about = body["slmctl"]
        reasons[f"{about['model']}: {about['reason']}"] += 1
        answer = body["choices"][0]["message"]["content"]
        if "p_correct" in about:
            answers[about["path"][0]["answer"], text] = body
        return Asked(task, label, about["path"][0]["answer"], answer, about["reason"] in KEPT, seconds)

    with httpx.Client(base_url=url, timeout=300) as http, ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, tests)), reasons


def through(
    url: str, tests: Sequence[tuple[str, str, str]], router: RouterPeer, answers: Answers
) -> list[Asked]:  # fmt: skip
    """Every test row asked of the specialist that another router names, once for all of them."""
    named = router.names([text for _, text, _ in tests])

    def one(pair: tuple[tuple[str, str, str], tuple[str, bool]]) -> Asked:
        (task, text, label), (name, sure) = pair
        if name == NO_TASK:
            return Asked(task, label, name, "", False)
        if (name, text) not in answers:
            answers[name, text], _ = ask(http, name, text)
        body = answers[name, text]
        confident = body["slmctl"]["reason"] in KEPT
        return Asked(task, label, name, body["choices"][0]["message"]["content"], sure and confident)

    with httpx.Client(base_url=url, timeout=300) as http, ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, zip(tests, named, strict=True)))


def ask(http: httpx.Client, model: str, text: str) -> tuple[dict[str, Any], float]:
    begun = time.monotonic()
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    answer = http.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found, time.monotonic() - begun
