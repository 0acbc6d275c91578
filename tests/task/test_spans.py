"""Fields of a schema in a text: the places that are learned, and
the answer that marked places make.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from slmctl.errors import DataError
from slmctl.task import field_habits, spans
from slmctl.task.evidence import Evidence
from slmctl.task.field_habits import Habit
from slmctl.task.span_values import ReadAnswer, Reader
from slmctl.task.spans import Field, fields_of, leaves, targets


def strict(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


TEXT, MAYBE = {"type": "string"}, {"type": ["string", "null"]}
ITEM = strict(name=TEXT, quantity={"type": "integer"})
ORDER = strict(
    items={"type": "array", "items": ITEM},
    day={"type": ["string", "null"], "format": "date"},
    code={"type": ["string", "null"], "pattern": "^BC-[0-9]{3}$"},
    intent={"enum": ["order", "return"]},
)


def marked(schema: Any, text: str, answer: Any) -> list[tuple[str, str]]:
    fields = fields_of(schema)
    return [
        (fields[mark.field].path, text[mark.start : mark.end])
        for mark in targets(fields, text, answer).marks
    ]


def read_again(
    schema: Any, rows: list[tuple[str, Any]], asked: tuple[str, Any] | None = None
) -> ReadAnswer:
    """The last row, or another one, by a model that marks as the answers say."""
    fields = fields_of(schema)
    habits = field_habits.learn(fields, rows, [targets(fields, *row) for row in rows])
    text, answer = asked or rows[-1]
    known = {leaf.path: leaf.value for leaf in leaves(answer)}
    concluded = {
        k: (known.get(each.path), -0.1) for k, each in enumerate(fields) if habits[k].concluded
    }
    marks = [mark for mark in targets(fields, text, answer).marks if mark.field not in concluded]
    return Reader.of(schema, habits).values(text, marks, concluded, [-0.2] * len(fields))


def test_fields_have_the_types_of_their_schema() -> None:
    schema = strict(
        supplier=TEXT,
        fee={"anyOf": [{"type": "number"}, {"type": "null"}]},
        paid={"type": "boolean"},
        begun={"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"},
        parts={"type": "array", "items": TEXT},
        **{"to": strict(city=MAYBE), "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}}},
    ) | {"$defs": {"Item": ITEM}}
    assert fields_of(schema) == (
        Field("supplier", "text"),
        Field("fee", "number", nullable=True),
        Field("paid", "choice", choices=(True, False)),
        Field("begun", "date"),
        Field("parts[]", "text"),
        Field("to.city", "text", nullable=True),
        Field("items[].name", "text"),
        Field("items[].quantity", "integer"),
    )
    assert [(field.listed, field.group) for field in fields_of(schema)[4:7]] == [
        (True, ""),
        (False, ""),
        (True, "items"),
    ]


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (strict(a={"anyOf": [strict(b=TEXT), strict(c=TEXT)]}), "'a' has 2 forms"),
        (strict(a={"type": "object"}), "'a' is an object without named fields"),
        (strict(a={"type": ["string", "number"]}), "'a' may be of 2 types"),
        (
            strict(a={"type": "array", "items": {"type": "array", "items": TEXT}}),
            "'a\\[\\]' is a list in a list",
        ),
        (strict(a=True), "'a' may be anything"),
        ({"type": "object"}, "names no field"),
        (strict(**{"a.b": TEXT}), "reads as a path"),
        (strict(a={"$ref": "#/properties/a"}), "refers to itself"),
    ],
)
def test_a_schema_that_cannot_be_tagged_is_refused(schema: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        fields_of(schema)


def test_a_value_has_all_its_places_and_a_longer_one_wins() -> None:
    schema = strict(city=TEXT, street=TEXT, parts={"type": "array", "items": TEXT})
    text = "Lindau. Lindau Road 3, Lindau: bolt, nut and bolt"
    answer = {"city": "Lindau", "street": "Lindau Road 3", "parts": ["bolt", "nut"]}
    assert marked(schema, text, answer) == [
        ("city", "Lindau"),
        ("street", "Lindau Road 3"),
        ("city", "Lindau"),
        ("parts[]", "bolt"),
        ("parts[]", "nut"),
        ("parts[]", "bolt"),
    ]
    made = targets(fields_of(schema), "Road 3", answer)
    assert not made.marks and sorted(made.missing) == ["city", "parts[]", "parts[]", "street"]


def test_of_one_place_the_value_with_fewest_places_has_it() -> None:
    schema = strict(sender=TEXT, payer=TEXT)
    assert marked(schema, "Acme, for Acme", {"sender": "Acme", "payer": "for Acme"}) == [
        ("sender", "Acme"),
        ("payer", "for Acme"),
    ]
    made = targets(fields_of(schema), "Acme", {"sender": "Acme", "payer": "Acme"})
    assert [mark.field for mark in made.marks] == [0] and made.missing == ("payer",)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("2 x oil can, two jugs. A 2", ["2", "oil can", "two", "jugs"]),  # the number before each
        ("12 x oil can,\n2 x jug on 2 May", ["12", "oil can", "2", "jug"]),
        ("oil can (2), jug: 12", ["oil can", "2", "jug", "12"]),  # the number behind each
        # no article of the next sentence
        ("an oil can, then 1 jug. A van", ["an", "oil can", "1", "jug"]),
        ("3 oil cans, jugs x 4", ["3", "oil cans", "jugs", "4"]),  # some before, some behind
    ],
)
def test_values_of_an_item_stand_together(text: str, places: list[str]) -> None:
    counts = {"12": 12, "2": 2, "two": 2, "3": 3, "4": 4, "an": 1, "1": 1}
    numbers = [counts[place] for place in places if place in counts]
    items = [
        {"name": name, "quantity": number}
        for name, number in zip(["oil can", "jug"], numbers, strict=True)
    ]
    assert [place for _, place in marked(ORDER, text, {"items": items})] == places


def test_an_answer_is_read_from_its_places() -> None:
    rows = [
        (
            "order: two kettles and a jug for 21/06/2025, BC-123",
            {
                "items": [{"name": "kettle", "quantity": 2}, {"name": "jug", "quantity": 1}],
                "day": "2025-06-21",
                "code": "BC-123",
                "intent": "order",
            },
        ),
        (
            "back goes 1 kettle",
            {
                "items": [{"name": "kettle", "quantity": 1}],
                "day": None,
                "code": None,
                "intent": "return",
            },
        ),
        ("no thanks", {"items": [], "day": None, "code": None, "intent": "order"}),
    ]
    asked = (
        "three pots, 7 x kettle on 03/04/2025,\nBC-987.",
        {
            "items": [{"name": "pot", "quantity": 3}, {"name": "kettle", "quantity": 7}],
            "day": "2025-04-03",
            "code": "BC-987",
            "intent": "return",
        },
    )
    read = read_again(ORDER, rows, asked)
    # the ending that was learned, the order of day and month, the enum concluded
    assert read.answer == asked[1]
    assert read.text == json.dumps(asked[1], sort_keys=True)
    (code,) = [value for value in read.values if value.path == "code"]
    assert code.span is not None and asked[0][slice(*code.span)] == "BC-987"
    assert {value.path for value in read.values if value.span is None} == {"intent"}
    empty = read_again(ORDER, rows)
    assert empty.answer == rows[-1][1]
    assert {value.path: value.logprob for value in empty.values} == {
        "code": -0.2,
        "day": -0.2,
        "intent": -0.1,
        "items[]": -0.2,
    }


@pytest.mark.parametrize(
    ("kind", "learned", "text", "value"),
    [
        # the month first, as in that row
        ("date", [("on 4/13/2025", "2025-04-13")], "on 3/4/2025", "2025-03-04"),
        ("date", [("on 13/4/2025", "2025-04-13")], "on 3/4/2025", "2025-04-03"),
        ("date", [], "am 3. Mai 2024", "2024-05-03"),
        ("number", [("EUR 1.500", 1500)], "EUR 2.750", 2750),
        ("number", [("rate 1.500", 1.5)], "rate 2.750", 2.75),
        ("integer", [], "1.500", 1500),
    ],
)
def test_readings_are_those_of_the_training_rows(
    kind: str, learned: Any, text: str, value: Any
) -> None:
    schema = {"type": "string", "format": "date"} if kind == "date" else {"type": kind}
    rows = [(line, {"x": known}) for line, known in learned]
    read = read_again(strict(x=schema), rows, (text, {"x": value}))
    assert read.answer == {"x": value} and type(read.answer["x"]) is type(value)


@pytest.mark.parametrize(
    ("field", "habit", "text", "span", "value"),
    [
        (Field("a", "text"), Habit(), "Anna Ironwood", (6, 8), "Ironwood"),  # no word is cut
        (Field("a", "text"), Habit(case="upper"), "Oak\n  GmbH", (0, 10), "OAK GMBH"),
        (Field("a", "text", pattern="^BC-[0-9]{3}$"), Habit(), "see (BC-123).", (5, 7), "BC-123"),
        (Field("a", "text", pattern="^BC-[0-9]{3}$"), Habit(), "see (BX-123).", (5, 7), None),
        (
            Field("a", "choice", choices=("new_order", "other")),
            Habit(),
            "a new  order",
            (2, 12),
            "new_order",
        ),
        (Field("a", "choice", choices=("new_order", "other")), Habit(), "xyz", (0, 3), None),
        (Field("a", "integer"), Habit(), "two cups", (0, 3), 2),
        (Field("a", "integer"), Habit(), "1.5 cups", (0, 3), None),
        # the whole number, not its first part
        (Field("a", "number"), Habit(), "EUR 1,250.50", (4, 5), 1250.5),
        (Field("a", "date"), Habit(), "no day", (0, 6), None),
        # no pattern of Python's
        (Field("a", "text", pattern="^["), Habit(), "as it is", (0, 2), "as"),
    ],
)
def test_a_place_is_read_by_its_field(
    field: Field, habit: Habit, text: str, span: Any, value: Any
) -> None:
    assert field_habits.read(field, habit, Evidence(text), span)[0] == value


def test_lists_hold_each_value_once_and_scalars_the_likeliest() -> None:
    schema = strict(name=TEXT, parts={"type": "array", "items": TEXT})
    rows = [("Ada buys nut and bolt", {"name": "Ada", "parts": ["nut", "bolt"]})]
    fields = fields_of(schema)
    habits = field_habits.learn(fields, rows, [targets(fields, *row) for row in rows])
    text = "Ada or Bo: bolt, nut, bolt"
    places = [
        (0, 0, 3, -2.0),
        (0, 7, 9, -0.1),
        (1, 11, 15, -0.1),
        (1, 17, 20, -0.1),
        (1, 22, 26, -0.1),
    ]
    marks = [spans.SpanMark(*place) for place in places]
    answer = Reader.of(schema, habits).values(text, marks, {}, [-1.0, -1.0]).answer
    assert answer == {"name": "Bo", "parts": ["bolt", "nut"]}


def test_a_marked_part_of_a_shared_text_is_the_whole() -> None:
    schema = strict(parts={"type": "array", "items": TEXT})
    rows = [(f"{k} buys Oil for Pumps", {"parts": ["oil for pumps"]}) for k in ("Ada", "Bo")]
    fields = fields_of(schema)
    (habit,) = field_habits.learn(fields, rows, [targets(fields, *row) for row in rows])
    assert habit.shared == {"oil for pumps": 2}
    text = "we need oil for  pumps and oil for lamps"
    marked = [
        field_habits.read(fields[0], habit, Evidence(text), span) for span in [(16, 22), (27, 30)]
    ]
    assert [value for value, _ in marked] == ["oil for pumps", "oil"]
    assert marked[0][1] == (8, 22)


def test_names_that_two_rows_share_by_chance_are_not_kept() -> None:
    names = ["Ada", "Ada", "Bo", "Cy", "Di", "Ed"]
    rows = [(f"{name} buys bolts", {"name": name}) for name in names]
    fields = fields_of(strict(name=TEXT))
    (habit,) = field_habits.learn(fields, rows, [targets(fields, *row) for row in rows])
    assert habit.shared == {}


def test_of_places_the_likeliest_by_letter_counts() -> None:
    marks = [spans.SpanMark(0, 0, 12, -0.6), spans.SpanMark(0, 20, 22, -0.5)]
    reader = Reader.of(strict(name=TEXT), [Habit()])
    assert reader.values("Ada Quillmoor sees: Bo", marks, {}, [-1.0]).answer == {
        "name": "Ada Quillmoor"
    }


def test_what_answers_leave_out_is_left_out() -> None:
    slots = {
        "type": "object",
        "properties": {"artist": {"type": "array", "items": TEXT}, "city": MAYBE},
    }
    schema = strict(slots=slots)
    rows = [
        ("play Ada", {"slots": {"artist": ["Ada"]}}),
        ("in Lindau", {"slots": {"city": "Lindau"}}),
    ]
    assert read_again(schema, rows).answer == rows[-1][1]
    nulls = [("play Ada", {"slots": {"artist": ["Ada"], "city": None}})]
    assert read_again(schema, nulls).answer == nulls[-1][1]


def test_an_item_has_what_the_schema_asks_for() -> None:
    item = strict(name=TEXT, quantity={"type": "integer"}) | {"required": ["quantity"]}
    schema = strict(items={"type": "array", "items": item})
    rows = [
        (
            "2 x jug, 2 x pot",
            {"items": [{"name": "jug", "quantity": 2}, {"name": "pot", "quantity": 2}]},
        )
    ]
    fields = fields_of(schema)
    reader = Reader.of(
        schema, field_habits.learn(fields, rows, [targets(fields, *row) for row in rows])
    )
    text = "5 of all, jug"
    marks = [spans.SpanMark(1, 0, 1), spans.SpanMark(0, 10, 13)]
    assert reader.values(text, marks, {}, [-1.0, -1.0]).answer == {
        "items": [{"name": "jug", "quantity": 5}]
    }
    assert reader.values(text, marks[:1], {}, [-1.0, -1.0]).answer == {"items": [{"quantity": 5}]}
    assert reader.values(text, marks[1:], {}, [-1.0, -1.0]).answer == {
        "items": [{"name": "jug", "quantity": 2}]
    }


def test_values_that_stand_nowhere_are_concluded_or_refused() -> None:
    schema = strict(mood=TEXT, kind={"enum": ["a", "b"]})
    rows = [(f"row {k}", {"mood": ["good", "bad"][k % 2], "kind": "b"}) for k in range(6)]
    fields = fields_of(schema)
    habits = field_habits.learn(fields, rows, [targets(fields, *row) for row in rows])
    assert [habit.concluded for habit in habits] == [("bad", "good"), ("b",)]
    assert habits[0].values == 6 and habits[0].standing == 0
    some = [("asks", {"mood": "good", "kind": "a"}), ("a b", {"mood": "good", "kind": "b"})]
    (_, kind) = field_habits.learn(fields, some, [targets(fields, *row) for row in some])
    # `a` may follow from words that do not hold it
    assert kind.standing == 1 and kind.concluded == ("a", "b")
    long = [(text, answer | {"mood": " ".join(["word"] * 60)}) for text, answer in rows]
    with pytest.raises(DataError, match="values of 'mood' are long texts"):
        field_habits.learn(fields, long, [targets(fields, *row) for row in long])


def test_no_text_of_one_row_is_kept() -> None:
    schema = strict(
        name=TEXT,
        mood=TEXT,
        parts={"type": "array", "items": TEXT},
        items={"type": "array", "items": ITEM},
    )
    people = ["Ada Quillmoor", "Bo Tarn", "Cy Veldt", "Di Wickham"]
    rows = [
        (
            f"{name.upper()} and {name} want two jugs, nuts and {k}9 lamps{k}",
            {
                "name": name,
                "mood": ["glad", "glad", "private grief", "glad"][k],
                "parts": ["nut", f"lamp{k}"],
                "items": [{"name": "jug", "quantity": 2}],
            },
        )
        for k, name in enumerate(people)
    ]
    fields = fields_of(schema)
    habits = field_habits.learn(fields, rows, [targets(fields, *row) for row in rows])
    kept = json.dumps([asdict(habit) for habit in habits])
    assert "glad" in kept and "jugs" in kept
    assert not [
        text for text in (*people, "private grief", "lamp1") if text.casefold() in kept.casefold()
    ]
