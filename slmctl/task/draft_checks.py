"""A draft and its conversation -> its faults by check, which show
without a reference and without a judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from slmctl.metrics import answer_metrics
from slmctl.task import language
from slmctl.task.records import Message

# check -> the values at fault, such as `number 14`
Faults: TypeAlias = Mapping[str, tuple[str, ...]]
PHRASE = 20  # words of the longest phrase that is looked for
REPEATED = 3  # times in a row, and at least so many words in all:
REPEATED_WORDS = 9


def faults(
    answer: str,
    messages: Sequence[Message],
    *,
    system: str = "",
    must: Sequence[str] = (),
    must_not: Sequence[str] = (),
    finish: str | None = None,
) -> Faults:
    """The faults of an answer to a conversation, each with the values in it.

    Args:
        messages: The conversation before the answer: question, documents, results of tools.
        must, must_not: Regular expressions that are found in every answer, and in none.
        finish: `length` for an answer that was cut.
    """
    # here: its patterns take 30 ms to compile, and most commands check no draft
    from slmctl.metrics import grounding

    questions = [message["content"] for message in messages if message["role"] == "user"]
    question = questions[-1] if questions else ""
    spoken, expected = language.of_text(answer), language.of_text(question)
    texts = [message["content"] for message in messages if message["role"] != "system"]
    own = [message["content"] for message in messages if message["role"] == "system"]
    constants = "\n".join(dict.fromkeys([system, *own]))
    facts = grounding.ungrounded(answer, texts, constants=constants)
    is_other = spoken and expected and spoken != expected
    forbidden = filter(None, (re.search(pattern, answer) for pattern in must_not))
    phrase = repeated(answer_metrics.words(answer))
    values: dict[str, Sequence[str]] = {
        "ungrounded": [f"{fact.kind} {fact.text}" for fact in facts],
        "other_language": [language.NAMES[spoken]] if is_other else [],
        "missing_pattern": [pattern for pattern in must if not re.search(pattern, answer)],
        "forbidden_pattern": [match[0] for match in forbidden],
        "repetition": [phrase] if phrase else [],
        "unfinished": [""] if finish == "length" else [],
    }
    return {check: tuple(dict.fromkeys(each)) for check, each in values.items() if each}


def in_words(faults: Mapping[str, Sequence[str]]) -> str:
    """Faults as a cell of a table: `ungrounded: number 14, date 3 May; unfinished`."""
    return "; ".join(
        f"{check}: {', '.join(values)}" if any(values) else check
        for check, values in faults.items()
    )


def repeated(words: Sequence[str]) -> str:
    """The first phrase that stands REPEATED times in a row, the
    shortest one there is; '' for none.
    """
    for size in range(1, PHRASE + 1):
        run = 0
        for place in range(size, len(words)):
            run = run + 1 if words[place] == words[place - size] else 0
            if run + size >= max(REPEATED * size, REPEATED_WORDS):
                return " ".join(words[place - size + 1 : place + 1])
    return ""
