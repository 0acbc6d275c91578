"""Windows of long texts, and what a model learns of each."""

import itertools
import json
import re
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.errors import DataError
from slmctl.task.contract import Task
from slmctl.task.documents import (
    WindowForm,
    allows_null,
    resolved,
    standing,
    training,
    window_schema,
    windows,
)
from slmctl.task.evidence import Evidence
from slmctl.task.records import Record

FORM = WindowForm(size=200, overlap=40)
SENTENCES = st.lists(
    st.text(alphabet="abcäß .\n\f-17", min_size=1, max_size=80), min_size=1, max_size=40
)


@given(SENTENCES)
@settings(max_examples=200, deadline=None)
def test_windows_hold_every_word_of_a_text_and_none_is_longer_than_its_form(
    parts: list[str],
) -> None:
    text = "word ".join(parts)
    made = windows(text, FORM)
    assert all(window.end - window.start <= FORM.size for window in made)
    covered = 0
    for window in made:
        assert not text[covered : window.start].strip(), "a word between two windows"
        assert (window.start >= 0 and window.end > covered) or len(made) == 1
        covered = window.end
    assert not text[covered:].strip()


def test_windows_end_at_paragraphs_and_no_word_is_cut() -> None:
    text = "\n\n".join(f"Paragraph {k} " + "with some words " * 5 for k in range(12))
    made = windows(text, FORM)
    assert len(made) > 5
    for window in made[:-1]:
        assert text[window.end - 2 : window.end] == "\n\n"
    cut = windows("wording " * 100, FORM)
    assert all(set(window.body.split()) == {"wording"} for window in cut)


def test_a_window_says_its_page_and_a_text_of_one_window_nothing() -> None:
    pages = "\f".join("A line of this page.\n" * 9 for _ in range(3))
    made = windows(pages, FORM)
    assert made[0].text.startswith("[page 1 of 3]\nA line")
    assert made[-1].text.startswith("[page 3 of 3]\n")
    assert not any("\f" in window.text for window in made)
    assert windows("short\ftext", FORM)[0].text == "short\ntext"
    assert windows("x " * 200, FORM)[1].title == f"[part 2 of {len(windows('x ' * 200, FORM))}]\n"


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("zum 1. März 2024 kündbar", "2024-03-01", "1. März 2024"),
        ("on March 1st, 2024", "2024-03-01", "March 1st, 2024"),
        ("am 01.03.2024", "2024-03-01", "01.03.2024"),
        ("dated 2024-03-01.", "2024-03-01", "2024-03-01"),
        ("on 3/1/2024", "2024-03-01", "3/1/2024"),
        ("on 32.13.2024", "2024-03-01", None),
        ("eine Gebühr von EUR 4.800,00 im Jahr", 4800, "4.800,00"),
        ("a fee of $4,800.50", 4800.5, "4,800.50"),
        ("12 500 Euro", 12500, "12 500"),
        ("1'200.- Franken", 1200, "1'200"),
        ("Nr. 14800", 4800, None),
        (
            "the law of  the\nNetherlands applies",
            "The Law of the Netherlands",
            "the law of  the\nNetherlands",
        ),
        ("die Nordwind-Werke AG, Kiel", "nordwind-werke ag", "Nordwind-Werke AG"),
        ("Nordwinde", "Nordwind", None),
        ("el 3 de mayo de 2024", "2024-05-03", "3 de mayo de 2024"),
        ("il 12 settembre 2024", "2024-09-12", "12 settembre 2024"),
        ("el 12 de septiembre del 2024", "2024-09-12", "12 de septiembre del 2024"),
        ("le 1er mai 2024", "2024-05-01", "1er mai 2024"),
        ("on the 3rd of May 2024", "2024-05-03", "3rd of May 2024"),
        ("on 3-May-2024", "2024-05-03", "3-May-2024"),
        ("Stand 20240503, Nr. 20249999", "2024-05-03", "20240503"),
        ("Nr. 120240503", "2024-05-03", None),
        ("ab Mai 2024", "2024-05", "Mai 2024"),
        ("mayo de 2024", "2024-05", "mayo de 2024"),
        ("am 3. Mai 2024", "2024-05", "Mai 2024"),
        ("seit 05/2024", "2024-05", "05/2024"),
        ("am 03.05.2024", "2024-05", None),
        ("seit 2024-05", "2024-05", "2024-05"),
        ("Juni 2024", "2024-05", None),
        ("v1.2.3 of it", "1.2.3", "1.2.3"),
        ("v1.2.3 of it", "v1.2.3", "v1.2.3"),
        ("rev1.2", "1.2", None),
        ("Saldo: -12,50", -12.5, "12,50"),
        ("Wartung 2 450,00", 450, "450,00"),
        ("Wartung 2 450,00", 2, "2"),
        ("am 12.03.98", "1998-03-12", "12.03.98"),
        ("Herr Mu\u0308ller", "Müller", "Mu\u0308ller"),
        ("Preise in €", "€", "€"),
        ("yes", True, None),
        ("anything", "…", None),
    ],
)
def test_a_value_is_found_however_it_is_written(
    text: str, value: object, found: str | None
) -> None:
    assert next((text[start:end] for start, end in Evidence(text).spans(value)), None) == found


