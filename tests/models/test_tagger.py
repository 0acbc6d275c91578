"""A tagger that answers: windows of tokens, the likeliest places, its file, and what it refuses."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny

from slmctl.errors import IntegrityError
from slmctl.inference import ENCODER, TAGGER_FILE
from slmctl.metrics.encoder_head import EncoderHead
from slmctl.metrics.label_sum import LabelSum
from slmctl.metrics.likelihood import normalised
from slmctl.model_files import encoder_onnx
from slmctl.models.onnx_encoder import Encoder, Floats, load_tokenizer
from slmctl.models.tagger import Tagger, TaggerHead, classes_of, marks_of
from slmctl.models.token_windows import LONGEST, Cutter
from slmctl.task.evidence import Evidence
from slmctl.task.field_habits import Habit
from slmctl.task.span_values import Reader
from slmctl.task.spans import SpanMark

SCHEMA = {
    "type": "object",
    "required": ["goods", "place", "kind"],
    "properties": {
        "goods": {"type": "array", "items": {"type": "string"}},
        "place": {"type": ["string", "null"]},
        "kind": {"enum": ["ask", "thank"]},
    },
}
GOODS, PLACES = "lamp kettle chair", "garden office"
FILLER = [word for word in tiny.FILLER.split() if word not in f"{GOODS} {PLACES} thanks".split()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose vector of a word follows from the word alone,
    with a tagger that knows some words.
    """
    out = tiny.build_encoder(tmp_path_factory.mktemp("tagger") / "words")
    encoder_onnx.adopt(out / "model.onnx", out / ENCODER, "mean")
    tokenizer = load_tokenizer(out / "tokenizer.json")

    def vectors(words: str) -> Floats:
        """The sum of the vectors of words, scaled so that one of them has the score 12."""
        tokens = [tokenizer.token_to_id(word) for word in words.split()]
        with Encoder(out) as encoder:
            (states,) = encoder.read([tokens], lambda states, _: states)
        return (12 * states / (states**2).sum(axis=1, keepdims=True)).sum(axis=0)

    weights = np.zeros((7, 64), np.float32)  # none, goods, place, kind
    weights[1], weights[3] = vectors(GOODS), vectors(PLACES)
    bias = np.array([6, 0, 0, 0, 0, -20, -20], np.float32)
    # of vectors of length 1
    asks = np.stack([np.zeros(64), 10 * vectors("thanks")]).astype(np.float32)
    labels = '"ask"', '"thank"'
    concluded = LabelSum(
        labels, {"encoder": 1.0}, EncoderHead(labels, asks, np.array([2, 0], np.float32)), None
    )
    habits = [
        Habit(9, 9),
        Habit(9, 9),
        Habit(9, 0, concluded=("ask", "thank"), endings={"s": (1, "")}),
    ]
    head = TaggerHead(Reader.of(SCHEMA, habits), weights, bias, {2: concluded})
    head.write(out / TAGGER_FILE)
    return out


def test_it_answers_texts_with_places_and_probabilities(folder: Path) -> None:
    text = "please lamp today my\fgarden again chair"
    with Tagger(folder) as tagger:
        answer, empty, thanks = tagger.answers([text, "", "thanks thanks"])
    assert json.loads(answer.text) == {"goods": ["lamp", "chair"], "place": "garden", "kind": "ask"}
    assert [
        (each["path"], text[each["start"] : each["end"]], each["page"]) for each in answer.places
    ] == [("goods[]", "lamp", 1), ("goods[]", "chair", 2), ("place", "garden", 2)]
    assert all(
        each["value"] == text[each["start"] : each["end"]] in each["around"]
        for each in answer.places
    )
    assert (
        0.3 < answer.confidence < min(answer.probabilities) <= 1 and len(answer.probabilities) == 4
    )
    assert (
        json.loads(empty.text) == {"goods": [], "place": None, "kind": "ask"} and not empty.places
    )
    assert json.loads(thanks.text)["kind"] == "thank"


def test_vectors_of_rows_are_those_of_texts(folder: Path) -> None:
    text = "please lamp today"
    tokens = load_tokenizer(folder / "tokenizer.json").encode(text).ids
    with Encoder(folder) as encoder:
        (read,) = encoder.read([tokens], lambda states, vector: (states, vector))
        assert encoder.read([], lambda states, vector: vector) == []
        assert np.allclose(encoder.encode([text])[0], read[1]) and read[0].shape == (
            len(tokens),
            encoder.size,
        )


