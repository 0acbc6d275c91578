"""The grammar of a call: every answer that it allows is a call of an offered
tool or none, in the form of the base.
"""

from __future__ import annotations

import functools

import llguidance
import pytest
from support import call_templates
from support.call_templates import task_of
from support.letters import Letters, answer

from slmctl.errors import DataError
from slmctl.inference import grammar_pool, json_grammar
from slmctl.task.contract import Task
from slmctl.task.tool_calls import NO_CALL, ToolCall

FAMILIES = {
    "chatml": ("<|im_end|>", ()),
    "qwen": ("<|im_end|>", ()),
    "llama": ("<|eot_id|>", ()),
    "mistral": ("</s>", ("[TOOL_CALLS]",)),
    "args": ("</s>", ("[TOOL_CALLS]", "[ARGS]")),
}


@functools.cache
def family(name: str) -> Task:
    end, special_tokens = FAMILIES[name]
    return task_of(getattr(call_templates, name.upper()), end=end, special_tokens=special_tokens)


LETTERS = Letters(control=(b"[TOOL_CALLS]", b"[ARGS]"))


@pytest.fixture(scope="module")
def tokenizer() -> llguidance.LLTokenizer:
    return LETTERS.made()


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_it_allows_is_a_call_of_an_offered_tool_or_none(
    tokenizer: llguidance.LLTokenizer, name: str
) -> None:
    task = family(name)
    rules = json_grammar.Rules(tokenizer, task.rules.constraint())
    calls = set()
    for seed in range(40):
        found = answer(LETTERS, rules, seed)
        assert found is not None
        text, asked = found
        kept = task.rules.kept(text)
        assert task.accepts(kept), text
        call = task.read_answer(kept)
        calls.add(call.name if call else NO_CALL)
        assert asked < len(text)  # the form and the keys are not asked for
    assert calls == {NO_CALL, "book_room", "book_room_list"}


@pytest.mark.parametrize("name", FAMILIES)
def test_it_allows_what_is_trained(tokenizer: llguidance.LLTokenizer, name: str) -> None:
    task = family(name)
    rules = json_grammar.Rules(tokenizer, task.rules.constraint())
    full = ToolCall("book_room", {"note": "ä", "people": 40, "room": "Birch"})
    for kept in (full.answer, ToolCall("book_room_list", {}).answer, NO_CALL):
        tokens = _encoded(task, task.rules.written(kept))
        walk = rules.begin()
        done = walk.forced()
        while len(done) < len(tokens):
            token = tokens[len(done)]
            done += [token, *walk.accept(token)]
        assert done == tokens
        assert walk.finished or 0 in walk.allowed()


def _encoded(task: Task, text: str) -> list[int]:
    """A text as tokens, the form's control tokens as those of their ids."""
    marks = dict(zip(("\x01", "\x02"), task.form.control, strict=False))
    for mark, token in marks.items():
        text = text.replace(token, mark)
    ids = {ord(mark): LETTERS.tokens.index(token.encode()) for mark, token in marks.items()}
    return [ids.get(byte, byte + 1) for byte in text.encode()]


def test_a_model_without_the_control_token_is_refused_by_its_name(
    tokenizer: llguidance.LLTokenizer,
) -> None:
    template = call_templates.MISTRAL.replace("TOOL_CALLS", "OTHER")
    task = task_of(template, end="</s>", special_tokens=("[OTHER]",))
    with pytest.raises(DataError, match=r"no control token '\[OTHER\]'"):
        json_grammar.Rules(tokenizer, task.rules.constraint())


def test_a_schema_that_no_grammar_can_hold_is_found_before_any_model_answers() -> None:
    tools = [
        {"name": "a", "parameters": {"properties": {"x": {"type": "string", "format": "colour"}}}}
    ]
    assert "colour" in grammar_pool.fault_of(family("chatml").rules.constraint(tools))
    assert grammar_pool.fault_of(family("chatml").rules.constraint()) == ""
