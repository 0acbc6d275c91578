"""Several labels of a row: every way in which cells name them, the one in
which they are answered, and the chain.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from support import recompute, tiny
from support.forks import Forks
from support.serving import ask, begin, end

from slmctl.network.openai_client import constraint
from slmctl.task import label_sets, untuned_prompt
from slmctl.task.contract import Task
from slmctl.task.records import RowRejectedError


@pytest.mark.parametrize(
    ("cell", "separator", "labels"),
    [
        ("billing; legal", None, ["billing", "legal"]),
        ("billing|legal ; ;", None, ["billing", "legal"]),
        ("billing\nlegal", None, ["billing", "legal"]),
        ("Refund, partial; Lärm", None, ["Refund, partial", "Lärm"]),
        ("billing, legal", ",", ["billing", "legal"]),
        ("a;b / c", " / ", ["a;b", "c"]),
        ("[urgent] billing", None, ["[urgent] billing"]),
        ('["billing", " legal"]', None, ["billing", "legal"]),
        # as pandas writes a list into CSV
        ("['billing', 'legal, tax']", None, ["billing", "legal, tax"]),
        ("['late', \"won't pay\"]", None, ["late", "won't pay"]),
        ("['late'  , 'billing']", None, ["late", "billing"]),
        ("[]", ";", []),
        (
            '{"billing": 1, "legal": 0, "tax": "x", "vat": null, "iva": true, "tva": "no"}',
            None,
            ["billing", "tax", "iva"],
        ),
        # such marks became labels
        (
            '{"billing": "t", "legal": "f", "tax": "WAHR", "vat": "Falsch", "iva": "vrai", "tva": '
            '"FAUX", "on": "on",'
            ' "off": "off"}',
            None,
            ["billing", "tax", "iva", "on"],
        ),
        ("on; f", None, ["on", "f"]),
        ('["on", "off"]', None, ["on", "off"]),
        ('{"label1": "billing", "label2": "legal", "label3": null}', None, ["billing", "legal"]),
    ],
)
def test_a_cell_names_labels(cell: str, separator: str | None, labels: list[str]) -> None:
    assert label_sets.read(cell, separator) == labels


@pytest.mark.parametrize(
    ("cell", "rule"),
    [
        (" ; ", "empty answer"),
        ("[1, 2]", "bad labels"),
        ("[[]]", "bad labels"),
        ("['a', None]", "bad labels"),
        ("[late, billing]", "bad labels"),
        ('{"a": 2}', "bad labels"),
        ('{"a": "0.5"}', "bad labels"),
        ('{"a": [1]}', "bad labels"),
        ("[" * 9000 + "]", "bad labels"),
    ],
)
def test_a_cell_that_names_none_is_rejected(cell: str, rule: str) -> None:
    with pytest.raises(RowRejectedError) as caught:
        label_sets.read(cell)
    assert caught.value.rule == rule


def test_labels_are_answered_once_and_in_one_order() -> None:
    assert label_sets.written(["legal", "billing", "legal"], None) == '["billing", "legal"]'
    assert (
        label_sets.written(["legal", "billing"], ["tax", "legal", "billing"])
        == '["legal", "billing"]'
    )
    assert label_sets.written([], ["tax"]) == "[]"


TASK = Task("tag", "", "", schema=label_sets.schema(["billing", "legal", "legal advice"]))


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ('["legal", "billing"]', '["billing", "legal"]'),
        ('Here they are:\n```json\n["Billing"]\n```', '["billing"]'),
        ("billing, legal advice", '["billing", "legal advice"]'),
        ("[]", "[]"),
        ("I do not know", "I do not know"),
    ],
)
def test_a_general_models_reply_is_read_kindly(reply: str, answer: str) -> None:
    assert untuned_prompt.read(TASK, reply) == answer


def test_the_prompt_of_a_general_model_names_the_labels() -> None:
    assert "[] for none, and nothing else: billing, legal, legal advice" in untuned_prompt.brief(
        TASK
    )


def test_another_server_gets_no_keyword_that_it_refuses_and_its_answer_is_brought_into_order() -> (
    None
):
    (form,) = constraint(TASK.labels, TASK.rules.constraint()).values()
    assert form["json_schema"]["schema"] == {"type": "array", "items": TASK.schema["items"]}  # type: ignore[index]
    assert TASK.rules.kept('["legal", "billing", "legal"]') == '["billing", "legal"]'
    assert TASK.rules.kept('["legal", "weather"]') == '["legal", "weather"]'
    assert not TASK.accepts('["legal", "weather"]')


@pytest.mark.slow
def test_the_whole_chain_of_several_labels(
    stages: Forks, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.project(
        tmp_path / "desk", tiny_base, "tag", extra="evaluate: {models: [base, gguf]}\n"
    )
    tiny.ok(stages.run(folder, "run", "--yes"))
    (prepared,) = (folder / "runs" / "prepared").glob("*/task.json")
    labels = sorted(tiny.WORDS)
    assert json.loads(prepared.read_bytes())["schema"] == label_sets.schema(labels)
    (report,) = (folder / "runs" / "report").glob("*/report.json")
    figures = json.loads(report.read_bytes())
    assert figures["models"]["Q8_0"]["metrics"]["exact_match"] > 0
    assert figures["models"]["Q8_0"]["invalid"] == 0
    assert set(figures["baselines"]) == {"majority", "tfidf_logistic"}
    monkeypatch.setattr(recompute, "RESAMPLES", 2000)  # of so few rows the tails of fewer are rough
    assert recompute.main(report.parent) == 0
    assert "interval of F1" in (report.parent / "report.html").read_text(encoding="utf-8")
    asked, out = tiny.write_csv(tmp_path / "asked.csv", tiny.rows(5)), tmp_path / "out.csv"
    tiny.ok(
        stages.run(
            folder, "predict", "--input", f"{asked}", "--column", "text", "--output", f"{out}"
        )
    )
    with out.open(encoding="utf-8", newline="") as stream:
        assert all(set(json.loads(row["answer"])) <= set(labels) for row in csv.DictReader(stream))
    mailed = shutil.copytree(
        folder / "registry" / "tiny-tag" / "1.0", tmp_path / "elsewhere" / "release"
    )
    child, url = begin(mailed.parent, str(mailed))
    answer = json.loads(
        ask(url, "please refund my invoice").json()["choices"][0]["message"]["content"]
    )
    assert answer == [label for label in labels if label in answer]
    end(child)