def test_a_long_text_is_read_in_windows_as_it_is_alone_or_beside_others(folder: Path) -> None:
    choose = random.Random(0)
    texts, goods = list[str](), list[list[str]]()
    for length in (500, 90, 200):
        words = choose.choices(FILLER, k=length)
        for word in GOODS.split():
            words.insert(choose.randrange(length), word)
        texts.append(" ".join(words))
        goods.append([word for word in words if word in GOODS.split()])
    with Tagger(folder) as tagger:
        together = [json.loads(answer.text) for answer in tagger.answers(texts)]
        alone = [json.loads(tagger.answers([text])[0].text) for text in texts]
    assert together == alone and [answer["goods"] for answer in alone] == goods


def test_windows_hold_every_word_whole_and_each_is_decided_once(folder: Path) -> None:
    cutter = Cutter(load_tokenizer(folder / "tokenizer.json"), 64)
    text = " ".join(random.Random(0).choices(FILLER, k=400))
    evidence = Evidence(text)
    windows = cutter.windows(evidence)
    assert len(windows) > 5 and all(len(each.tokens) <= min(64, LONGEST) for each in windows)
    assert [k for each in windows for k in range(*each.own)] == list(range(len(evidence.words)))
    for window, after in itertools.pairwise(windows):
        assert window.first <= window.own[0] < window.own[1] <= window.end
        # they overlap; a word in both is of the one in which it stands further in
        assert after.first < window.end
        assert abs((window.end - window.own[1]) - (after.own[0] - after.first)) <= 1
    assert [cutter.windows(Evidence(text)) for text in ("", "\n \n")] == [[], []]


def test_marks_are_the_likeliest_path_and_come_back_from_their_classes() -> None:
    text = "ab cd, ef gh ij"
    evidence = Evidence(text)
    marks = [SpanMark(0, 0, 5), SpanMark(1, 7, 9), SpanMark(1, 10, 15)]
    classes = classes_of(evidence, marks)
    assert classes == [1, 2, 0, 3, 3, 4]
    logprobs = normalised(8.0 * np.eye(5)[classes])
    assert [SpanMark(mark.field, *mark.span) for mark in marks_of(logprobs, evidence)] == marks
    # a field cannot go on before it begins
    logprobs[0] = normalised(np.array([[0.0, 1.0, 2.0, 0, 0]]))
    assert [mark.span for mark in marks_of(logprobs, evidence) if mark.field == 0] == [(0, 5)]
    nothing = normalised(np.tile([5.0, 0, 0, 1, 0], (6, 1)))
    assert not list(marks_of(nothing, evidence))
    (mark,) = marks_of(nothing, evidence, needed=[1])
    assert mark.field == 1 and mark.span == (0, 2) and mark.logprob < -3


def test_what_is_written_is_read(folder: Path, tmp_path: Path) -> None:
    with Tagger(folder) as tagger:
        head = tagger.head
    head.write(tmp_path / TAGGER_FILE)
    again = TaggerHead.read(tmp_path / TAGGER_FILE, 64)
    assert again.reader == head.reader and again.reader.habits[2].endings == {"s": (1, "")}
    assert (again.sharpness, again.powers) == (1.0, (1.0, 1.0)) and again.concluded[
        2
    ].labels == head.concluded[2].labels
    assert np.array_equal(again.weights, head.weights) and np.array_equal(again.bias, head.bias)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, facts: {"weights": arrays["weights"][:-1]},
        lambda arrays, facts: {"weights": arrays["weights"][:, :-1]},
        lambda arrays, facts: {"bias": np.full(7, np.nan, np.float32)},
        lambda arrays, facts: {"facts": np.array(["{}"])},
        lambda arrays, facts: {
            "facts": np.array([json.dumps(facts | {"habits": facts["habits"][1:]})])
        },
        lambda arrays, facts: {"facts": np.array([json.dumps(facts | {"habits": [{"x": 1}] * 3})])},
        lambda arrays, facts: {
            "facts": np.array([json.dumps(facts | {"schema": {"type": "object"}})])
        },
        lambda arrays, facts: {"facts": np.array([json.dumps(facts | {"powers": 1})])},
    ],
)
def test_a_file_that_was_changed_is_refused(folder: Path, tmp_path: Path, change: Any) -> None:
    with np.load(folder / TAGGER_FILE, allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in kept.files}
    facts = json.loads(str(arrays["facts"][0]))
    np.savez(tmp_path / TAGGER_FILE, allow_pickle=False, **(arrays | change(arrays, facts)))
    with pytest.raises(IntegrityError):
        TaggerHead.read(tmp_path / TAGGER_FILE, 64)
