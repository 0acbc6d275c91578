"""Cleaning of raw texts: by `prepare` before training, and by predict, chat and the server before a
prompt is rendered.

A step that would leave nothing leaves the text as it is, so that no prompt is empty. A step depends
on the text alone, and takes time linear in its length.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

from slmctl.sources.documents import html_text
from slmctl.task import mail_text

GROWTH = 4  # times that a replacement may lengthen a text; a longer one is not made

_LINE_END = re.compile(r"\r\n?")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_SPACES = re.compile(r"[^\S\n\f]+")  # a form feed ends a page of a document
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Replacement:
    """A regular expression and the text in place of each match, in the syntax of Python's `re`."""

    pattern: str
    replacement: str


def clean(
    text: str, steps: tuple[str, ...], replace: tuple[Replacement, ...]
) -> tuple[str, tuple[str, ...]]:
    """Returns (cleaned text, names of the steps that changed it).

    Args:
        steps: Names of STEPS, which are applied in the order of STEPS.
        replace: Applied in order after the other steps, before `whitespace`.
    """
    made: list[str] = []
    for name, step in _plan(steps, replace):
        cleaned = step(text)
        if cleaned != text and cleaned.strip():
            text = cleaned
            made.append(name)
    return text, tuple(made)


def step_names(steps: tuple[str, ...], replace: tuple[Replacement, ...]) -> list[str]:
    """The names of the steps in the order in which they are applied, as `clean` returns them."""
    return [name for name, _ in _plan(steps, replace)]


@functools.lru_cache(maxsize=64)
def _plan(
    steps: tuple[str, ...], replace: tuple[Replacement, ...]
) -> tuple[tuple[str, Callable[[str], str]], ...]:
    plan: list[tuple[str, Callable[[str], str]]] = []
    for name, step in STEPS.items():
        if name == "whitespace":
            plan += [
                (f"replace {entry.pattern}", functools.partial(_replaced, entry))
                for entry in replace
            ]
        if name in steps:
            plan.append((name, step))
    return tuple(plan)


def _replaced(entry: Replacement, text: str) -> str:
    new = re.sub(entry.pattern, entry.replacement, text)
    return new if len(new) <= GROWTH * len(text) + 1000 else text


def _tidied(text: str) -> str:
    """One space for several, at most one blank line, no white space
    around lines and no invisible characters.
    """
    text = _INVISIBLE.sub("", _LINE_END.sub("\n", text))
    text = "\n".join(line.strip(" ") for line in _SPACES.sub(" ", text).split("\n"))
    return _BLANK_LINES.sub("\n\n", text).strip(" \n") if text.strip() else ""


STEPS: dict[str, Callable[[str], str]] = {
    "html": html_text.text_of,
    "quoted_mail": mail_text.without_quotations,
    "signatures": mail_text.without_signature,
    "whitespace": _tidied,
}
