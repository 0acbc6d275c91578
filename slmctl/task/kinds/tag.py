"""tag: the answer is a JSON array of any number of the labels, in their order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from slmctl.artifacts.bounded_json import JsonObject
from slmctl.inference import subset_grammar
from slmctl.metrics.baseline import Majority, TfidfLogistic
from slmctl.task import label_sets
from slmctl.task.kinds.classify import label_in
from slmctl.task.kinds.extract import Extraction
from slmctl.task.kinds.kind import LabelOf


class Tagging(Extraction):
    """The array satisfies a schema, which also holds the labels, so it
    is read and compared as other JSON is.
    """

    name = "tag"
    has_labels = True
    row_metric = "micro_f1"
    baselines = (Majority.name, TfidfLogistic.name)
    right = "the reference labels, all of them and no other"
    instruction = (
        "Answer with a JSON array of those of these labels that fit, [] for none, and "
        "nothing else: {labels}"
    )

    def fault(self) -> str:
        return "" if self.labels else "schema: it is none of several labels"

    @property
    def labels(self) -> tuple[str, ...]:
        return subset_grammar.choices(self.task.schema)

    def kept(self, text: str) -> str:
        names = label_sets.parse(text)
        if not isinstance(names, list) or not all(name in self.labels for name in names):
            return text
        return label_sets.written(names, self.labels)

    def schema_of(self, labels: Sequence[str]) -> JsonObject:
        return label_sets.schema(labels)

    def answer_of(
        self, cell: str, label_of: LabelOf, *, order: Sequence[str] | None, separator: str | None
    ) -> str:
        return label_sets.written(
            [label_of(name) for name in label_sets.read(cell, separator)], order
        )

    def read_reply(self, text: str) -> str:
        """The labels of the list in the reply, or of the reply itself, in their order."""
        value = label_sets.parse(text[text.find("[") : text.rfind("]") + 1])
        parts = value if isinstance(value, list) else re.split(r"[,;|\n]", text)
        names = {name for part in parts if (name := label_in(str(part), self.labels)) is not None}
        return label_sets.written(names, self.labels) if names or value == [] else text