SCHEMA = {
    "type": "object",
    "properties": {
        "fee": {"type": "number"},
        "law": {"type": "string", "enum": ["Dutch law", "German law"]},
        "parts": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object", "properties": {"name": {"type": "string"}}},
        },
        "renewed": {"type": "boolean"},
    },
    "required": ["fee"],
}
TASK = Task("extract", "{{ messages }}", "", schema=SCHEMA, document=FORM)
FILLER = "Nothing of interest stands in this paragraph at all.\n\n"


def record(text: str, answer: object) -> Record:
    messages = (
        {"role": "user", "content": text},
        {"role": "assistant", "content": json.dumps(answer, sort_keys=True)},
    )
    return Record("0" * 16, messages, {"file": "contracts", "row": 1})


def test_a_window_of_training_holds_what_stands_in_it() -> None:
    said = "The yearly fee is 4,800 euros.", "Dutch law applies.", "Parts: a pump.", ""
    text = f"\n\n{FILLER * 12}".join(said)
    answer = {"fee": 4800, "law": "Dutch law", "parts": [{"name": "pump"}], "renewed": True}
    made = training([record(text, answer)], TASK)
    targets = [json.loads(each.answer) for each in made]
    assert [target["fee"] for target in targets if target["fee"] is not None] == [4800]
    assert {target["law"] for target in targets} == {None, "Dutch law"}
    assert sum(bool(target["parts"]) for target in targets) in (1, 2)  # windows overlap
    # stands nowhere: learned of each window, as a label is
    assert all(target["renewed"] is True for target in targets)
    empty = [
        target
        for target in targets
        if target == {"fee": None, "law": None, "parts": [], "renewed": True}
    ]
    assert 1 <= len(empty) <= len(made) / 2 < len(windows(text, FORM)) / 2
    for target in targets:
        jsonschema.validate(target, window_schema(SCHEMA))
    assert standing([record(text, answer)], SCHEMA) == {
        "fee": [1, 1],
        "law": [1, 1],
        "parts[].name": [1, 1],
        "renewed": [1, 1],
    }
    unsaid = record(
        f"The yearly fee is 4,800 euros.\n\n{FILLER * 12}", {"fee": 9, "law": "German law"}
    )
    assert {json.loads(each.answer)["law"] for each in training([unsaid], TASK)} == {"German law"}
    assert standing([unsaid], SCHEMA) == {"fee": [1, 0], "law": [1, 1]}


def test_windows_of_a_label_share_one_weight_and_short_rows_stay_as_they_are() -> None:
    task = replace(TASK, kind="classify", labels=("a", "b"), schema=None)
    long, short = record("words " * 100, "x"), record("short", "x")
    made = training([long, short], task)
    assert sum(each.messages[-1].get("weight", 1) for each in made[:-1]) == pytest.approx(
        1, abs=1e-5
    )
    assert made[-1] == short
    assert training([long], replace(task, document=None)) == [long]


def test_the_schema_of_a_window_takes_null() -> None:
    wide = window_schema(SCHEMA)
    assert wide["required"] == ["fee", "law", "parts", "renewed"]
    assert allows_null(wide["properties"]["fee"]) and allows_null(wide["properties"]["law"])
    assert "minItems" not in wide["properties"]["parts"]
    assert re.search("anyOf", json.dumps(wide))


@pytest.mark.parametrize(
    "part",
    [
        "Some words of a paragraph that is not long at all.\n\n",
        "Some words. ",
        "eins zwei ",
        "合同条款文本内容。",
        "word",
    ],
)
def test_two_windows_share_what_the_form_says(part: str) -> None:
    made = windows(part * (4000 // len(part)), WindowForm(size=800, overlap=100))
    shared = [first.end - second.start for first, second in itertools.pairwise(made)]
    assert min(shared) >= 100 and max(shared) <= 300 and len(made) < 10


def test_nested_models_and_nullable_objects_are_learned_as_the_schema_says() -> None:
    schema = {
        "$defs": {
            "Party": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "required": ["name"],
            }
        },
        "type": "object",
        "required": ["by", "to"],
        "properties": {
            "by": {"$ref": "#/$defs/Party"},
            "to": {"anyOf": [{"$ref": "#/$defs/Party"}, {"type": "null"}]},
        },
        "additionalProperties": {"type": "string"},
    }
    text = f"By Nordwind.\n\n{FILLER * 12}To Sunrise.\n\n{FILLER * 12}More: extra."
    answer = {"by": {"name": "Nordwind"}, "to": {"name": "Sunrise"}, "more": "extra"}
    targets = [
        json.loads(each.answer)
        for each in training([record(text, answer)], replace(TASK, schema=schema))
    ]
    wide = window_schema(resolved(schema))
    for target in targets:
        jsonschema.validate(target, wide)
    assert {"by": {"name": "Nordwind"}, "to": None} in targets
    assert {"by": {"name": None}, "to": None, "more": "extra"} in targets
    with pytest.raises(DataError, match="refers to itself"):
        resolved(
            {"$defs": {"A": {"properties": {"a": {"$ref": "#/$defs/A"}}}}, "$ref": "#/$defs/A"}
        )
    with pytest.raises(DataError, match="not local"):
        resolved({"$ref": "https://example.org/schema"})
