"""Unicode's normal forms: Python's own, but for rows of marks that would take quadratic time."""

from __future__ import annotations

import itertools
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import here
from support.serving import GENERATE

from slmctl.deduplication import minhash
from slmctl.metrics import answer_metrics, text_facts
from slmctl.normal_forms import JOINER, MOST, in_normal_form
from slmctl.stages.prepare import record_reader
from slmctl.task import contract
from slmctl.task.contract import Task
from slmctl.task.evidence import Evidence

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
MARKS = "\u0300\u0316\u0301\u0323\u0344\u0f71\u0f73\u0f75\u0f81\u093c\u3099\uff9e\uff9f\u05b0\u064b\U0001d165"
FLOOD = "a" + "\u0300\u0316" * 12_000  # 48 kB, which took a second and held all threads
# a mark is two at most when it is decomposed, and a letter before them ends with three
DECOMPOSED = 2 * MOST + 3

letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map(
    lambda text: "".join(char for char in text if not is_mark(char))
)
words = st.tuples(letters.map(lambda text: text or "e"), st.text(MARKS, max_size=MOST)).map("".join)


def is_mark(char: str) -> bool:
    return unicodedata.combining(unicodedata.normalize("NFKD", char)[0]) > 0


def longest_row(text: str) -> int:
    """The most marks in a row of a text that is decomposed."""
    rows = itertools.groupby(
        unicodedata.normalize("NFKD", text), lambda char: unicodedata.combining(char) > 0
    )
    return max((len([*row]) for of_marks, row in rows if of_marks), default=0)


@settings(deadline=None)
@given(st.lists(words, max_size=6).map("".join), st.sampled_from(FORMS))
def test_a_text_without_over_30_marks_in_a_row_has_pythons_normal_form(
    text: str, form: Any
) -> None:
    assert in_normal_form(text, form) == unicodedata.normalize(form, text)


@settings(deadline=None)
@given(st.text(MARKS, min_size=MOST + 1, max_size=400), st.sampled_from(FORMS))
def test_marks_in_a_row_are_parted_and_none_is_lost(marks: str, form: Any) -> None:
    text = in_normal_form("e" + marks, form)
    assert longest_row(text) <= DECOMPOSED
    assert sorted(unicodedata.normalize("NFKD", text.replace(JOINER, ""))) == sorted(
        unicodedata.normalize("NFKD", "e" + marks)
    )


def test_every_mark_of_unicode_is_known() -> None:
    chars = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    rows = {
        char: in_normal_form(char * (MOST + 1), "NFD").count(JOINER)
        for char in chars
        if char != JOINER
    }
    assert {char for char, count in rows.items() if count} == set(filter(is_mark, chars))


def test_a_flood_of_combining_marks_is_sorted_in_short_rows_wherever_texts_are_normalised() -> None:
    task = Task("generate", "", "", normal_form="NFC")
    read = [
        task.defused(FLOOD),
        record_reader._digits(FLOOD),
        *answer_metrics.words(FLOOD),
        minhash.normalise(FLOOD),
    ]
    read += [text_facts.joined(FLOOD), *(word for word, *_ in Evidence(FLOOD)._words)]
    read += task.written_labels((FLOOD,))
    assert max(map(len, read)) > MOST and all(longest_row(text) <= DECOMPOSED for text in read)


def test_a_client_that_sends_combining_marks_is_answered_and_they_stay_in_short_rows() -> None:
    with here.in_front(
        task=Task(**{**vars(GENERATE), "normal_form": "NFC"}), context_length=4096
    ) as server:
        assert server.ask(FLOOD).status_code == 200
        (message,) = server.fake.bodies[-1]["messages"]
        assert longest_row(message["content"]) <= DECOMPOSED


def test_a_client_whose_text_is_too_long_is_refused_before_it_is_normalised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = list[int]()

    def noted(text: str, form: Any) -> str:
        lengths.append(len(text))
        return in_normal_form(text, form)

    monkeypatch.setattr(contract, "in_normal_form", noted)
    with here.in_front(
        task=Task(**{**vars(GENERATE), "normal_form": "NFC"}), context_length=256
    ) as server:
        said = server.ask(FLOOD)
        assert (
            said.status_code == 400 and "the prompt does not fit" in said.json()["error"]["message"]
        )
        assert server.ask("hello").status_code == 200
    assert lengths and max(lengths) < 1000
