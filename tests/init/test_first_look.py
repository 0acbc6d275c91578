"""What is seen in raw rows at a first look: columns, languages, and the schema of JSON answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import EXAMPLES

from slmctl.init import column_names, levels
from slmctl.init import look as first_look
from slmctl.init.answer_schema import SchemaBuilder, closed_lists
from slmctl.init.columns import describe
from slmctl.metrics import label_typos as label_spellings
from slmctl.metrics.label_typos import alike_labels, label_typos
from slmctl.sources.rows import Row, read_rows
from slmctl.task import language

# One sentence about a parcel in each language, as a customer would write it.
SENTENCES = {
    "en": "Where is my parcel? It was due on Friday and it has not been delivered yet.",
    "de": "Wo ist mein Paket? Es sollte am Freitag kommen und ist noch nicht da.",
    "fr": "Où est mon colis ? Il devait arriver vendredi et il n'est pas encore là.",
    "es": "¿Dónde está mi paquete? Tenía que llegar el viernes y todavía no ha llegado.",
    "it": "Dove è il mio pacco? Doveva arrivare venerdì e non è ancora qui con me.",
    "nl": "Waar is mijn pakket? Het zou vrijdag komen en het is er nog niet.",
    "pt": "Onde está o meu pacote? Devia chegar na sexta-feira e ainda não chegou.",
    "pl": "Gdzie jest moja paczka? Miała przyjść w piątek i jeszcze jej nie ma.",
    "ru": "Где моя посылка? Она должна была прийти в пятницу.",
    "ja": "私の荷物はどこですか。金曜日に届くはずでした。",
    "zh": "我的包裹在哪里？应该在星期五送到。",
    "el": "Πού είναι το δέμα μου; Έπρεπε να φτάσει την Παρασκευή.",
}


def look(columns: dict[str, Sequence[Any]]) -> first_look.FirstLook:
    rows = zip(*columns.values(), strict=True)
    return first_look.look(
        Row(k, dict(zip(columns, row, strict=True))) for k, row in enumerate(rows, 1)
    )


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_has_its_language(code: str) -> None:
    assert language.of_text(SENTENCES[code]) == code


def test_languages_of_many_texts_are_named_with_their_shares() -> None:
    texts = [SENTENCES["de"]] * 8 + [SENTENCES["en"]] * 2 + ["12345", "", "OK"]
    found = language.of_texts(texts)
    assert (found.main, str(found)) == (
        "de",
        "German (80 % of the texts), English (20 % of the texts)",
    )
    # a word of each of two
    assert str(language.of_texts(["12", "xyz", "the und"])) == "not recognised"
    # abbreviations of German notes were words of Polish (z, u) and French (d)
    assert language.of_text("Heizung defekt, z. B. Thermostat u. Ventil") == ""
    assert language.of_text("Termin d. Technikers") == ""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Kategorie", "label"),
        ("ticket_category", "label"),
        ("Ticketkategorie", "label"),
        ("Catégorie", "label"),
        ("categoría", "label"),
        ("Łabel", "label"),
        ("Nachricht", "text"),
        ("emailBody", "text"),
        ("Treść", "text"),
        ("Betreff", "subject"),
        ("Kunden-Nr.", "group"),
        ("customerId", "group"),
        ("Antwort", "answer"),
        ("Priorität", "unlikely label"),
        ("Abteilung", "likely label"),
    ],
)
def test_names_suggest_what_columns_hold(name: str, kind: str) -> None:
    assert column_names.suggests(name, kind)


def test_a_name_suggests_nothing_by_chance() -> None:
    assert not [kind for kind in column_names.WORDS if column_names.suggests("colour", kind)]


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("a", [f"T-{k:04}" for k in range(100)], "id"),
        ("a", list(range(100)), "id"),
        ("customer", [f"C-{k % 40}" for k in range(100)], "group"),
        ("customer", [k % 40 for k in range(100)], "group"),
        # half of the rows in one group
        ("customer", ["C-1"] * 50 + [f"C-{k % 20}" for k in range(50)], "value"),
        ("a", [f"2025-01-{1 + k % 28:02}T10:00" for k in range(100)], "time"),
        ("a", [f"{1 + k % 28}.01.2025 10:00" for k in range(100)], "time"),
        ("a", [f"{k},50 €" for k in range(100)], "number"),
        ("a", [k / 7 for k in range(100)], "number"),
        ("rating", [k % 5 + 1 for k in range(100)], "label"),
        ("a", ["billing", "delivery"] * 50, "label"),
        ("a", [True, False] * 50, "label"),
        ("a", ["the same"] * 100, "constant"),
        ("a", ["", None] * 50, "empty"),
        ("a", [{"x": k} for k in range(100)], "JSON"),
        ("a", [json.dumps({"x": k}) for k in range(100)], "JSON"),
        ("a", [f"word {k} and some more words" for k in range(100)], "text"),
        ("name", [f"Person{chr(65 + k % 26)}{chr(65 + k // 26)}" for k in range(100)], "value"),
    ],
    ids=str,
)
def test_a_column_is_what_its_values_are(name: str, cells: list[Any], kind: str) -> None:
    assert describe(name, cells).kind == kind


def test_only_iso_times_are_for_a_split_by_time() -> None:
    assert describe("a", ["2025-01-01", "2025-01-02"]).is_iso_time
    assert not describe("a", ["01.02.2025", "02.02.2025"]).is_iso_time


def test_a_file_sorted_by_label_shows_all_its_labels() -> None:
    labels = [f"label {k // 500}" for k in range(10_000)]
    found = look({"text": [f"this is the text number {k}" for k in range(10_000)], "label": labels})
    column = found.column("label")
    assert column is not None and column.kind == "label"
    assert dict(column.counts) == {f"label {k}": 500 for k in range(20)}
    assert found.rows == 10_000
    assert first_look.SAMPLE <= len(found.sample) < 2 * first_look.SAMPLE
    assert len({row["label"] for row in found.sample}) == 20


def test_rows_beyond_the_bound_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "COUNTED", 100)
    rows = (
        Row(k, {"text": f"text {k}"}, "" if k % 10 else "broken") for k in range(1, 1_000_000_000)
    )
    found = first_look.look(rows)
    assert (found.rows, found.unusable, found.complete, found.fault) == (
        90,
        10,
        False,
        "row 10: broken",
    )


def test_large_rows_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look, "_CHARACTERS", 10_000)
    found = look({"text": [f"{k} " + "x" * 1000 for k in range(500)]})
    assert found.rows == 500
    assert sum(len(row["text"]) for row in found.sample) < 20_000


@pytest.mark.parametrize(
    ("counts", "slips"),
    [
        (
            {"Müll": 40, "Muell": 30, "Lärm": 25, "Laerm": 25, "Réclamation": 9, "reclamation": 8},
            {"Muell": "Müll", "Lärm": "Laerm", "reclamation": "Réclamation"},
        ),
        (
            {
                "Aufzug": 30,
                "Aufug": 4,
                "Heizung": 20,
                "Heizugn": 2,
                "Wasser schaden": 15,
                "Wasser schadne": 3,
            },
            {"Aufug": "Aufzug", "Heizugn": "Heizung", "Wasser schadne": "Wasser schaden"},
        ),
        # meant as they are: frequent, short, digits, another first letter, several letters, another
        # script
        (
            {
                "Kasse": 60,
                "Kassen": 30,
                "Typ A": 30,
                "Typ B": 5,
                "card_2": 30,
                "card_3": 4,
                "Dosen": 5,
                "Hosen": 30,
                "male": 5,
                "female": 30,
                "はん": 30,
                "ばん": 5,
                "мой": 30,
                "мои": 5,
            },
            {},
        ),
    ],
    ids=["spellings", "a letter", "meant"],
)
def test_labels_that_are_slips_of_others(counts: dict[str, int], slips: dict[str, str]) -> None:
    assert {typo["label"]: typo["likely"] for typo in label_typos(counts)} == slips


LEVELS = (
    "1 2 3 4 5",
    "0 1 2 3 4 5 6 7 8 9 10",
    "Niedrig Mittel Hoch",
    "low normal high urgent",
    "minor major blocker",
    "very_low low medium high very-high",
    "negative neutral positive",
    "bajo medio alto",
)
NAMES = (
    "0 1 2 3",
    "1 3 5",
    "P1 P2 P3",
    "low high",
    "low medium high other",
    "low minor high",
    "billing refund legal",
)


@pytest.mark.parametrize("labels", LEVELS + NAMES)
def test_labels_that_are_levels(labels: str) -> None:
    assert levels.in_order(sorted(labels.split()), "rating") == (
        labels.split() if labels in LEVELS else []
    )


def test_numbers_are_levels_where_their_column_says_so() -> None:
    assert levels.in_order(list("1234"), "Class Index") == []
    assert levels.in_order(["1 star", "2 stars", "3 stars"], "label") == [
        "1 star",
        "2 stars",
        "3 stars",
    ]
    assert levels.in_order(["1 Billing", "2 Delivery", "3 Account"], "rating") == []
    assert levels.in_order([str(k) for k in range(1, 15)], "rating") == []


# The schema of answers


def schema_of(values: Sequence[Any]) -> dict[str, Any]:
    builder = SchemaBuilder()
    for value in values:
        builder.add(value)
    return builder.schema()


def test_the_example_answers_have_a_schema_like_the_one_written_by_hand() -> None:
    rows = list(read_rows(EXAMPLES / "order_emails.jsonl"))
    made = schema_of([row.columns["fields"] for row in rows])
    by_hand = json.loads((EXAMPLES / "order_emails.schema.json").read_text())
    assert made["properties"].keys() == by_hand["properties"].keys()
    assert set(made["required"]) == set(by_hand["required"])
    jsonschema.Draft202012Validator.check_schema(made)
    assert all(
        jsonschema.Draft202012Validator(made).is_valid(row.columns["fields"]) for row in rows
    )


def test_keys_types_and_choices() -> None:
    values = [
        {
            "kind": ("new", "used")[k % 2],
            "name": f"name {k}",
            "size": k if k % 2 else k + 0.5,
            "note": None,
        }
        | ({"tags": ["a"]} if k % 3 else {})
        for k in range(40)
    ]
    assert schema_of(values) == {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": ["new", "used"]},
            "name": {"type": "string"},
            "note": {"type": "null"},
            "size": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["kind", "name", "note", "size"],
        "additionalProperties": False,
    }


PARTIES = ["Ahlers GmbH", "Brücker & Söhne KG", "Lindow AG", "Oakfield Inc.", "Vidal S.A."]


@pytest.mark.parametrize(
    ("values", "closed"),
    [
        (PARTIES, False),  # the grammar made a thirteenth party one of the twelve
        (["Ann Möller", "Bert Koch", "Carl Sauer"], False),
        (["Lindow", "Nordhaus Ltd"], False),
        (["Deutsches Recht", "Schweizer Recht"], True),
        (["Germany", "Austria", "England and Wales"], True),
        (["EUR", "USD"], True),
        (["Yes", "No"], True),
        (["AG", "SE"], True),  # a code, no legal form of a name
    ],
)
def test_a_lawyer_s_parties_are_no_closed_list_and_her_currencies_are(
    values: list[str], closed: bool
) -> None:
    builder = SchemaBuilder()
    for value in values * 20:
        builder.add({"field": value}, f"between us and {value} it is agreed")
    schema = builder.schema()
    assert ("enum" in schema["properties"]["field"]) is closed
    assert list(closed_lists(schema)) == ([("field", sorted(values))] if closed else [])


def test_names_that_no_text_holds_are_a_closed_list() -> None:
    builder = SchemaBuilder()
    for value in ["Fixed Term", "Open Ended"] * 20:
        builder.add(value, "it runs for two years")
    assert list(closed_lists(builder.schema())) == [("the answer", ["Fixed Term", "Open Ended"])]


def test_values_that_hardly_recur_are_no_closed_list() -> None:
    assert schema_of(["a"] * 90 + ["b", "c", "d"]) == {"type": "string"}
    assert schema_of(["a"] * 90 + ["b"])["enum"] == ["a", "b"]


def test_free_keys_are_not_listed() -> None:
    assert schema_of([{f"key {k}": 1} for k in range(100)]) == {"type": "object"}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(JSON, min_size=1, max_size=20))
def test_every_value_satisfies_the_schema_of_all(values: list[Any]) -> None:
    schema = schema_of(values)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert all(map(validator.is_valid, values))


@pytest.mark.parametrize(
    ("counts", "asked"),
    [
        # both stayed labels without a word, and nobody can tell them apart
        ({"Ersatzteil": 80, "Ersatzteile": 15, "Wartung": 90}, {"Ersatzteile": "Ersatzteil"}),
        ({"Aufzug": 100, "Aufug": 11}, {"Aufug": "Aufzug"}),
        ({"Aufzug": 100, "Aufug": 9}, {}),  # a typo, which is mapped
        ({"refund": 80, "refunds": 70}, {"refunds": "refund"}),  # a plural, however frequent
        ({"Ersatzteil": 40, "Ersatzteile": 38, "Wartung": 90}, {"Ersatzteile": "Ersatzteil"}),
        ({"Rechnung": 40, "Rechnungen prüfen": 38, "Rechnungen": 30}, {"Rechnungen": "Rechnung"}),
        ({"billing": 80, "filling": 70}, {}),  # two labels of one size are meant
        ({"card_2": 90, "card_3": 20}, {}),
    ],
)
def test_labels_that_differ_by_one_letter_are_asked_about(
    counts: dict[str, int], asked: dict[str, str]
) -> None:
    assert {pair["label"]: pair["likely"] for pair in alike_labels(counts)} == asked


def test_labels_that_share_no_other_word_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    # the report of 3,000 labels compared two million pairs
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(label_spellings, "_is_slip", lambda *pair: compared.append(pair))
    alike_labels(
        {f"claim {k}": 1000 + k for k in range(200)} | {f"claims {k}": 400 for k in range(200)}
    )
    assert sorted(compared) == sorted((f"claims {k}", f"claim {k}") for k in range(200))
