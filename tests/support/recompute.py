"""Recompute every figure of a report from the predictions and the prepared data, without slmctl's
code.

    python tests/support/recompute.py PROJECT/runs/report/RECIPE

Written from the definitions in docs/statistics.md and the papers named there, with scikit-learn,
scipy, sacrebleu and rouge-score where they define the same, so that a mistake in slmctl's
arithmetic and one in its tests cannot agree. Figures that follow from the rows must agree to the
last digit that is written; those of a bootstrap, whose resamples are drawn anew here, within what
resampling leaves open. What the linear baseline answered is taken from the report's own rows. Exits
with 1 and a line for every figure that differs.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import re
import statistics
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF
from scipy.optimize import brentq
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import (
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
)
from sklearn.preprocessing import MultiLabelBinarizer

RESAMPLES = 400
EXACT = 2e-6  # six digits are written
NO_JSON = ("no JSON",)
LOWER = ["ece", "brier"]
WORDS_ONLY = ("remarks",)  # sentences made of the figures
CHECKS = [
    "ungrounded",
    "other_language",
    "missing_pattern",
    "forbidden_pattern",
    "repetition",
    "unfinished",
]
SHARES = {
    "accuracy",
    "exact_match",
    "valid_json",
    "valid_schema",
    "tool_accuracy",
    "valid_call",
    *CHECKS,
}
PRIMARY = {"classify": "accuracy", "generate": "token_f1"} | dict.fromkeys(
    ("tag", "extract", "call"), "exact_match"
)
ORDER = ["encoder", "base", "adapter", "merged", "gguf", "lora", "published", "release", "endpoint"]
QUANTILES = [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995]
NORMAL = statistics.NormalDist()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def asked_and_wanted(record: dict[str, Any]) -> tuple[str, str]:
    return record["messages"][-2]["content"], record["messages"][-1]["content"]


def strict_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError
        return dict(pairs)

    def no(name: str) -> None:
        raise ValueError(name)

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no)
    except ValueError:
        return NO_JSON


# One row


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return set(a) == set(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


def leaf_paths(value: Any, path: str = "") -> list[str]:
    if value is NO_JSON:
        return []
    if value not in ({}, []) and isinstance(value, dict):
        return [
            leaf for key in value for leaf in leaf_paths(value[key], f"{path}.{key}".lstrip("."))
        ]
    if value not in ({}, []) and isinstance(value, list):
        return [leaf for item in value for leaf in leaf_paths(item, path + "[]")]
    return [path or "$"]


def shared_paths(wanted: Any, given: Any, path: str = "") -> list[str]:
    if NO_JSON in (wanted, given):
        return []
    if isinstance(wanted, dict) and isinstance(given, dict) and (wanted or given):
        return [
            leaf
            for k in wanted
            if k in given
            for leaf in shared_paths(wanted[k], given[k], f"{path}.{k}".lstrip("."))
        ]
    if isinstance(wanted, list) and isinstance(given, list) and (wanted or given):
        table = {
            (i, j): shared_paths(a, b, path + "[]")
            for i, a in enumerate(wanted)
            for j, b in enumerate(given)
        }
        result: list[str] = []
        while table:
            best = max(len(leaves) for leaves in table.values())
            i, j = min(place for place, leaves in table.items() if len(leaves) == best)
            result += table[i, j]
            table = {
                place: leaves for place, leaves in table.items() if place[0] != i and place[1] != j
            }
        return result
    return [path or "$"] if alike(wanted, given) else []


class Words:
    """The tokenizer of ROUGE: words of letters and digits, whatever their case and width."""

    def tokenize(self, text: str) -> list[str]:
        whole = unicodedata.normalize("NFKC", text).casefold()
        return re.sub(
            r"_|\W", lambda sign: sign[0] if unicodedata.category(sign[0])[0] == "M" else " ", whole
        ).split()


WORDS, CHRF_2 = Words(), CHRF(char_order=6, word_order=0, beta=2)
ROUGE = RougeScorer(["rougeL"], tokenizer=WORDS)


def over(part: Any, whole: Any) -> Any:
    """A share, 0 where nothing was counted."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)


