"""classify: the answer is one of the labels."""

from __future__ import annotations

from collections.abc import Sequence

from slmctl.errors import DataError
from slmctl.metrics import answer_metrics
from slmctl.metrics.baseline import Majority, TfidfLogistic
from slmctl.task.kinds.kind import LabelOf, TaskKind


class Classification(TaskKind):
    name = "classify"
    has_labels = chooses = True
    primary = row_metric = "accuracy"
    baselines = (Majority.name, TfidfLogistic.name)
    right = "the reference label"
    instruction = "Answer with exactly one of these labels and nothing else: {labels}"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.labels

    def read(self, text: str) -> str:
        if text not in self.labels:
            raise DataError(f"'{text[:60]}' is not one of the {len(self.labels)} labels")
        return text

    def answer_of(
        self, cell: str, label_of: LabelOf, *, order: Sequence[str] | None, separator: str | None
    ) -> str:
        return label_of(cell)

    def read_reply(self, text: str) -> str:
        """The label that equals the reply up to case and punctuation, else
        the only label in it, else the reply.
        """
        return label_in(text, self.labels) or text


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The only label in a text, up to case and punctuation; a label
    inside a longer one does not count.
    """
    if text in labels:
        return text
    words = answer_metrics.words(text)
    by_words: dict[tuple[str, ...], list[str]] = {}
    for label in labels:
        by_words.setdefault(tuple(answer_metrics.words(label)), []).append(label)
    whole = by_words.get(tuple(words), [])
    if len(whole) == 1:
        return whole[0]
    runs: set[tuple[str, ...]] = set()
    for size in set(map(len, by_words)):
        runs |= {tuple(words[k : k + size]) for k in range(len(words) - size + 1)}
    within = [key for key in by_words if key and key in runs]

    def is_part(key: tuple[str, ...]) -> bool:
        """True for words that stand in those of another label."""
        return any(key != other and _stands_in(key, other) for other in within)

    longest = [key for key in within if not is_part(key)]
    matches = [label for key in longest for label in by_words[key]]
    return matches[0] if len(matches) == 1 else None


def _stands_in(part: Sequence[str], text: Sequence[str]) -> bool:
    starts = range(len(text) - len(part) + 1)
    return any(tuple(text[start : start + len(part)]) == tuple(part) for start in starts)
