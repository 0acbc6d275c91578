"""tests/support/recompute.py, which shares no code with slmctl,
finds every figure of a report again.
"""

from __future__ import annotations

import json
import random
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import handmade, recompute, tiny
from support.forks import Forks

from slmctl import config
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.json_lines import JsonLines
from slmctl.deduplication import row_fingerprints
from slmctl.pipeline import runner
from slmctl.pipeline.graph import Project
from slmctl.production.review.pairs import PairDecision
from slmctl.task import label_sets
from slmctl.task.contract import Task
from slmctl.task.records import write_jsonl
from slmctl.task.tool_calls import OWN, Tool

pytest.importorskip("sklearn")

LABELS = ("billing", "delivery", "account", "other_things")
SPLITS = {"train": 60, "validation": 41, "test": 73}
CONFIG = """\
project: made
base: ./none
task: {kind: generate}
evaluate:
  models: [base, gguf]
  choose: {smallest_within: 0.06, min_tokens_per_s: 10}
  pairs: pairs.jsonl
prices: {machine_per_hour: 0.3, input: 0.5, output: 1.5}
"""


def make(root: Path, kind: str, facts: dict[str, Any], fill: Callable[[Path], None]) -> Artifact:
    """An artifact below runs/, without the stage that would have made it."""
    name = f"{facts.get('split', 'all')}-{facts.get('model', 'none')}"
    return handmade.make(root / "runs" / kind / name, fill, metrics=facts)