def prf(
    wants: Counter[str], gives: Counter[str], hits: Counter[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of every path."""
    return {
        path: {
            "precision": hits[path] / gives[path] if gives[path] else 0.0,
            "recall": hits[path] / wants[path] if wants[path] else 0.0,
            "f1": 2 * hits[path] / (gives[path] + wants[path]),
            "support": wants[path],
        }
        for path in {*wants, *gives}
    }


# One participant: rows -> figures, for any weights


class Participant:
    """What one model answered: by row right, score, and what its metrics are made of."""

    def __init__(
        self,
        task: dict[str, Any],
        records: list[dict[str, Any]],
        said: list[Any],
        sure: list[Any],
        asked: list[bool],
        confidence: float = 0.95,
        finish: Any = (),
        reported: Any = (),
    ) -> None:
        self.confidence, self.finish, self.reported = confidence, finish, reported
        self.kind, self.labels, self.asked = task["kind"], list(task["labels"]), asked
        self.ordered = task.get("ordered", False)
        self.wanted = [asked_and_wanted(record)[1] for record in records]
        self.said = [text if text is not None else "" for text in said]
        self.rows = [k for k, one in enumerate(asked) if one]
        self.offered = [record.get("tools") or task.get("tools") for record in records]
        self.calibrated = (
            self.kind in ("classify", "tag")
            and bool(self.rows)
            and all(sure[k] is not None for k in self.rows)
        )
        self.sure = np.array([s or 0.0 for s in sure])
        self.means: dict[str, Any] = {}  # metrics that are means over rows, by row
        getattr(self, self.kind)(task)
        self.right = self.means["accuracy" if self.kind == "classify" else "exact_match"]

    def classify(self, task: dict[str, Any]) -> None:
        self.given = [text.strip() for text in self.said]
        self.means["accuracy"] = self.score = np.array(
            [a == b for a, b in zip(self.wanted, self.given, strict=True)]
        )
        if self.calibrated:
            self.means["brier"] = (self.sure - self.score) ** 2
        self.names = ["accuracy", "macro_f1", *(["ece", "brier"] if self.calibrated else [])]
        if self.ordered:
            self.names[2:2] = ["mean_absolute_error", "quadratic_kappa"]
            levels = {label: level for level, label in enumerate(self.labels)}
            wanted = [levels[label] for label in self.wanted]
            given = [
                levels.get(b, max(levels.values(), key=lambda c: abs(c - a)))
                for a, b in zip(wanted, self.given, strict=True)
            ]
            self.levels = np.array(wanted), np.array(given)
            self.means["mean_absolute_error"] = abs(self.levels[0] - self.levels[1])
        self.invalid = sum(self.given[k] not in self.labels for k in self.rows)

    def tag(self, task: dict[str, Any]) -> None:
        self.labels = task["schema"]["items"]["enum"]

        def labels(text: str) -> list[str] | None:
            value = strict_json(text.strip())
            fits = isinstance(value, list) and all(label in self.labels for label in value)
            return value if fits and len(set(value)) == len(value) else None

        sides = [[labels(text) for text in side] for side in (self.wanted, self.said)]
        binary = MultiLabelBinarizer(classes=self.labels)
        self.sets = [
            binary.fit_transform([names or [] for names in side]).astype(bool) for side in sides
        ]
        valid = np.array([names is not None for names in sides[1]])
        right = valid & np.array(
            [
                a is not None and b is not None and set(a) == set(b)
                for a, b in zip(*sides, strict=True)
            ]
        )
        self.means["exact_match"] = right
        shared, given, wanted = self.label_counts(np.eye(len(right)), axis=2)
        self.score = np.where(right, 1.0, over(2 * shared, given + wanted))
        if self.calibrated:
            self.means["brier"] = (self.sure - right) ** 2
        self.names = [
            "exact_match",
            "micro_f1",
            "macro_f1",
            *(["ece", "brier"] if self.calibrated else []),
        ]
        self.invalid = sum(not valid[k] for k in self.rows)

    def label_counts(self, weights: Any, axis: int | None = None) -> list[Any]:
        """Weighted rows with each label in both, in the answer and in the
        reference: (b, labels), or their sums.
        """
        wanted, given = self.sets
        found = [weights @ side.astype(float) for side in (wanted & given, given, wanted)]
        return [side.sum(axis=1) for side in found] if axis else found

    def extract(self, task: dict[str, Any]) -> None:
        check = jsonschema.Draft202012Validator(task["schema"])
        self.values = [
            (strict_json(a), strict_json(b.strip()))
            for a, b in zip(self.wanted, self.said, strict=True)
        ]
        valid = [b is not NO_JSON for _, b in self.values]
        self.means = {
            "exact_match": np.array([b is not NO_JSON and alike(a, b) for a, b in self.values]),
            "valid_json": np.array(valid),
            "valid_schema": np.array(
                [b is not NO_JSON and check.is_valid(b) for _, b in self.values]
            ),
        }
        self.count_fields()
        self.names = [
            "exact_match",
            "valid_json",
            "valid_schema",
            "field_precision",
            "field_recall",
            "field_f1",
        ]
        self.invalid = sum(not valid[k] for k in self.rows)

    def call(self, task: dict[str, Any]) -> None:
        def named(text: str) -> tuple[str, Any]:
            value = strict_json(text.strip())
            whole = isinstance(value, dict) and set(value) == {"name", "arguments"}
            whole = (
                whole and isinstance(value["name"], str) and isinstance(value["arguments"], dict)
            )
            return (
                (value["name"], value["arguments"])
                if whole
                else ("none" if text.strip() == "none" else "", None)
            )

        def allowed(name: str, arguments: Any, offered: list[dict[str, Any]]) -> bool:
            schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in offered}
            if arguments is None:
                return name == "none"
            return name in schemas and jsonschema.Draft202012Validator(schemas[name]).is_valid(
                arguments
            )

        calls = [(named(a), named(b)) for a, b in zip(self.wanted, self.said, strict=True)]
        self.tools = [(a[0], b[0]) for a, b in calls]
        right = np.array([a[0] == b[0] and alike(a[1], b[1]) for a, b in calls])
        self.means = {
            "exact_match": right,
            "tool_accuracy": np.array([a == b for a, b in self.tools]),
            "valid_call": np.array(
                [allowed(*b, tools) for (_, b), tools in zip(calls, self.offered, strict=True)]
            ),
        }
        self.values = [
            tuple(NO_JSON if arguments is None else {name: arguments} for name, arguments in pair)
            for pair in calls
        ]
        self.count_fields()
        self.score = np.where(right, 1.0, self.score)
        self.names = [
            "exact_match",
            "tool_accuracy",
            "valid_call",
            "field_precision",
            "field_recall",
            "field_f1",
        ]
        self.names += ["no_call_precision", "no_call_recall"]
        self.invalid = sum(not self.tools[k][1] for k in self.rows)

    def count_fields(self) -> None:
        """Leaves of each row that are shared, given and wanted, (n, 3), and the F1 of each row."""
        counts = [
            (len(shared_paths(a, b)), len(leaf_paths(b)), len(leaf_paths(a)))
            for a, b in self.values
        ]
        self.counts = np.array(counts)
        self.score = over(2 * self.counts[:, 0], self.counts[:, 1] + self.counts[:, 2])

    def generate(self, task: dict[str, Any]) -> None:
        texts = list(zip(self.wanted, self.said, strict=True))
        pairs = [(WORDS.tokenize(a), WORDS.tokenize(b)) for a, b in texts]
        same = [(Counter(a) & Counter(b)).total() for a, b in pairs]
        long = [len(a) + len(b) for a, b in pairs]
        self.score = np.array([2 * s / n if n else 1.0 for s, n in zip(same, long, strict=True)])
        self.means = {
            "token_f1": self.score,
            "exact_match": np.array([a == b for a, b in pairs]),
            "rouge_l": np.array([ROUGE.score(a, b)["rougeL"].fmeasure for a, b in texts]),
        }
        # of every order the numbers of n-grams of the answer, of the reference, and of both
        self.grams = np.array(CHRF_2._extract_corpus_statistics(self.said, [self.wanted])).reshape(
            -1, 6, 3
        )
        self.lengths = np.array([[len(b), len(a)] for a, b in pairs])
        finish, reported = (side or [{}] * len(pairs) for side in (self.finish, self.reported))
        must, must_not = task.get("must", []), task.get("must_not", [])
        checks = {
            # as the report's rows say: see test_grounding.py
            "ungrounded": ["ungrounded" in row for row in reported],
            "other_language": ["other_language" in row for row in reported],
            "missing_pattern": [
                not all(re.search(each, text) for each in must) for text in self.said
            ],
            "forbidden_pattern": [
                any(re.search(each, text) for each in must_not) for text in self.said
            ],
            "repetition": [bool(over_and_over(words)) for _, words in pairs],
            "unfinished": [each == "length" for each in finish],
        }
        used = [
            name
            for name in CHECKS
            if {"missing_pattern": must, "forbidden_pattern": must_not}.get(name, True)
        ]
        self.means |= {name: np.array(checks[name]) for name in used}
        self.names = ["token_f1", "exact_match", "rouge_l", "chrf", "length_ratio", *used]
        self.invalid = sum(not self.said[k].strip() for k in self.rows)

    def figures(self, weights: Any) -> dict[str, Any]:
        """Every metric over rows that count so often: (b, n) -> (b,) each."""
        total = weights.sum(axis=1)
        found = {name: weights @ values / total for name, values in self.means.items()}
        if self.kind == "classify":
            found["macro_f1"] = self.macro(weights)
            if self.ordered:
                found["quadratic_kappa"] = self.kappa(weights)
        if self.kind == "tag":
            h, g, w = self.label_counts(weights)
            found["micro_f1"] = over(2 * h.sum(axis=1), (g + w).sum(axis=1))
            found["macro_f1"] = over(2 * h, g + w).sum(axis=1) / np.maximum(
                (g + w > 0).sum(axis=1), 1
            )
        if self.calibrated:
            found["ece"] = np.sqrt(
                np.maximum(self.observed(weights) ** 2 - self.by_chance(weights) ** 2, 0)
            )
        if self.kind in ("extract", "call"):
            h, g, w = (weights @ self.counts[:, place] for place in range(3))
            found |= {
                "field_precision": over(h, g),
                "field_recall": over(h, w),
                "field_f1": over(2 * h, g + w),
            }
        if self.kind == "call":
            quiet = np.array([[side == "none" for side in pair] for pair in self.tools])
            both, wanted, given = (
                weights @ rows for rows in (quiet.all(axis=1), quiet[:, 0], quiet[:, 1])
            )
            found |= {"no_call_precision": over(both, given), "no_call_recall": over(both, wanted)}
        if self.kind == "generate":
            # (b, 6) each
            given, wanted, shared = np.moveaxis(
                np.tensordot(weights, self.grams, axes=(1, 0)), 2, 0
            )
            used = np.maximum(((given > 0) & (wanted > 0)).sum(axis=1), 1)
            p, r = (
                np.where(given * wanted > 0, over(shared, side), 0).sum(axis=1) / used
                for side in (given, wanted)
            )
            found["chrf"] = over(5 * p * r, 4 * p + r)
            found["length_ratio"] = over(*(weights @ self.lengths).T)
        return {name: found[name] for name in self.names}

    def macro(self, weights: Any) -> Any:
        f1, used = [], []
        for label in self.labels:
            a, b = (
                np.array([each == label for each in side]) for side in (self.wanted, self.given)
            )
            w, g, h = (weights @ rows for rows in (a, b, a & b))
            f1.append(over(2 * h, w + g))
            used.append(w + g > 0)
        return sum(f1) / np.maximum(np.sum(used, axis=0), 1)

    def kappa(self, weights: Any) -> Any:
        """Of the table of references and answers and of the one by
        chance, cells weighed by squared distance.
        """
        every = np.arange(len(self.labels))
        wanted, given = (np.equal.outer(side, every).astype(float) for side in self.levels)
        table = np.einsum("bn,ni,nj->bij", weights, wanted, given)
        chance = (
            np.einsum("bi,bj->bij", table.sum(axis=2), table.sum(axis=1))
            / table.sum(axis=(1, 2))[:, None, None]
        )
        far = np.subtract.outer(every, every) ** 2
        apart, by_chance = (table * far).sum(axis=(1, 2)), (chance * far).sum(axis=(1, 2))
        return 1 - np.divide(apart, by_chance, out=np.ones(len(apart)), where=by_chance > 1e-6)

    def bins(self, weights: Any) -> dict[int, list[Any]]:
        """By bin of the reliability table the rows, their confidences
        and their right answers, (b,) each.
        """
        place = np.minimum(14, (self.sure * 15).astype(int))
        rows = {k: place == k for k in sorted(set(place[self.rows].tolist()))}
        return {
            k: [weights @ one, weights @ (one * self.sure), weights @ (one & self.right)]
            for k, one in rows.items()
        }

    def observed(self, weights: Any) -> Any:
        """Mean gap of confidence and accuracy by bin, (b,)."""
        return sum(abs(c - r) for _, c, r in self.bins(weights).values()) / weights.sum(axis=1)

    def by_chance(self, weights: Any) -> Any:
        """The same as expected of a calibrated model with these confidences, (b,)."""
        found = np.zeros(len(weights))
        place = np.minimum(14, (self.sure * 15).astype(int))
        for k in set(place[self.rows].tolist()):
            variance = np.where(place == k, self.sure * (1 - self.sure), 0)
            normal = np.sqrt(weights**2 @ variance) * math.sqrt(2 / math.pi)
            found += np.minimum(normal, weights @ variance * 2)
        return found / weights.sum(axis=1)

    def measured(self) -> dict[str, float]:
        """Every metric over the rows that were asked, by the libraries where they define it."""
        found = {
            name: float(values[0])
            for name, values in self.figures(once(self.rows, len(self.said))).items()
        }
        wanted, said = ([side[k] for k in self.rows] for side in (self.wanted, self.said))
        if self.kind == "classify":
            given = [self.given[k] for k in self.rows]
            used = [label for label in self.labels if label in wanted or label in given]
            found["macro_f1"] = float(
                f1_score(wanted, given, labels=used, average="macro", zero_division=0)
            )
            if self.ordered:
                levels = [side[self.rows] for side in self.levels]
                found["mean_absolute_error"] = float(mean_absolute_error(*levels))
                kappa = cohen_kappa_score(
                    *levels, weights="quadratic", labels=np.arange(len(self.labels))
                )
                found["quadratic_kappa"] = float(kappa)
        if self.kind == "tag":
            wanted_sets, given_sets = (side[self.rows] for side in self.sets)
            used = np.flatnonzero((wanted_sets | given_sets).any(axis=0)).tolist()
            for average, names in (("micro", None), ("macro", used)):
                score = f1_score(
                    wanted_sets, given_sets, labels=names, average=average, zero_division=0
                )
                found[f"{average}_f1"] = float(score)
        if self.calibrated:
            found["brier"] = float(
                brier_score_loss(self.right[self.rows], self.sure[self.rows], pos_label=True)
            )
        if self.kind == "generate":
            found["chrf"] = CHRF_2.corpus_score(said, [wanted]).score / 100
        return found

    def details(self) -> dict[str, Any]:
        """What stands beside the metrics."""
        if self.kind == "generate":
            return {}
        found: dict[str, Any] = {}
        if self.kind == "tag":
            sets = [side[self.rows] for side in self.sets]
            table = np.transpose(precision_recall_fscore_support(*sets, zero_division=0))
            both, either = (sets[0] & sets[1]).sum(axis=0), (sets[0] | sets[1]).sum(axis=0)
            found["calibration"] = self.reliability()
            found["per_class"] = {
                label: {
                    "precision": float(p),
                    "recall": float(r),
                    "f1": float(f),
                    "support": int(n),
                    "interval": [
                        2 - 2 / (1 + j) for j in wilson(both[k], either[k], self.confidence)
                    ],
                }
                for k, (label, (p, r, f, n)) in enumerate(zip(self.labels, table, strict=True))
                if either[k]
            }
            return found
        if self.kind != "classify":
            wants, gives, hits = Counter[str](), Counter[str](), Counter[str]()
            for k in self.rows:
                wants.update(leaf_paths(self.values[k][0]))
                gives.update(leaf_paths(self.values[k][1]))
                hits.update(shared_paths(*self.values[k]))
            found["fields"] = prf(wants, gives, hits)
        if self.kind == "extract":
            return found
        if self.kind == "classify":
            pairs = [
                (self.wanted[k], self.given[k] if self.given[k] in self.labels else "")
                for k in self.rows
            ]
            found["calibration"] = self.reliability()
        else:
            pairs = [self.tools[k] for k in self.rows]
        found["confusion"] = [[a, b, n] for (a, b), n in sorted(Counter(pairs).items())]
        wanted, given = ([pair[side] for pair in pairs] for side in (0, 1))
        used = sorted({*wanted, *given} - {""})
        table = precision_recall_fscore_support(wanted, given, labels=used, zero_division=0)
        found["per_class"] = {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, p, r, f, n in zip(used, *table, strict=True)
        }
        return found

    def reliability(self) -> dict[str, Any] | None:
        if not self.calibrated:
            return None
        figures, weights = self.measured(), once(self.rows, len(self.said))
        bins = self.bins(weights)
        return {
            "n": len(self.rows),
            "confidence": float(np.average(self.sure, weights=weights[0])),
            "accuracy": float(np.mean([bool(self.right[k]) for k in self.rows])),
            "ece": figures["ece"],
            "observed": float(self.observed(weights)[0]),
            "by_chance": float(self.by_chance(weights)[0]),
            "brier": figures["brier"],
            "bins": [
                {
                    "low": k / 15,
                    "high": (k + 1) / 15,
                    "n": int(n[0]),
                    "confidence": float(c[0] / n[0]),
                    "accuracy": float(r[0] / n[0]),
                }
                for k, (n, c, r) in bins.items()
            ],
        }


def over_and_over(words: list[str]) -> bool:
    """Some phrase of up to 20 words stands three times in a row, and nine words long at least."""
    for size in range(1, 21):
        times = max(3, math.ceil(9 / size))
        long = 9 if size < 3 else times * size
        for k in range(len(words) - long + 1):
            if words[k : k + long - size] == words[k + size : k + long]:
                return True
    return False


def once(rows: list[int], n: int) -> Any:
    """Weights of rows that count once, (1, n)."""
    weights = np.zeros((1, n))
    weights[0, rows] = 1
    return weights


# Statistics


def clustered(values: list[float], groups: list[Any]) -> float:
    """The variance of a mean whose rows come in groups, as a multiple of that of independent rows;
    1 at least.

    The delete-a-group jackknife, widened by Student's t for the effective number of groups.
    """
    n, mean, parts = len(values), sum(values) / len(values), defaultdict[Any, list[float]](list)
    for value, group in zip(values, groups, strict=True):
        parts[group].append(value - mean)
    if len(parts) == n:
        return 1.0
    alone = sum(value * value for part in parts.values() for value in part)
    freedom = max(n * n / sum(len(part) ** 2 for part in parts.values()) - 1, 1)
    few = (float(student.ppf(0.975, freedom)) / NORMAL.inv_cdf(0.975)) ** 2
    if len(parts) < 2 or alone < 1e-12:
        return few * sum(len(part) ** 2 for part in parts.values()) / n
    # how far the mean moves without a group
    without = [sum(part) / (n - len(part)) for part in parts.values()]
    return few * max(
        1.0, n * n * sum(move * move for move in without) * (len(parts) - 1) / len(parts) / alone
    )


def wilson(right: float, n: float, confidence: float) -> list[float]:
    """Where the distance of the share from the true one is z of its standard errors."""
    z, share = NORMAL.inv_cdf((1 + confidence) / 2), right / n
    roots = np.roots([1 + z * z / n, -(2 * share + z * z / n), share * share])
    return sorted(float(min(1.0, max(0.0, root.real))) for root in roots)


def binomial_p(b: int, c: int, effect: float = 1.0) -> float:
    n, least = math.floor((b + c) / effect), math.ceil(min(b, c) / effect)
    return float(binomtest(least, n).pvalue) if n > 2 * least else 1.0


def worst_drop(b: float, c: float, n: float, side: float) -> float:
    """Tango's bound: where the score statistic, its nuisance share the
    likeliest one, reaches the normal quantile.
    """
    if b == n:
        return 1.0
    z = NORMAL.inv_cdf(side)

    def statistic(drop: float) -> float:
        def slope(q: float) -> float:  # of the log likelihood, falling in q
            p, rest = q + drop, 1 - 2 * q - drop
            return (
                (b / p if b else 0.0)
                + (c / q if c else 0.0)
                - (2 * (n - b - c) / rest if n > b + c else 0.0)
            )

        low, high = max(0.0, -drop) + 1e-15, (1 - drop) / 2 - 1e-15
        q = (
            low
            if slope(low) <= 0
            else high
            if slope(high) >= 0
            else brentq(slope, low, high, xtol=1e-15)
        )
        return (b - c - n * drop) / math.sqrt(n * (2 * q + drop - drop * drop))

    least, most = (b - c) / n + 1e-12, 1 - 1e-9
    return (
        float(brentq(lambda drop: statistic(drop) + z, least, most, xtol=1e-12))
        if statistic(most) < -z
        else 1.0
    )


def seen_with(discordant: float, n: float, confidence: float, power: float) -> float:
    z, beta = NORMAL.inv_cdf((1 + confidence) / 2), NORMAL.inv_cdf(power)

    def surplus(d: float) -> float:  # of the difference over what is needed to see it, rising in d
        share = max(discordant / n, d)
        return math.sqrt(n) * d - z * math.sqrt(share) - beta * math.sqrt(max(share - d * d, 0))

    # too few to show any
    return float(brentq(surplus, 1e-12, 1.0, xtol=1e-12)) if surplus(1.0) > 0 else 1.0


def raised(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda k: values[k])
    return [
        max(
            min(1.0, (len(values) - rank) * values[order[rank]])
            for rank in range(order.index(k) + 1)
        )
        for k in range(len(values))
    ]


def draws(rows: list[int], groups: list[Any], seed: int) -> Any:
    """How often each row is in each resample of the groups of some rows, (RESAMPLES, n)."""
    chance, names = np.random.default_rng([seed, len(rows)]), list({groups[k]: 0 for k in rows})
    drawn = chance.multinomial(len(names), [1 / len(names)] * len(names), size=RESAMPLES)
    place, weights = {name: k for k, name in enumerate(names)}, np.zeros((RESAMPLES, len(groups)))
    weights[:, rows] = drawn[:, [place[groups[k]] for k in rows]]
    return weights


class About(float):
    """A figure of a bootstrap: equal to another within `give`."""

    give: float

    @classmethod
    def of(cls, value: float, give: float) -> About:
        made = cls(value)
        made.give = float(give)
        return made


def loosely(values: Any, q: float) -> About:
    """A quantile with what chance may move it: figures of few rows have
    few values, each of many resamples.
    """
    value, spread = np.quantile(values, q), np.std(values)
    away = 3 * math.sqrt(q * (1 - q) / len(values))
    steps = [
        abs(np.quantile(values, min(1.0, max(0.0, q + side * away))) - value) for side in (-1, 1)
    ]
    return About.of(value, 0.004 + max(spread * (0.45 if 0.02 < q < 0.98 else 0.9), *steps))


def chance_of_none(differences: Any) -> About:
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    p = min(1.0, 2 * (1 + min(below, above)) / (1 + len(differences)))
    return About.of(p, 0.02 + 4.5 * 2 * math.sqrt(p / 2 * (1 - p / 2) / len(differences)))


def place_of(facts: dict[str, Any]) -> tuple[Any, ...]:
    """In the order of the pipeline, the larger file first, the shorter prompt first."""
    return (
        ORDER.index(facts["kind"]),
        -(facts["size"] or 0),
        facts.get("shots") or 0,
        facts["model"],
    )


# The report


class Recomputed:
    """Everything a report says, from the files it was made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest, self.report = (
            read_json(folder / "manifest.json"),
            read_json(folder / "report.json"),
        )
        self.config = self.manifest["config"]
        self.head, *self.lines = lines_of(folder / "rows.jsonl")
        self.there = {
            read_json(path)["digest"]: path.parent
            for path in folder.parents[1].glob("*/*/manifest.json")
        }
        self.prepared = self.there[self.manifest["inputs"]["prepared"]]
        self.task = read_json(self.prepared / "task.json")
        self.confidence = self.config["confidence"]
        self.primary = PRIMARY[self.task["kind"]]
        self.resampled: dict[tuple[int, ...], dict[str, dict[str, Any]]] = {}

    def whole(self) -> dict[str, Any]:
        made = self.manifests(self.manifest["inputs"]["predictions"])
        split = made[0][1]["split"]
        self.records = lines_of(self.prepared / f"{split}.jsonl")
        self.groups = [record.get("group") or k for k, record in enumerate(self.records)]
        models = {
            facts["model"].replace("|", "/"): self.read(path, self.records, facts["model"])
            for path, facts in made
        }
        facts = {facts["model"].replace("|", "/"): self.facts(path, facts) for path, facts in made}
        self.people = {**self.free(), **models}
        baselines = {
            name: self.entry(one) | {"kind": "baseline", "not_sent": 0, "failed": 0}
            for name, one in self.people.items()
            if name not in models
        }
        measured = {name: self.entry(one) | facts[name] for name, one in models.items()}
        cheap = {name for name in measured if facts[name]["kind"] == "encoder"}
        if len(cheap) < len(measured):  # a baseline beside other models
            baselines |= {name: measured.pop(name) for name in cheap}
        choice = self.choice()
        slices = self.slices()
        return {
            "task": self.task["kind"],
            "primary_metric": self.primary,
            "lower_is_better": LOWER
            + ["mean_absolute_error"] * self.task.get("ordered", False)
            + [name for name in CHECKS if name in next(iter(self.people.values())).names],
            "split": split,
            "n": len(self.records),
            "confidence": self.confidence,
            "power": 0.8,
            "prepared": self.manifest["inputs"]["prepared"],
            "participants": list(self.people),
            "focus": self.focus(measured, choice),
            "models": measured,
            "baselines": baselines,
            "pairs": self.pairs(slices),
            "slices": [self.slice(*one) for one in slices],
            "choice": choice,
            "break_even": self.money(measured),
            "cut": self.config["shown_characters"],
            **self.release(made),
            **self.judged(measured, self.focus(measured, choice)),
        }

    def manifests(self, digests: list[str]) -> list[tuple[Path, dict[str, Any]]]:
        paths = [self.there[digest] for digest in digests]
        made = [(path, read_json(path / "manifest.json")["metrics"]) for path in paths]
        return sorted(made, key=lambda one: place_of(one[1]))

    def read(self, path: Path, records: list[dict[str, Any]], name: str = "") -> Participant:
        rows = lines_of(path / "predictions.jsonl")
        assert [row["id"] for row in rows] == [record["id"] for record in records], path
        said, sure = [row["answer"] for row in rows], [row.get("confidence") for row in rows]
        sent = [not row.get("not_sent") for row in rows]
        cut = [row.get("finish") for row in rows]
        return Participant(
            self.task, records, said, sure, sent, self.confidence, cut, self.faults(name)
        )

    def faults(self, name: str) -> list[Any]:
        """The faults of a participant's drafts, as the report's rows say."""
        if name.replace("|", "/") not in self.head["participants"]:
            return []
        at = self.head["participants"].index(name.replace("|", "/"))
        return [line["faults"][at] if "faults" in line else {} for line in self.lines]

    def facts(self, path: Path, facts: dict[str, Any]) -> dict[str, Any]:
        rows = lines_of(path / "predictions.jsonl")
        keys = (
            "kind",
            "size",
            "sha256",
            "latency_ms",
            "rows_per_s",
            "prompt_lists_labels",
            "shots",
            "engine",
            "matmul_dtype",
        )
        kept = {key: facts.get(key) for key in keys}
        kept |= {"base_sha256": facts["base_sha256"]} if "base_sha256" in facts else {}
        kept["predictions"] = next(digest for digest, place in self.there.items() if place == path)
        kept["not_sent"] = sum(row.get("not_sent") == "sensitive" for row in rows)
        asked = [row for row in rows if not row.get("not_sent")]
        kept |= {"sample": len(asked)} if len(asked) + kept["not_sent"] < len(rows) else {}
        kept["failed"] = (
            sum(bool(row.get("error")) for row in rows) if facts["kind"] == "endpoint" else 0
        )
        known = all(
            row.get(f"{kind}_tokens") is not None
            for row in rows
            for kind in ("prompt", "completion")
        )
        rate, sums = facts["rows_per_s"], None
        if known:
            sums = {
                kind: sum(row[f"{kind}_tokens"] for row in rows)
                for kind in ("prompt", "completion")
            }
        each = sums["completion"] / len(asked) * rate if sums and rate else None
        return kept | {"tokens": sums, "tokens_per_s": each}

    def free(self) -> dict[str, Participant]:
        """The baselines; the linear one as the report's rows say,
        the others from the training rows.
        """
        everything = [True] * len(self.records)
        nothing = [None] * len(self.records)

        def made(said: list[str], sure: list[Any] = nothing) -> Participant:
            return Participant(self.task, self.records, said, sure, everything, self.confidence)

        if self.task["kind"] == "call":
            return {
                "no_call": made(["none"] * len(self.records)),
                "nearest": made(self.nearest()),
            }
        if self.task["kind"] not in ("classify", "tag"):
            empty = "{}" if self.task["kind"] == "extract" else ""
            return {
                name: Participant(
                    self.task,
                    self.records,
                    said,
                    nothing,
                    everything,
                    self.confidence,
                    reported=self.faults(name),
                )
                for name, said in (
                    ("copy", [asked_and_wanted(record)[0] for record in self.records]),
                    ("empty", [empty] * len(self.records)),
                    *([("nearest", self.nearest())] if not empty else []),
                )
            }
        train = Counter(
            asked_and_wanted(record)[1] for record in lines_of(self.prepared / "train.jsonl")
        )
        most = min(label for label, n in train.items() if n == max(train.values()))
        at, labels = self.head["participants"].index("tfidf_logistic"), self.head["labels"]
        cells = [line["answers"][at] for line in self.lines]
        linear = made([labels[cell[0]] for cell in cells], [cell[2] for cell in cells])
        return {"majority": made([most] * len(self.records)), "tfidf_logistic": linear}

    def nearest(self) -> list[str]:
        """For each row the answer of the training row with the largest cosine of TF-IDF."""
        train = [asked_and_wanted(record) for record in lines_of(self.prepared / "train.jsonl")]
        words = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=r"\b\w+\b", sublinear_tf=True
        ).fit([text for text, _ in train])
        known = words.transform([text for text, _ in train]).toarray()
        asked = words.transform([asked_and_wanted(record)[0] for record in self.records]).toarray()
        return [train[int(np.argmax(known @ row))][1] for row in asked]

    def entry(self, one: Participant) -> dict[str, Any]:
        figures, n = one.measured(), len(one.rows)
        intervals: dict[str, list[Any]] = {}
        for name in one.names:
            if name in SHARES:
                effect = clustered(
                    [float(one.means[name][k]) for k in one.rows],
                    [self.groups[k] for k in one.rows],
                )
                intervals[name] = wilson(
                    round(figures[name] * n) / effect, n / effect, self.confidence
                )
            else:
                values = self.draw(one.rows)[self.name_of(one)][name]
                intervals[name] = [
                    loosely(values, (1 + sign * self.confidence) / 2) for sign in (-1, 1)
                ]
        # confidences there are rounded
        rough = {"ece", "brier"} if one is self.people.get("tfidf_logistic") else set()
        details = one.details()
        if rough:
            details["calibration"] = self.within(details["calibration"])
        effect = clustered(
            [float(one.right[k]) for k in one.rows], [self.groups[k] for k in one.rows]
        )
        if effect > 1:
            sizes = Counter(self.groups[k] for k in one.rows).values()
            details |= {"design_effect": About.of(effect, 1e-3 * effect), "groups": len(sizes)}
            details["effective_groups"] = sum(sizes) ** 2 / sum(size * size for size in sizes)
        return {
            "n": n,
            "right": int(one.right[one.rows].sum()),
            "invalid": one.invalid,
            "metrics": {
                name: About.of(v, 1e-3) if name in rough else v for name, v in figures.items()
            },
            "intervals": intervals,
            "interval": intervals[one.names[0]],
            **details,
        }

    def within(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.within(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.within(inner) for inner in value]
        # a row may lie on the edge of a bin
        return About.of(value, 2e-3 if isinstance(value, float) else 2)

    def name_of(self, one: Participant) -> str:
        return next(name for name, other in self.people.items() if other is one)

    def draw(self, rows: list[int]) -> dict[str, dict[str, Any]]:
        """By participant its figures in each resample of these rows; the same resamples for all."""
        key = tuple(rows)
        if key not in self.resampled:
            drawn = draws(rows, self.groups, 77)
            self.resampled[key] = {name: one.figures(drawn) for name, one in self.people.items()}
        return self.resampled[key]

    def pairs(self, slices: list[tuple[str, str, list[int]]]) -> dict[str, Any]:
        table = {}
        for (one, a), (two, b) in itertools.combinations(self.people.items(), 2):
            rows = [k for k in a.rows if b.asked[k]]
            if not rows:
                continue
            first, second = self.draw(rows)[one], self.draw(rows)[two]
            counts = Counter((a.right[k], b.right[k]) for k in rows)
            metrics = self.apart(a, b, rows, first, second)
            tested = self.tested(a, b, rows, slices)
            table[f"{one}|{two}"] = {
                "n": len(rows),
                "both": counts[True, True],
                "only_first": counts[True, False],
                "only_second": counts[False, True],
                "neither": counts[False, False],
                "metrics": metrics,
                "slices": tested[:10] if self.primary in SHARES else tested,
                "slices_tested": len(tested),
            }
        return table

    def apart(
        self,
        a: Participant,
        b: Participant,
        rows: list[int],
        first: dict[str, Any],
        second: dict[str, Any],
    ) -> dict[str, Any]:
        """Every metric of the second less that of the first, on
        rows whose resamples are at hand.
        """
        exact = [one.figures(once(rows, len(self.records))) for one in (a, b)]
        metrics: dict[str, Any] = {}
        for name in a.names:
            if name not in b.names:
                continue
            if name in SHARES:
                metrics[name] = self.share(name, a, b, rows)
                continue
            apart = second[name] - first[name]
            spread = np.std(apart, ddof=1)
            z = NORMAL.inv_cdf((1 + self.confidence) / 2) + NORMAL.inv_cdf(0.8)
            rough = 1e-3 if name in ("ece", "brier") else EXACT
            metrics[name] = {
                "difference": About.of(exact[1][name][0] - exact[0][name][0], rough),
                "interval": [loosely(apart, (1 + sign * self.confidence) / 2) for sign in (-1, 1)],
                "p": chance_of_none(apart),
                "detectable": About.of(z * spread, 0.002 + 0.2 * z * spread),
                "test": "bootstrap",
                "quantiles": {f"{q:g}": loosely(apart, q) for q in QUANTILES},
            }
        return metrics

    def release(self, made: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
        """The release that gates compare with, on the rows that were
        in its data set and on the others.
        """
        found = [facts for _, facts in made if facts["kind"] == "release"]
        if not found:
            return {}
        held = self.held_by(self.there[self.manifest["inputs"]["released"]] / "rows.bin")
        names = [facts["model"] for _, facts in made if facts["kind"] not in ("base", "endpoint")]
        parts = {
            "old": [k for k, splits in enumerate(held) if splits & {0, 1, 2, 3}],
            "new": [k for k, splits in enumerate(held) if not splits & {0, 1, 2, 3}],
        }
        own, rows = found[0]["model"], {}
        for title, part in parts.items():
            drawn, whole = draws(part, self.groups, 80), once(part, len(self.records))
            figures = {name: self.people[name].figures(drawn) for name in names}
            rows[title] = {
                "n": len(part),
                "values": {
                    name: {
                        metric: float(value[0])
                        for metric, value in self.people[name].figures(whole).items()
                    }
                    for name in names
                },
                "differences": {
                    name: self.apart(
                        self.people[own], self.people[name], part, figures[own], figures[name]
                    )
                    for name in names
                    if name != own
                },
            }
        trained = sum(0 in splits for splits in held)
        return {
            "release": {
                "name": own,
                "title": found[0]["release"],
                "trained_on": trained,
                "rows": rows,
            }
        }

    def judged(self, models: dict[str, Any], focus: str) -> dict[str, Any]:
        """The pairs that people judged, from the file below the
        project whose hash the recipe holds.
        """
        if "pairs" not in self.config:
            return {}
        files = self.folder.parents[2].glob("*.jsonl")
        (path,) = [
            path
            for path in files
            if f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == self.config["pairs"]
        ]
        stacks = defaultdict[tuple[Any, ...], list[dict[str, Any]]](list)
        for line in lines_of(path):
            stack = stacks[(*line["models"], line["id"])]
            stack[-1:] = [*stack[-1:], line] if line["decision"] != "undone" else []
        last = [
            stack[-1] for stack in stacks.values() if stack and stack[-1]["decision"] != "skipped"
        ]
        entries = []
        for pair in itertools.combinations(models, 2):
            against, model = pair if pair[0] != focus else (pair[1], focus)
            both = sorted(models[name]["predictions"] for name in pair)
            lines = [line for line in last if line["models"] == both]
            if lines:
                better = "first" if models[model]["predictions"] == both[0] else "second"
                entries.append(
                    {"model": model, "against": against, **self.preferred(lines, better)}
                )
                asked = [k for k in self.people[model].rows if self.people[against].asked[k]]
                said = [
                    [(row["answer"] or "").strip() for row in self.said(models[name])]
                    for name in pair
                ]
                entries[-1]["equal"] = sum(said[0][k] == said[1][k] for k in asked)
        known = {model["predictions"] for model in models.values()}
        others = sum(not set(line["models"]) <= known for line in last)
        return {
            "judged": {
                "entries": sorted(entries, key=lambda one: one["model"] != focus),
                "of_others": others,
            }
        }

    def said(self, model: dict[str, Any]) -> list[dict[str, Any]]:
        return lines_of(self.there[model["predictions"]] / "predictions.jsonl")

    def preferred(self, lines: list[dict[str, Any]], better: str) -> dict[str, Any]:
        place = {record["id"]: k for k, record in enumerate(self.records)}
        worse = {"first": "second", "second": "first"}[better]
        n = Counter(line["decision"] for line in lines)
        scores = [
            (line["decision"] == better) - (line["decision"] == worse) + 0.0 for line in lines
        ]
        groups = [self.groups[place[line["id"]]] for line in lines]
        effect = clustered(scores, groups)

        def upper(count: int, total: int) -> float:
            count, total = math.ceil(count / effect), math.floor(total / effect)
            exact = (
                binomtest(min(count, total), total).proportion_ci(self.confidence, "exact")
                if total
                else None
            )
            return float(exact.high) if exact else 1.0

        won, lost, pairs = n[better], n[worse], len(lines)
        often, seldom = upper(won + lost, pairs), 1 - upper(pairs - won - lost, pairs)
        ends = [0.5 - upper(lost, won + lost), upper(won, won + lost) - 0.5]
        shares = [seldom if ends[0] > 0 else often, often if ends[1] > 0 else seldom]
        more = None
        for k in range(1001) if won != lost else ():
            few, many = (min(won, lost) * (pairs + k) / pairs, max(won, lost) * (pairs + k) / pairs)
            if binomial_p(math.ceil(few), math.floor(many), effect) <= 1 - self.confidence:
                more = k
                break
        return {
            "won": won,
            "lost": lost,
            "same": n["same"],
            "neither": n["neither"],
            "equal": 0,
            "win_rate": (won + (n["same"] + n["neither"]) / 2) / pairs,
            "p": binomial_p(lost, won, effect),
            "interval": [0.5 + end * share for end, share in zip(ends, shares, strict=True)],
            "more": more,
            "reviewers": len({line["reviewer"] for line in lines}),
            **({"design_effect": effect, "groups": len(set(groups))} if effect > 1 else {}),
        }

    def held_by(self, path: Path) -> list[set[int]]:
        """The splits of a data set that hold the text of each record, from its hashes."""
        raw = path.read_bytes()
        head, _, body = raw.partition(b"\n")
        size, held = json.loads(head)["entry_bytes"], defaultdict[bytes, set[int]](set)
        for at in range(0, len(body), size):
            held[body[at + 10 : at + 26]].add(body[at])
        hashes = []
        for record in self.records:
            text = unicodedata.normalize("NFKC", asked_and_wanted(record)[0]).casefold()
            words = " ".join(re.findall(r"[^\W_]+", re.sub(r"\d", "0", text)))
            hashes.append(hashlib.blake2b(words.encode(), digest_size=16).digest())
        return [held[one] for one in hashes]

    def share(self, name: str, a: Participant, b: Participant, rows: list[int]) -> dict[str, Any]:
        lost, won = apart(a.means[name], b.means[name], rows)
        side, n = (1 + self.confidence) / 2, len(rows)
        gaps = [float(b.means[name][k]) - float(a.means[name][k]) for k in rows]
        effect = clustered(gaps, [self.groups[k] for k in rows])
        less, more, as_many = lost / effect, won / effect, n / effect
        found = {
            "difference": (won - lost) / n,
            "interval": [
                -worst_drop(less, more, as_many, side),
                worst_drop(more, less, as_many, side),
            ],
            "p": binomial_p(lost, won, effect),
            "detectable": seen_with(less + more, as_many, self.confidence, 0.8),
            "test": "mcnemar",
            "only_first": lost,
            "only_second": won,
        }
        groups = {"design_effect": effect, "groups": len({self.groups[k] for k in rows})}
        return found | (groups if effect > 1 else {})

    def slices(self) -> list[tuple[str, str, list[int]]]:
        lengths = [len(asked_and_wanted(record)[0]) for record in self.records]
        ordered, n = sorted(lengths), len(lengths)
        cuts = sorted({ordered[math.floor((n - 1) * q)] for q in (0.25, 0.5, 0.75)})
        spans: dict[str, list[int]] = {}
        for low, high in zip([0, *(cut + 1 for cut in cuts)], [*cuts, max(lengths)], strict=True):
            spans[f"{low} to {high} characters"] = [
                k for k, length in enumerate(lengths) if low <= length <= high
            ]
        by: dict[str, dict[str, list[int]]] = {
            "label": {},
            "tool": {},
            "source": {},
            "length": spans,
            "group": {},
        }
        for k, record in enumerate(self.records):
            _, answer = asked_and_wanted(record)
            keys = {"source": str(record["source"]["file"]), "group": record.get("group")}
            if self.task["kind"] == "classify":
                keys["label"] = answer
            if self.task["kind"] == "call":
                keys["tool"] = json.loads(answer)["name"] if answer != "none" else answer
            for kind, key in keys.items():
                if key:
                    by[kind].setdefault(key, []).append(k)
        found = []
        for kind, parts in by.items():
            large = [(name, rows) for name, rows in parts.items() if 10 <= len(rows) < n]
            if kind == "group":
                large = sorted(large, key=lambda one: -len(one[1]))[:50]
                if not self.config["shown_characters"]:
                    large = [(f"#{place}", rows) for place, (_, rows) in enumerate(large, 1)]
            elif kind != "length":
                large.sort()
            found += [(kind, name, rows) for name, rows in large]
        return found

    def slice(self, by: str, name: str, rows: list[int]) -> dict[str, Any]:
        entry: dict[str, Any] = {"by": by, "name": name, "n": len(rows), "values": {}}
        intervals, checks = {}, {}
        for person, one in self.people.items():
            mine = [k for k in rows if one.asked[k]]
            if mine:
                entry["values"][person] = float(
                    one.figures(once(mine, len(self.records)))[self.primary][0]
                )
                intervals[person] = wilson(int(one.right[mine].sum()), len(mine), self.confidence)
                checks[person] = {
                    check: float(one.means[check][mine].mean())
                    for check in CHECKS
                    if check in one.means
                }
        entry |= {"checks": checks} if self.task["kind"] == "generate" else {}
        return entry | ({"intervals": intervals} if self.primary in SHARES else {})

    def tested(
        self,
        a: Participant,
        b: Participant,
        rows: list[int],
        slices: list[tuple[str, str, list[int]]],
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for by, name, part in slices:
            both = [k for k in part if k in set(rows)]
            if len(both) < 10:
                continue
            if self.primary in SHARES:
                lost, won = apart(a.right, b.right, both)
                difference, p = (won - lost) / len(both), binomial_p(lost, won)
            else:
                gaps = b.score - a.score
                difference = float(gaps[both].mean())
                p = (
                    chance_of_none(draws(both, list(range(len(gaps))), 78) @ gaps)
                    if gaps[both].any()
                    else 1.0
                )
            found.append({"by": by, "name": name, "n": len(both), "difference": difference, "p": p})
        for entry, p in zip(found, raised([float(entry["p"]) for entry in found]), strict=True):
            loose = isinstance(entry["p"], About)
            entry["p_holm"] = About.of(p, 1.0) if loose else p
        return sorted(
            found,
            key=lambda entry: (
                float(f"{float(entry['p']):.9g}"),
                -round(abs(entry["difference"]), 9),
            ),
        )

    def choice(self) -> dict[str, Any] | None:
        rule = self.config["choose"]
        if rule is None:
            return None
        records = lines_of(self.prepared / "validation.jsonl")
        made = self.manifests(self.manifest["inputs"]["validation"])
        files = {
            facts["model"]: (self.read(path, records), self.facts(path, facts))
            for path, facts in made
        }
        of = max(files, key=lambda name: (files[name][1]["size"], name))
        metric = self.primary
        every = list(range(len(records)))
        groups = [record.get("group") or k for k, record in enumerate(records)]
        whole = once(every, len(every))
        candidates = []
        for name in sorted(files, key=lambda name: (files[name][1]["size"], name)):
            one, facts = files[name]
            reference = files[of][0]
            value = float(one.figures(whole)[metric][0])
            loss = float(reference.figures(whole)[metric][0]) - value
            if name == of:
                bound: Any = 0.0
            elif metric in SHARES:
                lost, won = apart(reference.means[metric], one.means[metric], every)
                gaps = [
                    float(one.means[metric][k]) - float(reference.means[metric][k]) for k in every
                ]
                effect = clustered(gaps, groups)
                bound = worst_drop(lost / effect, won / effect, len(records) / effect, 0.95)
            else:
                drawn = draws(every, groups, 79)
                bound = loosely(reference.figures(drawn)[metric] - one.figures(drawn)[metric], 0.95)
            least = rule["min_tokens_per_s"]
            candidates.append(
                {
                    "model": name,
                    "size": facts["size"],
                    "value": value,
                    "loss": loss,
                    "loss_at_most": bound,
                    "tokens_per_s": facts["tokens_per_s"],
                    "within": loss <= rule["smallest_within"] + 1e-12,
                    "fast": least is None or (facts["tokens_per_s"] or 0) >= least,
                }
            )
        fit = [one["model"] for one in candidates if one["within"] and one["fast"]]
        return {
            "model": fit[0] if fit else None,
            "of": of,
            "metric": metric,
            "smallest_within": rule["smallest_within"],
            "min_tokens_per_s": rule["min_tokens_per_s"],
            "split": "validation",
            "n": len(records),
            "candidates": candidates,
        }

    def focus(self, models: dict[str, Any], choice: dict[str, Any] | None) -> str:
        if choice and choice["model"] in models:
            return str(choice["model"])
        files = [name for name, model in models.items() if model["kind"] in ("gguf", "published")]
        if files:
            return min(files, key=lambda name: models[name]["size"])
        own = [
            name for name, model in models.items() if model["kind"] not in ("release", "endpoint")
        ]
        return (own or list(models))[-1]

    def money(self, models: dict[str, Any]) -> dict[str, Any] | None:
        prices = self.config["prices"]
        if prices is None:
            return None
        table = {}
        for name, model in models.items():
            if not model["tokens"]:
                continue
            cost = model["tokens"]["prompt"] / 1e6 * prices["input"]
            cost += model["tokens"]["completion"] / 1e6 * prices["output"]
            entry = {"api_per_1000_rows": cost / model["n"] * 1000}
            if model["kind"] != "endpoint" and model["rows_per_s"]:
                entry["rows_per_hour"] = 3600 * model["rows_per_s"]
                entry["machine_per_1000_rows"] = (
                    prices["machine_per_hour"] / entry["rows_per_hour"] * 1000
                )
                if cost:
                    entry["break_even_rows_per_hour"] = (
                        prices["machine_per_hour"] * model["n"] / cost
                    )
                    entry["share_of_capacity"] = (
                        entry["break_even_rows_per_hour"] / entry["rows_per_hour"]
                    )
            table[name] = entry
        return {
            "machine_per_hour": prices["machine_per_hour"],
            "currency": prices["currency"],
            "models": table,
            "api_per_million_input_tokens": prices["input"],
            "api_per_million_output_tokens": prices["output"],
        }


def apart(first: Any, second: Any, rows: list[int]) -> tuple[int, int]:
    """Rows that only the first has, and only the second."""
    return int((first & ~second)[rows].sum()), int((second & ~first)[rows].sum())


def differences(ours: Any, theirs: Any, where: str = "") -> tuple[int, list[str]]:
    """How many figures were compared, and a line for each that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        faults = [
            f"{where}: {side} has {sorted(keys)}"
            for side, keys in (
                ("only the report", set(theirs) - set(ours)),
                ("only the recomputation", set(ours) - set(theirs)),
            )
            if keys
        ]
        parts = [
            differences(ours[key], theirs[key], f"{where}.{key}") for key in ours if key in theirs
        ]
        return sum(n for n, _ in parts), faults + [fault for _, more in parts for fault in more]
    if isinstance(theirs, list) and isinstance(ours, list):
        if len(ours) != len(theirs):
            return 0, [f"{where}: {len(ours)} entries, not {len(theirs)}"]
        parts = [
            differences(a, b, f"{where}[{k}]")
            for k, (a, b) in enumerate(zip(ours, theirs, strict=True))
        ]
        return sum(n for n, _ in parts), [fault for _, more in parts for fault in more]
    if isinstance(ours, About):
        same = isinstance(theirs, (int, float)) and abs(ours - theirs) <= ours.give
    elif (
        isinstance(ours, float)
        and isinstance(theirs, (int, float))
        and not isinstance(theirs, bool)
    ):
        same = abs(ours - theirs) <= EXACT + 6e-4 * abs(ours) * (where.endswith((".p", ".p_holm")))
    else:
        same = ours == theirs and type(ours) is type(theirs)
    return 1, [] if same else [f"{where}: {ours!r}, the report says {theirs!r}"]


def unordered(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """p-values of a bootstrap order the slices of a pair only nearly:
    compare those that the report lists, by name.
    """
    for key, pair in theirs.items():
        listed = {f"{one['by']} {one['name']}": one for one in pair["slices"]}
        known = {f"{one['by']} {one['name']}": one for one in ours[key]["slices"]}
        pair["slices"] = listed
        ours[key]["slices"] = {name: known.get(name) for name in listed}


def rows_agree(made: Recomputed) -> list[str]:
    """The report's rows against the predictions."""
    faults = []
    numbers: dict[Any, int] = {}
    if made.head["participants"] != list(made.people):
        faults.append("rows.jsonl: other participants than the report's")
    for k, (line, record) in enumerate(zip(made.lines, made.records, strict=True)):
        wanted = [record["id"], [record["source"]["file"], record["source"]["row"]]]
        if [line["id"], line["source"]] != wanted:
            faults.append(f"rows.jsonl row {k}: {line['id']}, not {record['id']}")
        if "group" in line and numbers.setdefault(made.groups[k], line["group"]) != line["group"]:
            faults.append(
                f"rows.jsonl row {k}: group {line['group']}, not {numbers[made.groups[k]]}"
            )
        for (name, one), cell in zip(made.people.items(), line["answers"], strict=True):
            if (cell is not None) != one.asked[k]:
                faults.append(f"rows.jsonl row {k}: {name} asked or not")
            elif cell is not None and (
                cell[1] != one.right[k] or abs(cell[3] - one.score[k]) > 6e-5
            ):
                faults.append(
                    f"rows.jsonl row {k}: {name} {cell}, not {one.right[k]} {one.score[k]}"
                )
    return faults


def main(folder: Path) -> int:
    made = Recomputed(folder)
    ours = made.whole()
    theirs = {
        key: value for key, value in copy.deepcopy(made.report).items() if key not in WORDS_ONLY
    }
    if made.primary not in SHARES:
        unordered(ours["pairs"], theirs["pairs"])
    count, faults = differences(ours, theirs, "report")
    faults += rows_agree(made)
    if made.manifest["metrics"] != made.report:
        faults.append("the manifest's metrics are not report.json")
    for fault in faults:
        sys.stdout.write(fault + "\n")
    sys.stdout.write(f"{count} figures compared, {len(faults)} differ\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
