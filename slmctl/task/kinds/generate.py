"""generate: the answer is any text."""

from __future__ import annotations

from slmctl.metrics import answer_metrics
from slmctl.task.kinds.kind import TaskKind


class Generation(TaskKind):
    name = "generate"
    is_free = True
    primary = row_metric = "token_f1"
    baselines = ("copy", "empty")
    right = "the same words in the same order as the reference answer"
    instruction = "Answer with the text and nothing else."

    def same(self, answer: str, other: str) -> bool:
        return answer_metrics.same_text(answer, other)
