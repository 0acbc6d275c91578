"""The pages of a PDF without what repeats on most of them, and with words
that a line end divided whole again.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

EDGE = 3  # lines at the start and at the end of a page that may repeat
LEAST_PAGES = 3  # of a document in which repetition says something

# pdfium writes a hyphen at the end of a line, and the line end, as one of the first two.
_HYPHEN = re.compile(r"[\x02\ufffe]\n?|[-\u2010\u00ad]\n(?=[^\W\d_])")
# A number such as that of a page; those in amounts and dates are none.
_NUMBER = re.compile(r"(?<![\d.,])\d{1,4}(?![.,]?\d)")
# of a line that are compared with the page; each one doubles the forms of the line
MOST_NUMBERS = 4
# A word after a hyphen that stays one: `Vor-` / `und Nachteile`.
_JOINER = re.compile(r"(?:und|oder|bzw|sowie|bis|als|noch|and|or|to|et|ou)\b")


def cleaned(pages: Sequence[str]) -> list[str]:
    """The pages without headers, footers and numbers that stand on most
    of them; the lines of a paragraph stay.
    """
    lines = [[line.rstrip() for line in page.replace("\r\n", "\n").split("\n")] for page in pages]
    repeated = _repeated(lines)
    return [_joined("\n".join(_without(each, page, repeated))) for page, each in enumerate(lines)]


def _edges(lines: Sequence[str], page: int) -> Iterator[tuple[int, str, str]]:
    """(index, `first` or `last`, a form) for each form of the first and
    last lines of a page that are not blank.
    """
    filled = [at for at, line in enumerate(lines) if line.strip()]
    for side, places in (("first", filled[:EDGE]), ("last", filled[-EDGE:])):
        for at in places:
            yield from (
                (at, side, form) for form in _forms(" ".join(lines[at].split()).casefold(), page)
            )


def _forms(line: str, page: int) -> Iterator[str]:
    """The line with each number as it stands, or as its distance from the page: `page 3 of 12`,
    `page <1> of 12` …

    A number that goes with the page is that of the page; another one, such as an amount, tells
    pages apart.
    """
    pieces, numbers = _NUMBER.split(line), _NUMBER.findall(line)
    choices = [(number, f"<{int(number) - page}>") for number in numbers[:MOST_NUMBERS]]
    for shown in itertools.product(*choices):
        yield "".join(
            itertools.chain(*zip(pieces, [*shown, *numbers[MOST_NUMBERS:], ""], strict=True))
        )


def _repeated(pages: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
    """The (side, form) of lines on more than half of the pages."""
    if len(pages) < LEAST_PAGES:
        return set()
    keys = (
        {(side, form) for _, side, form in _edges(lines, page)} for page, lines in enumerate(pages)
    )
    counts = Counter(itertools.chain.from_iterable(keys))
    return {key for key, count in counts.items() if count * 2 > len(pages)}


def _without(lines: Sequence[str], page: int, repeated: set[tuple[str, str]]) -> list[str]:
    """The other lines of a page; all of them where nothing else stands there."""
    out = {at for at, side, form in _edges(lines, page) if (side, form) in repeated}
    left = [line for at, line in enumerate(lines) if at not in out]
    return left if any(map(str.strip, left)) else [*lines]


def _joined(text: str) -> str:
    """A text in which `Kündi-` / `gung` is one word; a capital or a
    joining word after the hyphen leaves it.
    """

    def whole(match: re.Match[str]) -> str:
        before, after = (
            text[max(0, match.start() - 1) : match.start()],
            text[match.end() : match.end() + 8],
        )
        divides = (
            before.isalpha()
            and before.islower()
            and after[:1].islower()
            and not _JOINER.match(after)
        )
        return "" if divides else "-\n"

    return _HYPHEN.sub(whole, text)
