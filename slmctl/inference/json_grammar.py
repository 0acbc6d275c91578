"""Compiles a JSON Schema to the tokens that may come next: the engine and HF models are held to the
same grammar.

The grammar is llguidance's; llama.cpp's own converter drops `pattern`, `format` and `items` in a
schema with a list of types, and allows bare line breaks in strings. An answer is written as
`prepare` writes it: keys in alphabetical order, `, ` and `: ` between them, no other white space.
"""

from __future__ import annotations

import json

import llguidance
import numpy as np
import numpy.typing as npt

from slmctl.errors import DataError
from slmctl.inference import call_grammar, subset_grammar


class Rules:
    """A schema or the grammar of a call, compiled for one tokenizer.

    Raises:
        DataError: The grammar cannot express something in the schema; it is named.
    """

    def __init__(self, tokenizer: llguidance.LLTokenizer, schema: str) -> None:
        self._start = _compiled(tokenizer, schema)
        self._vocabulary = tokenizer.vocab_size

    def begin(self) -> Walk:
        """The state of an answer that has no token yet."""
        return Walk(self._start.deep_copy(), self._vocabulary)


class Walk:
    """One answer's place in the grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    @property
    def finished(self) -> bool:
        """True where nothing but the end of the turn can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> npt.NDArray[np.intp]:
        """The tokens that may come next, in order; the end of the turn is
        one of them where the answer may end.
        """
        return np.flatnonzero(
            np.unpackbits(np.frombuffer(self.mask(), np.uint8), bitorder="little")
        )

    def mask(self) -> bytes:
        """The same as a bit a token, the first one lowest.

        Raises:
            DataError: The grammar has become too complex to follow.
        """
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise self._failure()
        kept, spare = divmod(self._vocabulary, 8)
        return bytes(bits[:kept]) + (bytes([bits[kept] & ((1 << spare) - 1)]) if spare else b"")

    def accept(self, token: int) -> list[int]:
        """Take a token, and the ones that its grammar then forces; returns the latter.

        Raises:
            DataError: The grammar does not allow it, or has become too complex to follow.
        """
        if not self._matcher.consume_token(token):
            raise self._failure()
        return self.forced()

    def forced(self) -> list[int]:
        """Take the tokens that must come next, whatever the model would say."""
        tokens: list[int] = [] if self.finished else self._matcher.compute_ff_tokens()
        if self._matcher.is_error() or (tokens and not self._matcher.consume_tokens(tokens)):
            raise self._failure()
        return tokens

    def _failure(self) -> DataError:
        return DataError(f"the grammar cannot go on: {_one_line(self._matcher.get_error())}")


def _compiled(tokenizer: llguidance.LLTokenizer, schema: str) -> llguidance.LLMatcher:
    if schema.startswith(call_grammar.MARK):
        grammar = llguidance.LLMatcher.grammar_from_lark(call_grammar.lark(schema, tokenizer))
    else:
        grammar = _of_schema(schema)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise _refusal(matcher.get_error())
    return matcher


def _of_schema(schema: str) -> str:
    try:
        value = json.loads(schema)
        if texts := subset_grammar.choices(value):
            return llguidance.LLMatcher.grammar_from_lark(subset_grammar.lark(texts))
        text = json.dumps(call_grammar.ordered(value))
        return llguidance.LLMatcher.grammar_from_json_schema(
            text, overrides=call_grammar.WHITESPACE
        )
    except RecursionError:
        raise DataError("no grammar can be made of the schema: it is nested too deeply") from None
    except (
        ValueError
    ) as error:  # it is nested too deeply for llguidance, or holds what is no JSON there
        raise _refusal(str(error)) from None


def _refusal(fault: str) -> DataError:
    return DataError(
        f"no grammar can be made of the schema: {_one_line(fault)}",
        hint="leave that keyword out of the schema",
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
