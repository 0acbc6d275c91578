"""Unicode's normal forms of any text, in time that is linear in its length."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Literal

MOST = 30  # marks in a row, as in Unicode's stream-safe form (UAX 15, section 13)
JOINER = "\u034f"  # the combining grapheme joiner, over which no mark is moved


def in_normal_form(text: str, form: Literal["NFC", "NFD", "NFKC", "NFKD"]) -> str:
    """A text in a normal form, with a JOINER after each MOST marks that stand in a row before
    another one.

    Python sorts such a row in quadratic time, and no other thread runs meanwhile.
    """
    if not text.isascii():
        mark, row = _patterns()
        if mark.search(text[MOST - 1 :: MOST]):  # one mark of each long row stands at such a place
            text = row.sub(rf"\g<0>{JOINER}", text)
    return unicodedata.normalize(form, text)


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Matchers of a mark, and of MOST marks before another one."""
    marks = f"[{''.join(filter(_is_mark, map(chr, range(0x300, 0x1F000))))}]"
    return re.compile(marks), re.compile(f"{marks}{{{MOST}}}(?={marks})")


def _is_mark(char: str) -> bool:
    """True for a character that is one or more marks ("non-starters") when it is decomposed."""
    return unicodedata.combining(unicodedata.normalize("NFKD", char)[0]) > 0