class Data:
    """Rows of one task kind, and answers to them that are right, wrong or broken in many ways."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.chance = random.Random(kind)
        self.rows = {split: [self.row(split, k) for k in range(n)] for split, n in SPLITS.items()}

    def row(self, split: str, k: int) -> dict[str, Any]:
        words = self.chance.sample(tiny.FILLER.split(), self.chance.randint(2, 9))
        label = self.chance.choice(LABELS if self.kind != "call" else (*LABELS, *LABELS[-1:] * 3))
        answer = {
            "classify": label,
            "tag": self.labels(),
            "generate": " ".join([*words[:3], "Grüße, 12.", label]),
            "call": self.call(label, {"n": k % 3, "words": words[:6]} if k % 4 else {}),
        }.get(self.kind, json.dumps(self.value(words)))
        text = " ".join([*words, label if self.chance.random() < 0.7 else "thing"])
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        source = {"file": f"{'ab'[k % 2]}.csv", "row": k}
        more = {"label": answer} if self.kind == "classify" else {}
        return {
            "id": f"{split}{k}",
            "messages": messages,
            **more,
            "group": "large" if k < 12 else f"g{k // 3}",
            "sensitive": k % 7 == 3,
            "source": source,
        }

    def labels(self) -> str:
        return json.dumps([label for label in LABELS if self.chance.random() < 0.45])

    def value(self, words: list[str]) -> Any:
        items = [
            {"name": word, "qty": self.chance.choice([1, 1.0, True, 2, None])} for word in words[:3]
        ]
        return {"topic": words[0], "items": items, "tags": words[1:3], "empty": {}, "none": []}

    def call(self, label: str, arguments: dict[str, Any]) -> str:
        return (
            "none" if label == LABELS[-1] else json.dumps({"arguments": arguments, "name": label})
        )

    def answer(self, wanted: str, skill: float) -> str:
        if self.chance.random() < skill:
            return wanted if self.chance.random() < 0.8 else f" {wanted}\n"
        if self.kind == "classify":
            return self.chance.choice([*LABELS, "nonsense", "", "Billing"])
        if self.kind == "tag":
            odd = [
                '["billing", "billing"]',
                '["nonsense"]',
                "",
                "{}",
                f"[{wanted}]",
                wanted.replace("[", "[ "),
            ]
            return self.chance.choice(
                [*odd, *[self.labels()] * 6, json.dumps(json.loads(wanted)[::-1])]
            )
        if self.kind == "generate":
            words = wanted.split()
            self.chance.shuffle(words)
            draft = " ".join(words[: self.chance.randint(0, 4)])
            faulty = [
                "other words",
                "You get 99 € back.",
                "we are sorry " * self.chance.randint(2, 4),
            ]
            return self.chance.choice(
                [draft, wanted.upper(), "", *faulty, "Wir haben das nicht für Sie auf Lager."]
            )
        if self.kind == "call":
            other = self.call(
                self.chance.choice(LABELS), self.chance.choice([{}, {"n": 1, "words": ["please"]}])
            )
            value = {"name": LABELS[0], "arguments": {}} if wanted == "none" else json.loads(wanted)
            words = value["arguments"].get("words", ["please"])[: self.chance.randint(1, 5)]
            mine = self.call(value["name"], {"n": 2, "words": words})
            wild = self.chance.choice(
                [self.call("fly", {}), self.call(LABELS[0], {"n": "1"}), '{"name": "billing"}']
            )
            return self.chance.choice([other, *[mine] * 4, wild, *["none"] * 4, "", wanted + "}"])
        value = json.loads(wanted)
        return self.chance.choice(
            [self.broken(value), "", "{}", "[]", "null", '{"a": NaN}', wanted + "}", "3"]
        )

    def broken(self, value: dict[str, Any]) -> str:
        self.chance.shuffle(value["items"])
        if value["items"]:
            value["items"][0]["qty"] = 1
        value["items"] += [{"name": "extra"}] * self.chance.randint(0, 2)
        value["tags"] = self.chance.choice([value["tags"][::-1], [], "text", {"a": [1]}])
        value["more"] = 1
        return json.dumps(value)


def predictions(
    root: Path, data: Data, name: str, split: str, skill: float, **facts: Any
) -> Artifact:
    """Made-up answers of a model to one split."""
    kind = facts.get("kind", "gguf")
    lines = []
    for record in data.rows[split]:
        wanted = record["messages"][-1]["content"]
        line: dict[str, Any] = {
            "id": record["id"],
            "answer": data.answer(wanted, skill),
            "expected": wanted,
        }
        line |= {"confidence": data.chance.random() ** 0.3 if kind != "endpoint" else None}
        line |= (
            {"finish": data.chance.choice(["stop", "stop", "length"])}
            if data.kind == "generate"
            else {}
        )
        line |= {
            "prompt_tokens": data.chance.randint(20, 60),
            "completion_tokens": data.chance.randint(1, 9),
        }
        if kind == "endpoint" and record["sensitive"]:
            line |= {"answer": None, "not_sent": "sensitive"}
        elif kind == "endpoint" and data.chance.random() < 0.1:
            line |= {"answer": None, "error": "HTTP 500"}
        lines.append(line)
    known = {
        "model": name,
        "kind": kind,
        "split": split,
        "n": len(lines),
        "size": 1000,
        "sha256": name,
        "latency_ms": {"median": 3.0, "p95": 4.0, "n": 9},
        "rows_per_s": 7.0,
        "prompt_lists_labels": False,
        "not_sent": sum("not_sent" in line for line in lines),
        "failed": sum("error" in line for line in lines),
    } | facts

    def fill(place: Path) -> None:
        write_jsonl(place / "predictions.jsonl", lines)

    return make(root, "predictions", known, fill)


def seen(root: Path, data: Data) -> Artifact:
    """The data set of a release that holds most of the test rows, some of them to train on."""
    texts = [row["messages"][0]["content"] for row in data.rows["test"]]

    def fill(place: Path) -> None:
        with row_fingerprints.FingerprintWriter(place / row_fingerprints.FILENAME) as writer:
            for split, part in (
                ("train", texts[:3]),
                ("test", texts[3:36]),
                ("rejected", texts[36:46]),
            ):
                writer.add_texts(
                    split, [f"{k}" for k in range(len(part))], [text.upper() for text in part]
                )

    return make(root, "prepared", {"model": "seen"}, fill)


def judge(root: Path, data: Data, made: dict[str, Artifact]) -> None:
    """Made-up decisions on pairs of answers; some are undone, skipped, or
    of models that the report does not have.
    """
    with JsonLines(root / "pairs.jsonl") as stream:
        for models, skill in (
            (("Q8_0", "base"), 0.8),
            (("production", "Q4_K_M"), 0.5),
            (("Q8_0", "general"), 1.0),
        ):
            first, second = sorted(made[name].digest for name in models)
            better = "first" if made[models[0]].digest == first else "second"
            worse = "second" if better == "first" else "first"
            for row in data.rows["test"][: 73 if skill == 1.0 else 50]:
                said = ["neither", "skipped", worse, better][
                    data.chance.choice([0, 1, 2, 3, 3, 3, 3])
                ]
                said = [better, "same"][row["sensitive"]] if skill == 1.0 else said
                by = data.chance.choice("ab")
                line = PairDecision(row["id"], "12:00", by, said, (first, second))  # type: ignore[arg-type] # a text
                undone = [replace(line, decision="same"), replace(line, decision="undone")]
                for each in (*undone[: 2 * (row["source"]["row"] % 5 == 0)], line):
                    stream.append(each.to_json())
        stream.append(
            PairDecision("test0", "12:00", "a", "first", ("sha256:0", "sha256:1")).to_json()
        )
        stream.append(
            PairDecision("test0", "12:00", "a", "same", (made["base"].digest, "sha256:f")).to_json()
        )


ARGUMENTS = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "words": {"type": "array", "items": {"type": "string"}},
    },
    "additionalProperties": False,
}
TOOLS = tuple(Tool(name, "", ARGUMENTS).to_json() for name in LABELS[:-1])


@pytest.fixture(scope="module", params=["classify", "tag", "extract", "generate", "call"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A report on made-up answers, run as the pipeline runs it."""
    kind, tmp_path = request.param, tmp_path_factory.mktemp(request.param)
    data = Data(kind)
    schema = {"extract": tiny.SCHEMA, "tag": label_sets.schema(LABELS)}.get(kind)
    task = Task(
        kind,
        "",
        "",
        labels=LABELS if kind == "classify" else (),
        schema=schema,
        ordered=kind == "classify",
        tools=TOOLS if kind == "call" else (),
        call_form=OWN if kind == "call" else None,
        **({"must": ("Grüße",), "must_not": ("(?i)other",)} if kind == "generate" else {}),
    )

    def fill(place: Path) -> None:
        task.write(place)
        for split, rows in data.rows.items():
            write_jsonl(place / f"{split}.jsonl", rows)

    prepared = make(tmp_path, "prepared", {}, fill)
    sizes = {"Q8_0": 900, "Q4_K_M": 600, "Q2_K": 500}
    given: dict[str, Artifact | list[Artifact]] = {
        "prepared": prepared,
        "predictions": [
            predictions(tmp_path, data, "base", "test", 0.2, kind="base", size=3000),
            *(
                predictions(tmp_path, data, name, "test", 0.8, size=sizes[name])
                for name in ("Q8_0", "Q4_K_M")
            ),
            predictions(
                tmp_path,
                data,
                "production",
                "test",
                0.7,
                kind="release",
                release="desk 1.0",
                size=400,
            ),
            predictions(
                tmp_path,
                data,
                "general",
                "test",
                0.5,
                kind="endpoint",
                size=None,
                sha256="",
                shots=4,
            ),
        ],
        "released": seen(tmp_path, data),
        "validation": [
            predictions(tmp_path, data, name, "validation", skill, size=size)
            for (name, size), skill in zip(sizes.items(), (0.9, 0.88, 0.3), strict=True)
        ],
    }
    listed = given["predictions"]
    assert isinstance(listed, list)
    judge(tmp_path, data, {entry.metrics["model"]: entry for entry in listed})
    project = Project(root=tmp_path, config=config.parse(CONFIG, root=tmp_path))
    return runner.run(project, project.stage("evaluate").request(given)).artifact


