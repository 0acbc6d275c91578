"""encode of JSON answers: an encoder that tags words, from the rows to its row in a report."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import teacher, tiny

from slmctl import models
from slmctl.artifacts import artifact
from slmctl.errors import DataError, UsageError
from slmctl.inference import TAGGER_FILE
from slmctl.inference.engine import Request
from slmctl.models.model import Loading
from slmctl.models.onnx_encoder import load_tokenizer
from slmctl.models.tagger import Tagger
from slmctl.models.token_windows import Cutter
from slmctl.stages.encode import extraction, tagging, tuning_bounds
from slmctl.task.evidence import Evidence
from slmctl.task.field_habits import Row
from slmctl.task.records import read_records
from slmctl.task.spans import SpanMark

# the converter is a child that imports torch
pytestmark = pytest.mark.usefixtures("forked_children")

TEXT = {"type": "string"}
SCHEMA = {
    "type": "object",
    "required": ["goods", "place", "kind"],
    "additionalProperties": False,
    "properties": {
        "goods": {"type": "array", "items": TEXT},
        "place": {"type": ["string", "null"]},
        "kind": {"enum": ["ask", "thank"]},
    },
}
FILLER = [word for word in tiny.FILLER.split() if word not in ("house", "thanks")]


def rows(count: int, seed: int = 0, length: int = 5) -> list[Row]:
    """Texts whose goods are words of billing, whose place is one of
    delivery, and whose kind a word tells.
    """
    choose, made = random.Random(seed), list[Row]()
    for _ in range(count):
        goods, place = (
            choose.sample(tiny.WORDS["billing"], choose.randrange(3)),
            choose.choice(["truck", "doorstep", None]),
        )
        words = [*goods, *([place] if place else []), *choose.sample(FILLER * 20, length)]
        kind = choose.choice(["ask", "thank"])
        words += ["thanks"] if kind == "thank" else []
        choose.shuffle(words)
        made.append(
            (
                " ".join(words),
                {"goods": [word for word in words if word in goods], "place": place, "kind": kind},
            )
        )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_encoder_folder(tmp_path_factory.mktemp("encoder") / "words")


@pytest.fixture(scope="module")
def fitted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger that learned 300 rows; the tiny encoder begins at random,
    so it learns faster than a real one.
    """
    out = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tagging, "RATE", 3e-3)
        patch.setattr(tagging, "OF_HEAD", 1)
        patch.setattr(tagging, "TAG_STEPS", 300)
        tuned = extraction.fit(folder, SCHEMA, rows(300), rows(60, seed=1), out / "tuned")
        place, head = tuned.folder, tuned.head
    head.write(place / TAGGER_FILE)
    return place


@pytest.fixture
def cutter(folder: Path) -> Cutter:
    return Cutter(load_tokenizer(folder / "tokenizer.json"), 64)


def test_it_learns_to_answer_with_places_and_probabilities(fitted: Path) -> None:
    held = rows(100, seed=2)
    with Tagger(fitted) as tagger:
        answers = tagger.answers([text for text, _ in held])
    right = extraction.whole_right(answers, held)
    assert sum(right) > 90
    for (text, _), answer in zip(held, answers, strict=True):
        for place in answer.places:
            assert text[place["start"] : place["end"]] == place["value"] and place["page"] == 1
        assert 0 < answer.confidence <= 1 and all(0 < share <= 1 for share in answer.probabilities)
        assert len(answer.places) == len(answer.read.answer["goods"]) + (
            answer.read.answer["place"] is not None
        )
    sure = [answer.confidence for answer in answers]
    assert abs(sum(sure) / 100 - sum(right) / 100) < 0.1  # as often right as it says


def test_a_place_that_an_edge_cuts_is_learned_by_the_neighbour(cutter: Cutter) -> None:
    text = " ".join(random.Random(0).choices(FILLER, k=400))
    words = Evidence(text).words
    marks = [SpanMark(0, words[k][0], words[k + 5][1]) for k in range(0, 394, 7)]
    examples = list(tagging._examples(cutter, tagging.TaggedRow(text, {"kind": "ask"}, marks)))
    begun = 0
    for example in examples:
        for before, own in itertools.pairwise([0, *example.classes]):
            assert own != 2 or before in (1, 2)  # none goes on that did not begin
        begun += example.classes.count(1)
    assert begun >= len(marks) and any(tagging.UNKNOWN in example.classes for example in examples)


def test_the_weights_that_make_held_out_rows_likeliest_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    kept: list[Any] = []
    made = tagging._Learner.__init__
    monkeypatch.setattr(tagging, "TAG_STEPS", 24)

    def begin(self: Any, *args: Any) -> None:
        made(self, *args)
        kept.append(self)

    def loss(self: Any, held: Any) -> float:
        kept.append(float(self.layer.detach().sum()))
        return next(losses)

    monkeypatch.setattr(tagging._Learner, "__init__", begin)
    monkeypatch.setattr(tagging._Learner, "_loss", loss)
    extraction.fit(folder, SCHEMA, rows(40), rows(5, seed=1), folder.parent / "looked")
    assert float(kept[0].layer.detach().sum()) == kept[2] and len(kept) == 7


