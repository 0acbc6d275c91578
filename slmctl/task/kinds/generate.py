"""generate: the answer is any text."""

from __future__ import annotations

from collections.abc import Sequence

from slmctl.metrics import answer_metrics
from slmctl.metrics.baseline import Copy, Empty, Nearest
from slmctl.reports.evaluation_report import CHECKS
from slmctl.task import draft_checks
from slmctl.task.kinds.kind import TaskKind
from slmctl.task.records import Message


class Generation(TaskKind):
    name = "generate"
    is_free = True
    primary = row_metric = "token_f1"
    baselines = (Copy.name, Empty.name, Nearest.name)
    right = "the same words in the same order as the reference answer"
    rubric = (
        "The better answer does what is asked, is right by the conversation, invents nothing, and "
        "is no longer "
        "than needed."
    )
    instruction = "Answer with the text and nothing else."

    @property
    def checks(self) -> tuple[str, ...]:
        unset = {"missing_pattern": not self.task.must, "forbidden_pattern": not self.task.must_not}
        return tuple(check for check in CHECKS if not unset.get(check))

    def faults(
        self, answer: str, messages: Sequence[Message], *, finish: str | None = None
    ) -> draft_checks.Faults:
        task = self.task
        return draft_checks.faults(
            answer,
            messages,
            system=task.system,
            must=task.must,
            must_not=task.must_not,
            finish=finish,
        )

    def same(self, answer: str, other: str) -> bool:
        return answer_metrics.same_text(answer, other)

    def is_right(self, answer: str, reference: str, min_token_f1: float | None = None) -> bool:
        if min_token_f1 is None:
            return self.same(reference, answer)
        return (
            answer_metrics.token_f1(answer_metrics.words(reference), answer_metrics.words(answer))
            >= min_token_f1
        )
