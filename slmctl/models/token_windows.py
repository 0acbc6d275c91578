"""The words of a text in windows of tokens, which an encoder reads at once; a word is never cut."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from slmctl.task.evidence import Evidence, Span

LONGEST, SHARED = 192, 0.25  # tokens of a window; the part of it that the next one reads too
# is read in place of a line break, which tokenizers leave out, and the value of a line ends there
LINE_END = "|"
MOST = 1 << 20  # characters that are read of a text


@dataclass(frozen=True)
class TokenWindow:
    """A window of a text.

    Attributes:
        tokens: With those that the tokenizer adds at both ends.
        first, end: Its words, by their places among those of the text.
        own: The first of its words that the window before does not decide, and the end of those
            that it decides.
        places: The first token of each of its words.
    """

    tokens: list[int]
    first: int
    end: int
    own: Span
    places: list[int]


class Cutter:
    """Cuts texts into windows by a tokenizer, from which it takes bound and padding of a text away.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        longest: Tokens that the encoder reads.
    """

    def __init__(self, tokenizer: Any, longest: int = LONGEST) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        whole = tokenizer.encode("a")
        inner = [k for k, special in enumerate(whole.special_tokens_mask) if not special]
        self._before, self._after = whole.ids[: inner[0]], whole.ids[inner[-1] + 1 :]
        self._room = min(longest, LONGEST) - len(self._before) - len(self._after)

    def windows(self, evidence: Evidence) -> list[TokenWindow]:
        """The windows of a text, in order; none of a text without words."""
        # without halves of characters
        text = evidence.text[:MOST].encode(errors="replace").decode()
        text = text.replace("\n", LINE_END)
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        ends = list(accumulate((end for _, end in encoded.offsets), max))
        words = [start for start, _ in evidence.words if ends and start < ends[-1]]
        first_tokens = [bisect_right(ends, start) for start in words]
        spans = list(self._spans(first_tokens, len(encoded.ids)))
        middles = [(end + start) // 2 for (_, end), (start, _) in pairwise(spans)]
        edges = [0, *middles, len(words)]
        return [
            self._window(span, (edges[k], edges[k + 1]), first_tokens, encoded.ids)
            for k, span in enumerate(spans)
        ]

    def _spans(self, first_tokens: Sequence[int], count: int) -> Iterator[Span]:
        """The first word of each window, and the end of its words."""
        start, ends = 0, [*first_tokens[1:], count]
        while start < len(first_tokens):
            limit = first_tokens[start] + self._room
            end = max(bisect_right(ends, limit), start + 1)
            yield start, end
            if end == len(first_tokens):
                return
            shared_from = limit - int(self._room * SHARED)
            start = max(bisect_left(first_tokens, shared_from, hi=end), start + 1)

    def _window(
        self, span: Span, own: Span, first_tokens: Sequence[int], ids: Sequence[int]
    ) -> TokenWindow:
        first, end = span
        begin = first_tokens[first]
        until = first_tokens[end] if end < len(first_tokens) else len(ids)
        tokens = ids[begin : min(until, begin + self._room)]  # the first part of a longer word
        last = len(tokens) - 1
        before = len(self._before)
        places = [min(place - begin, last) + before for place in first_tokens[first:end]]
        return TokenWindow([*self._before, *tokens, *self._after], first, end, own, places)