def test_work_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (
        tuning_bounds.tagging_seconds(100, 50, 23e6),
        tuning_bounds.tagging_seconds(1e6, 50, 23e6),
    )
    assert 0 < few < many == tuning_bounds.tagging_seconds(1e7, 50, 23e6) < 1000
    monkeypatch.setattr(tagging, "TAG_WORK", 1.0)
    # one step, and no validation row
    tuned = extraction.fit(folder, SCHEMA, rows(40), [], folder.parent / "bounded")
    assert tuned.head.powers == (1.0, 1.0)


CONFIG = """\
encode: {encoder: ./words}
evaluate: {models: [gguf]}
gates: [{metric: exact_match, model: Q8_0, against: tagger, min_gain: 0}]
"""


@pytest.fixture(scope="module")
def encoded(tiny_base: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of kind extract after `encode`."""
    desk = tmp_path_factory.mktemp("extract") / "desk"
    desk.mkdir()
    tiny.project(desk, tiny_base, "extract", extra=CONFIG)
    shutil.copytree(folder, desk / "words")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tagging, "TAG_STEPS", 20)
        for stage in ("pull", "prepare", "encode"):
            teacher.slmctl(desk, stage)
    return desk


def test_the_artifact_says_how_each_field_is_read(encoded: Path) -> None:
    (path,) = encoded.glob("runs/encoder/[!.]*")
    made = artifact.load(path)
    assert not artifact.verify(made)
    assert {entry.path for entry in made.manifest.files} == {
        "encoder.onnx",
        "tokenizer.json",
        "encoder.json",
        TAGGER_FILE,
        "task.json",
    }
    facts = made.metrics
    assert facts["fields"]["items[].name"]["read"] == "tagged as text"
    topic = facts["fields"]["topic"]
    assert (
        topic["read"] == "concluded from the whole text, of 3 values"
        and topic["standing"] == 0 < topic["values"]
    )
    assert (facts["license"], facts["weights_in"]) == ("mit", "int8") and 0 <= facts[
        "right"
    ] <= facts["rows"]


def test_a_report_has_it_as_a_baseline(encoded: Path) -> None:
    teacher.slmctl(encoded, "evaluate", "--model", "encoder")
    (path,) = encoded.glob("runs/report/[!.]*/report.json")
    report = json.loads(path.read_text())
    assert [*report["participants"]] == ["copy", "empty", "tagger"]
    assert report["models"]["tagger"]["kind"] == "encoder"
    (made,) = encoded.glob("runs/predictions/[!.]*/predictions.jsonl")
    lines = [json.loads(line) for line in made.read_text().splitlines()]
    assert all(0 < line["confidence"] <= 1 and json.loads(line["answer"]) for line in lines)


def test_it_answers_a_file(encoded: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\ninvoice refund please\n")
    teacher.slmctl(
        encoded,
        "predict",
        "encoder",
        "--input",
        str(tmp_path / "in.csv"),
        "--output",
        str(tmp_path / "o.csv"),
    )
    assert "topic" in (tmp_path / "o.csv").read_text()


def test_a_release_without_a_language_model_answers_as_it_was_measured(encoded: Path) -> None:
    teacher.slmctl(encoded, "run", "--yes", "--set", "publish.model=linear", "--set", "gates=[]")
    (path,) = encoded.glob("runs/published/[!.]*")
    release = artifact.load(path)
    assert (
        not artifact.verify(release)
        and (path / TAGGER_FILE).is_file()
        and not [*path.glob("*.gguf")]
    )
    (lines,) = [
        path.read_text().splitlines()
        for path in encoded.glob("runs/predictions/[!.]*/predictions.jsonl")
        if json.loads((path.parent / "model.json").read_text())["kind"] == "linear"
    ]
    measured = [json.loads(line) for line in lines]
    (prepared,) = encoded.glob("runs/prepared/[!.]*")
    texts = [record.input for record in read_records(prepared / "test.jsonl")]
    with models.of(release).load(Loading()) as loaded:
        requests = [Request("", question=text, schema="{}") for text in texts]
        answers = [answer for _, answer in loaded.ask_all(requests)]
        one = loaded.ask(requests[0])
    assert [(answer.text, answer.confidence) for answer in answers] == [
        (line["answer"], line["confidence"]) for line in measured
    ]
    assert one.text == answers[0].text and one.confidence == pytest.approx(
        answers[0].confidence, abs=0.01
    )


@pytest.mark.parametrize(
    ("schema", "setting", "why"),
    [
        ({"type": "object"}, "encode.tune=true", "the schema names no field"),
        (tiny.SCHEMA, "encode.tune=false", "a tagger is an encoder that learns"),
    ],
)
def test_what_cannot_be_tagged_is_refused(
    encoded: Path, tmp_path: Path, schema: Any, setting: str, why: str
) -> None:
    desk = Path(shutil.copytree(encoded, tmp_path / "desk"))
    (desk / "schema.json").write_text(json.dumps(schema))
    with pytest.raises((DataError, UsageError), match=why):
        for stage in ("prepare", "encode"):
            teacher.slmctl(desk, stage, "--set", setting)
