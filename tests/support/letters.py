"""A tokenizer of single bytes, and answers at random that a grammar over it allows."""

from __future__ import annotations

from collections.abc import Container

import llguidance
import numpy as np
from llguidance import TokenizerWrapper

from slmctl.inference.json_grammar import Rules


class Letters:
    """Tokens: an end, every byte, some texts, and some control tokens."""

    eos_token_id, bos_token_id = 0, None

    def __init__(self, texts: tuple[bytes, ...] = (), control: tuple[bytes, ...] = ()) -> None:
        self.tokens = (b"</s>", *(bytes([k]) for k in range(256)), *texts, *control)
        self.special_token_ids = (0, *range(257 + len(texts), len(self.tokens)))
        self._by_byte: dict[bytes, list[int]] = {}  # those that begin with it, the longest first
        for k in range(256 + len(texts), 0, -1):
            self._by_byte.setdefault(self.tokens[k][:1], []).append(k)

    def __call__(self, text: bytes | str) -> list[int]:
        raw, ids = (text.encode() if isinstance(text, str) else text), []
        while raw:
            ids.append(self.longest(range(len(self.tokens)), raw))
            raw = raw[len(self.tokens[ids[-1]]) :]
        return ids

    def longest(self, among: Container[int], raw: bytes) -> int:
        """Of some tokens, the longest that a text begins with."""
        return next(
            k for k in self._by_byte[raw[:1]] if k in among and raw.startswith(self.tokens[k])
        )

    def text(self, ids: list[int]) -> bytes:
        """Tokens as they are decoded, without control tokens."""
        return b"".join(self.tokens[k] for k in ids if k not in self.special_token_ids)

    def made(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(TokenizerWrapper(self))


def answer(letters: Letters, rules: Rules, seed: int, limit: int = 4000) -> tuple[str, int] | None:
    """An answer that a grammar allows, at random but for a wish to end, and how many of its tokens
    were not forced.

    None when it is too long.
    """
    choose, walk = np.random.default_rng(seed), rules.begin()
    tokens, asked = walk.forced(), 0
    while not walk.finished:
        if len(tokens) >= limit:
            return None
        allowed = walk.allowed()
        closing = [k for k in allowed if k == 0 or letters.tokens[k] in (b'"', b"}", b"]")]
        token = int(choose.choice(closing if closing and choose.random() < 0.5 else allowed))
        if token == 0:
            break
        tokens += [token, *walk.accept(token)]
        asked += 1
    return letters.text(tokens).decode(), asked
