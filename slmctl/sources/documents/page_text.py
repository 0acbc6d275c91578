"""The pages of a PDF without what repeats on most of them, and with words that a line end divided whole again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

EDGE = 3  # lines at the start and at the end of a page that may repeat
LEAST_PAGES = 3  # of a document in which repetition says something

# pdfium writes a hyphen at the end of a line, and the line end, as one of the first two.
_HYPHEN = re.compile(r"[\x02\ufffe]\n?|[-\u2010\u00ad]\n(?=[^\W\d_])")
# A number such as that of a page; amounts and dates tell pages apart.
_NUMBER = re.compile(r"(?<![\d.,])\d{1,4}(?![.,]?\d)")
MOST_NUMBERS = 2  # in a line of numbers alone, such as 3/12; a row of a table has more
# A word after a hyphen that stays one: `Vor-` / `und Nachteile`.
_JOINER = re.compile(r"(?:und|oder|bzw|sowie|bis|als|noch|and|or|to|et|ou)\b")


def cleaned(pages: Sequence[str]) -> list[str]:
    """The pages without headers, footers and numbers that stand on most of them; the lines of a paragraph stay."""
    lines = [[line.rstrip() for line in page.replace("\r\n", "\n").split("\n")] for page in pages]
    repeated = _repeated(lines)
    return [_joined("\n".join(_without(page, repeated))) for page in lines]


def _edges(lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """(index, `first` or `last`, form up to numbers) of the first and last lines of a page that are not blank."""
    filled = [at for at, line in enumerate(lines) if line.strip()]
    for side, places in (("first", filled[:EDGE]), ("last", filled[-EDGE:])):
        yield from ((at, side, _form(" ".join(lines[at].split()).casefold())) for at in places)


def _form(line: str) -> str:
    masked, count = _NUMBER.subn("0", line)
    return masked if count <= MOST_NUMBERS or any(map(str.isalpha, line)) else line


def _repeated(pages: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
    """The (side, form) of lines on more than half of the pages."""
    if len(pages) < LEAST_PAGES:
        return set()
    counts = Counter(key for page in pages for key in {(side, form) for _, side, form in _edges(page)})
    return {key for key, count in counts.items() if count * 2 > len(pages)}


def _without(lines: Sequence[str], repeated: set[tuple[str, str]]) -> list[str]:
    """The other lines of a page; all of them where nothing else stands there."""
    out = {at for at, side, form in _edges(lines) if (side, form) in repeated}
    left = [line for at, line in enumerate(lines) if at not in out]
    return left if any(map(str.strip, left)) else [*lines]


def _joined(text: str) -> str:
    """A text in which `Kündi-` / `gung` is one word; a capital or a joining word after the hyphen leaves it."""

    def whole(match: re.Match[str]) -> str:
        before, after = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 8]
        divides = before.isalpha() and before.islower() and after[:1].islower() and not _JOINER.match(after)
        return "" if divides else "-\n"

    return _HYPHEN.sub(whole, text)