def test_every_figure_is_found_again(made: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    failed, said = recompute.main(made.path), capsys.readouterr().out
    assert not failed, said[:3000]
    assert int(said.split()[0]) > 1000
    # and they are figures worth finding: nobody is all right or all wrong
    for model in made.metrics["models"].values():
        assert 0 < model["right"] < model["n"]
        assert model["invalid"] > 0
    assert (
        made.metrics["models"]["general"]["not_sent"]
        > 0
        < made.metrics["models"]["general"]["failed"]
    )
    assert made.metrics["choice"]["model"] is not None
    judged = made.metrics["judged"]
    assert {frozenset((entry["model"], entry["against"])) for entry in judged["entries"]} == JUDGED
    assert judged["entries"][0]["model"] == made.metrics["focus"]
    assert judged["of_others"] == 2


JUDGED = {
    frozenset(pair) for pair in (("Q4_K_M", "production"), ("Q8_0", "base"), ("Q8_0", "general"))
}
FIGURES = {
    "classify": [
        ("models", "Q8_0", "metrics", "macro_f1"),
        ("models", "Q8_0", "metrics", "mean_absolute_error"),
        ("pairs", "Q8_0|Q4_K_M", "metrics", "quadratic_kappa", "interval", 1),
        ("models", "Q8_0", "calibration", "bins", -1, "confidence"),
        ("models", "Q8_0", "confusion", 0, 2),
        ("pairs", "Q4_K_M|general", "metrics", "accuracy", "p"),
        ("pairs", "Q8_0|Q4_K_M", "slices", 0, "p_holm"),
        ("pairs", "base|Q8_0", "metrics", "macro_f1", "interval", 0),
        ("slices", 1, "values", "general"),
        ("release", "rows", "old", "differences", "Q8_0", "macro_f1", "difference"),
        ("release", "rows", "new", "values", "production", "accuracy"),
        ("release", "trained_on"),
    ],
    "tag": [
        ("models", "Q8_0", "metrics", "micro_f1"),
        ("models", "Q8_0", "per_class", "billing", "interval", 0),
        ("baselines", "tfidf_logistic", "metrics", "exact_match"),
        ("pairs", "Q8_0|Q4_K_M", "metrics", "macro_f1", "interval", 1),
        ("models", "Q8_0", "calibration", "bins", -1, "accuracy"),
    ],
    "extract": [
        ("models", "Q8_0", "metrics", "field_f1"),
        ("models", "Q8_0", "fields", "items[].qty", "recall"),
        ("pairs", "Q8_0|Q4_K_M", "metrics", "valid_json", "interval", 1),
        ("choice", "candidates", 0, "loss"),
    ],
    "call": [
        ("models", "Q8_0", "metrics", "tool_accuracy"),
        ("models", "Q8_0", "metrics", "no_call_recall"),
        ("models", "Q8_0", "fields", "billing.words[]", "recall"),
        ("models", "Q8_0", "per_class", "none", "support"),
        ("pairs", "Q8_0|Q4_K_M", "metrics", "valid_call", "interval", 1),
        ("baselines", "no_call", "metrics", "exact_match"),
        ("slices", 1, "values", "general"),
    ],
    "generate": [
        ("models", "Q8_0", "metrics", "chrf"),
        ("baselines", "copy", "metrics", "rouge_l"),
        ("models", "Q8_0", "metrics", "repetition"),
        ("models", "Q8_0", "intervals", "ungrounded", 1),
        ("models", "Q4_K_M", "metrics", "length_ratio"),
        ("slices", 1, "checks", "Q8_0", "missing_pattern"),
        ("models", "Q8_0", "intervals", "token_f1", 0),
        ("break_even", "models", "Q8_0", "share_of_capacity"),
        ("judged", "entries", 0, "interval", 0),
        ("judged", "entries", 1, "p"),
        ("judged", "entries", 1, "won"),
    ],
}


def test_a_figure_that_is_wrong_is_named(made: Artifact) -> None:
    """What checks must be able to fail: each figure is spoilt in turn."""
    wrong = recompute.Recomputed(made.path)
    ours = wrong.whole()
    theirs: Any = {
        name: value for name, value in wrong.report.items() if name not in recompute.WORDS_ONLY
    }
    if theirs["task"] == "generate":
        recompute.unordered(ours["pairs"], theirs["pairs"])
    for path in FIGURES[made.metrics["task"]]:
        at = theirs
        for key in path[:-1]:
            at = at[key]
        right = at[path[-1]]
        at[path[-1]] += 1 if isinstance(right, int) else 0.3
        _, faults = recompute.differences(ours, theirs)
        at[path[-1]] = right
        assert len(faults) == 1, (path, faults)
        assert str(path[-1]) in faults[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["extract", "generate", "call"])
def test_the_whole_chain_of_a_tiny_project(
    stages: Forks, kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    extra = "evaluate: {models: [base, adapter, gguf], choose: {smallest_within: 0.5}}\n"
    tagged = kind == "extract"
    if tagged:  # by an encoder beside the models
        extra += "encode: {encoder: ./words}\ngates: [{metric: field_f1, model: tagger, min: 0}]\n"
    folder = tiny.project(tmp_path / "desk", tiny_base, kind, extra=extra)
    tiny.build_encoder_folder(folder / "words")
    # without their sum, in which a model of 50 steps has no weight, so no release has it
    if tagged:
        tiny.ok(stages.run(folder, "run", "--until", "quantize"))
        tiny.ok(
            stages.run(
                folder,
                "evaluate",
                *(f"--model={name}" for name in ("encoder", "base", "adapter", "gguf")),
            )
        )
    else:
        tiny.ok(stages.run(folder, "run"))
    (report,) = (folder / "runs" / "report").iterdir()
    assert recompute.main(report) == 0
    assert ("tagger" in json.loads((report / "report.json").read_bytes())["baselines"]) == tagged
    if tagged:
        done = stages.run(folder, "run")
        assert done.returncode != 0 and "the file has no weight in the sum" in done.stderr
        return
    (release,) = (folder / "runs" / "published").iterdir()
    assert len(list(release.glob("*.gguf"))) == 1  # the chosen one alone is shipped


def test_the_tiny_projects_report(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (report,) = (tiny_run / "runs" / "report").iterdir()
    monkeypatch.setattr(sys, "argv", [recompute.__file__, str(report)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(recompute.__file__, run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().out[:3000]
