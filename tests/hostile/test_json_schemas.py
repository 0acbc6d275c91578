"""Hostile JSON Schemas: each costs its own request; the engine's
process and the other answers go on.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.scale import FULL
from support.servers import settles

pytest.importorskip("llama_cpp")

from slmctl.inference import grammar_pool
from slmctl.inference.engine import Answer, Engine, Request
from slmctl.inference.supervised_child import EngineError

OBJECT = {"type": "object", "additionalProperties": False}
MUTUAL = {
    "$defs": {
        "a": {**OBJECT, "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
        "b": {**OBJECT, "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
    },
    "$ref": "#/$defs/a",
}


def exactly(count: int, items: Any) -> dict[str, Any]:
    return {"type": "array", "minItems": count, "maxItems": count, "items": items}


def doubled(depth: int) -> dict[str, Any]:
    """A schema of `depth` lines that stands for 2 ** depth."""
    pair = [
        {
            "type": "array",
            "prefixItems": [{"$ref": f"#/$defs/{k - 1}"}] * 2,
            "minItems": 2,
            "items": False,
        }
        for k in range(1, depth)
    ]
    return {
        "$defs": {"0": {"const": 1}, **{str(k): part for k, part in enumerate(pair, start=1)}},
        "$ref": f"#/$defs/{depth - 1}",
    }


def chained(depth: int) -> dict[str, Any]:
    """Objects in objects, each by reference: deeper than the stack of
    llguidance, which ends its process.
    """
    links = {
        str(k): {**OBJECT, "properties": {"a": {"$ref": f"#/$defs/{k + 1}"}}, "required": ["a"]}
        for k in range(depth)
    }
    return {"$defs": {**links, str(depth): {"const": 1}}, "$ref": "#/$defs/0"}


HOSTILE: dict[str, Any] = {
    "itself": {**OBJECT, "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "itself in an array": exactly(1, {"$ref": "#"}),
    "each other": MUTUAL,
    "thousand thousands": exactly(1000, exactly(1000, {"const": 1})),
    "thousand thousands of integers": exactly(1000, exactly(1000, {"type": "integer"})),
    "thousand cubed": exactly(1000, exactly(1000, exactly(1000, {"type": "boolean"}))),
    "million": exactly(10**6, {"const": 1}),
    "text of a million": {"type": "string", "minLength": 10**6, "maxLength": 10**6},
    "long constant": {"const": "x" * 100_000},
    "doubled": doubled(30),
    "pattern of repeats": {"type": "string", "pattern": "^((a{0,99}){0,99}){0,99}$"},
    "pattern of choices": {
        "type": "string",
        "pattern": "^(" + "|".join(f"a{{{k}}}b" for k in range(1, 300)) + ")+c$",
    },
    "many patterns": {
        "anyOf": [{"type": "string", "pattern": f"^.*a.{{{k}}}b$"} for k in range(1, 30)]
    },
    "many keys": {**OBJECT, "properties": {f"k{n}": {"type": "string"} for n in range(5000)}},
    "wide enum": {"enum": [f"{n:07}" * 3 for n in range(30_000)]},
    "all of all": {
        "allOf": [
            {"anyOf": [{"type": t} for t in ("string", "integer", "null")]} for _ in range(14)
        ]
    },
    "one of one": {"oneOf": [{"type": "string", "pattern": f"^a{{{n}}}"} for n in range(50)]},
    "numbers": {"type": "number", "multipleOf": 1e-9, "minimum": 0, "maximum": 1e300},
    # The limits of llguidance 1.9 hold neither of these two: one ends the process, the other takes
    # minutes.
    "chained": chained(3000),
    "all patterns": {
        "allOf": [{"type": "string", "pattern": f".*{k}.*a.{{{k}}}$"} for k in range(30)]
    },
    "no value": {"type": "string", "pattern": "^a$", "minLength": 5},
    "false": {"not": {}},
}


@pytest.fixture(scope="module")
def engine(endless: Path) -> Iterator[Engine]:
    with Engine(endless, sequences=4, context=512, threads=1) as model:
        yield model


def pid(engine: Engine) -> int:
    assert engine._child is not None
    return engine._child.pid


def outcome(engine: Engine, schema: Any, tokens: int = 40) -> Answer | EngineError:
    try:
        return engine.ask(Request("hello", schema=json.dumps(schema), max_tokens=tokens))
    except EngineError as error:
        return error


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_costs_its_own_request(engine: Engine, name: str) -> None:
    def ask() -> float:
        began = time.monotonic()
        assert engine.ask(Request("hello", max_tokens=2)).completion_tokens == 2
        return time.monotonic() - began

    before, alone, beside = pid(engine), max(ask() for _ in range(3)), list[float]()
    done = threading.Event()

    def others() -> None:
        while not done.is_set():
            beside.append(ask())

    thread = threading.Thread(target=others)
    thread.start()
    began = time.monotonic()
    result = outcome(engine, HOSTILE[name])
    took = time.monotonic() - began
    done.set()
    thread.join()
    assert pid(engine) == before, "the engine died"
    if isinstance(result, EngineError):
        assert "grammar" in result.message, result.message
    assert len(beside) > 3 or took < 50 * alone, "the answers beside it waited for its grammar"


@pytest.mark.parametrize("name", ["itself", "each other", "thousand thousands"])
def test_prepare_refuses_a_schema_that_no_answer_satisfies(name: str) -> None:
    assert "grammar" in grammar_pool.fault_of(json.dumps(HOSTILE[name]))


def test_a_grammar_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_pool, "COMPILE_S", 1e-4)
    slow = {"anyOf": [{"type": "string", "pattern": f"^.*a.{{{k}}}b$"} for k in range(200, 1600)]}
    fault = grammar_pool.fault_of(json.dumps(slow))
    assert fault.startswith("no grammar can be made of the schema: it takes longer than 0.0001 s")
    monkeypatch.undo()
    assert grammar_pool.fault_of('{"type": "null"}') == ""


def test_answers_of_a_schema_go_on_when_its_process_is_killed(engine: Engine) -> None:
    """The answer that it was needed for fails; the next one under
    the same schema gets another process.
    """
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 100}
    events: list[dict[str, Any]] = []
    ended = threading.Event()

    def put(event: Any) -> None:
        events.append(event)
        if "piece" not in event:
            ended.set()

    engine.submit(Request("hello", schema=json.dumps(schema), max_tokens=400), put)
    while not events:
        time.sleep(0.01)
    forks = children(children(pid(engine))[0])
    for fork in forks:
        os.kill(fork, 9)
    assert ended.wait(60)
    assert "grammar" in events[-1].get("error", "grammar")  # or it had ended already
    assert isinstance(outcome(engine, schema, 20), Answer)


def children(process: int) -> list[int]:
    return [
        int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def test_the_processes_of_many_schemas_are_bounded(engine: Engine) -> None:
    schemas = [{"enum": [f"a{k}", f"b{k}"]} for k in range(60)]
    requests = [Request("hello", schema=json.dumps(schema), max_tokens=8) for schema in schemas]
    answers = dict(engine.ask_all(requests))
    for k, answer in answers.items():
        assert isinstance(answer, Answer)
        assert answer.text in (f'"a{k}"', f'"b{k}"')
    assert settles(lambda: len(children(children(pid(engine))[0])) <= grammar_pool.IDLE + 4), (
        "unused ones are left"
    )


def test_a_cancelled_answer_frees_its_grammar(engine: Engine) -> None:
    schema = json.dumps({"type": "array", "items": {"type": "boolean"}, "minItems": 90})
    for _ in range(12):
        for _ in engine.stream(Request("hello", schema=schema, max_tokens=300)):
            break
    assert isinstance(outcome(engine, {"const": 1}), Answer)


# Generated

SCALARS = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "boolean"},
        {"const": "x"},
        {"$ref": "#"},
        {"enum": [1, "a"]},
        {"type": "string", "pattern": "^(a|b)*c$"},
        {"type": "number", "minimum": 0},
        {"$ref": "#/$defs/d"},
        {},
        True,
        {"type": "string", "format": "date"},
        {"type": 5},
        {"enum": []},
        {"$ref": "#/nowhere"},
        {"type": "string", "minLength": 900},
        False,
        {"type": "null"},
        {"const": {"a": [1, None]}},
        {"$ref": "http://x/y"},
        {"type": ["string", "null"]},
        {"type": "string", "format": "?"},
        {"not": {}},
        {"type": "string", "pattern": "["},
        {"type": "string", "pattern": "(a{0,99}){0,99}"},
        {"type": "integer", "minimum": -(10**30), "maximum": 10**30},
        {"type": "number", "multipleOf": 1e-300},
    ]
)
KEYS = st.sampled_from("abc")
COUNTS = st.sampled_from([0, 1, 2, 50, 1000, 10**9, -1, 0.5])
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(
            lambda n, m, i: {"type": "array", "minItems": n, "maxItems": m, "items": i},
            COUNTS,
            COUNTS,
            inner,
        ),
        st.builds(
            lambda p, r: {**OBJECT, "properties": p, "required": r},
            st.dictionaries(KEYS, inner, max_size=3),
            st.lists(KEYS, max_size=3),
        ),
        st.builds(
            lambda k, parts: {k: parts},
            st.sampled_from(["anyOf", "allOf", "oneOf", "prefixItems"]),
            st.lists(inner, min_size=1, max_size=4),
        ),
        st.builds(
            lambda d, i: {"$defs": {"d": d}, "anyOf": [i, {"$ref": "#/$defs/d"}]}, inner, inner
        ),
    ),
    max_leaves=8,
)


@given(SCHEMAS)
@settings(
    max_examples=1500 if FULL else 60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_schema_gives_an_answer_or_a_sentence(engine: Engine, schema: Any) -> None:
    before = pid(engine)
    result = outcome(engine, schema, 24)
    assert pid(engine) == before
    if isinstance(result, EngineError):
        assert "schema" in result.message or "grammar" in result.message
        return
    if result.finish == "stop":
        json.loads(result.text)
