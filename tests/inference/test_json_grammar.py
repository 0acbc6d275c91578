"""The grammar of a schema: what it allows is valid, what is valid it
allows, and the rest is refused by name.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import llguidance
import pytest
from support import EXAMPLES
from support.letters import Letters, answer

from slmctl.errors import DataError
from slmctl.inference import grammar_pool, json_grammar

EXAMPLE = EXAMPLES / "order_emails.schema.json"
SCHEMAS: dict[str, dict[str, Any]] = {
    "scalars": {
        "type": "object",
        "properties": {
            "z": {"type": "integer", "minimum": 1, "maximum": 99},
            "flag": {"type": "boolean"},
            "n": {"type": ["number", "null"], "minimum": 0, "maximum": 9.5},
            "none": {"type": "null"},
            "text": {"type": "string", "maxLength": 6},
        },
        "required": ["z", "flag", "n", "none"],
        "additionalProperties": False,
    },
    "nested": {
        "$defs": {
            "line": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
                    "count": {"enum": [1, 2]},
                },
                "required": ["sku", "count"],
                "additionalProperties": False,
            }
        },
        "type": "object",
        "properties": {
            "lines": {
                "type": "array",
                "items": {"$ref": "#/$defs/line"},
                "minItems": 1,
                "maxItems": 3,
            },
            "kind": {"enum": ["a", "b", None, 7]},
        },
        "required": ["lines", "kind"],
        "additionalProperties": False,
    },
    "choice": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"x": {"const": {"b": 1, "a": 2}}},
                "required": ["x"],
                "additionalProperties": False,
            },
            {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        ]
    },
    "labels": {
        "type": "array",
        "uniqueItems": True,
        "items": {"enum": ["legal", "bill", "billing", 'a "b"', "Lärm 😀"]},
    },
    "example": json.loads(EXAMPLE.read_text(encoding="utf-8")),
}


LETTERS = Letters(texts=(b'": ', b', "', b'{"', b"null", b"true"))


@pytest.fixture(scope="module")
def tokenizer() -> llguidance.LLTokenizer:
    return LETTERS.made()


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_it_allows_is_valid(tokenizer: llguidance.LLTokenizer, name: str) -> None:
    rules = json_grammar.Rules(tokenizer, json.dumps(SCHEMAS[name]))
    check = jsonschema.Draft202012Validator(SCHEMAS[name])
    texts = [found[0] for seed in range(40) if (found := answer(LETTERS, rules, seed)) is not None]
    assert len(texts) > 20
    assert len(set(texts)) > 2
    for text in texts:
        value = json.loads(text)
        assert not list(check.iter_errors(value)), text
        if isinstance(value, dict):
            assert list(value) == sorted(value)


def test_unique_items_of_an_enum_stand_in_its_order(tokenizer: llguidance.LLTokenizer) -> None:
    schema = SCHEMAS["labels"]
    places = {label: place for place, label in enumerate(schema["items"]["enum"])}
    rules = json_grammar.Rules(tokenizer, json.dumps(schema))
    texts = [found[0] for seed in range(60) if (found := answer(LETTERS, rules, seed)) is not None]
    sets = [[places[label] for label in json.loads(text)] for text in texts]
    assert all(each == sorted(set(each)) for each in sets)
    assert {len(each) for each in sets} >= {0, 1, 2}
    assert {place for each in sets for place in each} == set(places.values())
    assert all(text == json.dumps(json.loads(text), ensure_ascii=False) for text in texts)


def test_it_allows_what_prepare_writes(tokenizer: llguidance.LLTokenizer) -> None:
    rows = [
        json.loads(line)
        for line in (EXAMPLE.parent / "order_emails.jsonl").read_text("utf-8").splitlines()
    ]
    rules = json_grammar.Rules(tokenizer, json.dumps(SCHEMAS["example"]))
    for row in rows:
        text = json.dumps(row["fields"], ensure_ascii=False, sort_keys=True)
        walk = rules.begin()
        done = LETTERS.text(walk.forced())
        asked = 0
        while not walk.finished:
            token = LETTERS.longest(walk.allowed(), text.encode()[len(done) :])
            done += LETTERS.text([token, *walk.accept(token)])
            asked += 1
            assert text.encode().startswith(done)
        assert done.decode() == text
        assert asked < len(text) * 0.7  # keys and punctuation are not asked for


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "https://example.com/other.json"}, "example.com"),
        ({"type": "object", "properties": {"a": {"contains": {"type": "null"}}}}, "contains"),
    ],
)
def test_what_it_cannot_express_is_named(
    tokenizer: llguidance.LLTokenizer, schema: dict[str, Any], named: str
) -> None:
    assert named in grammar_pool.fault_of(json.dumps(schema))
    with pytest.raises(DataError, match=named):
        json_grammar.Rules(tokenizer, json.dumps(schema))


@pytest.mark.parametrize("depth", [150, 350, 5000])
def test_a_schema_that_is_nested_too_deeply_is_refused(
    tokenizer: llguidance.LLTokenizer, depth: int
) -> None:
    for text in (
        '{"type": "array", "items": ' * depth + "{}" + "}" * depth,
        '{"const": "\\ud800"}',
    ):
        assert "no grammar can be made of the schema" in grammar_pool.fault_of(text)
        with pytest.raises(DataError, match="no grammar can be made of the schema"):
            json_grammar.Rules(tokenizer, text)


def test_a_token_that_is_not_allowed_is_an_error(tokenizer: llguidance.LLTokenizer) -> None:
    walk = json_grammar.Rules(tokenizer, json.dumps({"enum": ["yes", "no"]})).begin()
    walk.forced()
    with pytest.raises(DataError, match="the grammar cannot go on"):
        walk.accept(LETTERS.tokens.index(b"x"))
