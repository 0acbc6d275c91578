"""extract: the answer is JSON that satisfies the task's schema."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slmctl.artifacts.bounded_json import is_deeper
from slmctl.errors import DataError
from slmctl.metrics import answer_metrics
from slmctl.metrics.baseline import Copy, Empty
from slmctl.task.kinds.kind import LabelOf, TaskKind
from slmctl.task.records import RowRejectedError

if TYPE_CHECKING:  # jsonschema takes a tenth of a second, and most commands validate nothing
    import jsonschema


class Extraction(TaskKind):
    name = "extract"
    structured = True
    row_metric = "field_f1"
    baselines = (Copy.name, Empty.name)
    empty = "{}"
    right = "an object equal to the reference answer"
    rubric = (
        "The better answer holds the values as the text states them: none is wrong, missing "
        "or invented."
    )
    instruction = (
        "Answer with one JSON object and nothing else. It must satisfy this JSON Schema: {schema}"
    )

    def constraint(self, tools: Sequence[Any] | None = None) -> str:
        return json.dumps(self.task.schema)

    def read(self, text: str) -> Any:
        value = answer_metrics.parse(text)
        if value is answer_metrics.INVALID:
            raise DataError("the answer is not JSON")
        return value

    def allows(self, value: Any, tools: Sequence[Any] | None = None) -> bool:
        return not any(_validator(json.dumps(self.task.schema)).iter_errors(value))

    def same(self, answer: str, other: str) -> bool:
        return answer_metrics.same_json(self.kept(answer.strip()), self.kept(other.strip()))

    def answer_of(
        self, cell: str, label_of: LabelOf, *, order: Sequence[str] | None, separator: str | None
    ) -> str:
        """The JSON with sorted keys, the form that a model is trained to write."""
        try:
            value = json.loads(cell)
            if is_deeper(value, deepest := answer_metrics.MAX_DEPTH):
                raise RowRejectedError(
                    "answer is not JSON", f"the answer is nested more than {deepest} deep"
                )
            return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
        except (ValueError, RecursionError):
            raise RowRejectedError(
                "answer is not JSON", f"the answer is not JSON: '{cell[:60]}'"
            ) from None

    def read_reply(self, text: str) -> str:
        """The reply if it is JSON, else the JSON in it, in a code
        fence or between the outermost braces.
        """
        if answer_metrics.parse(text) is not answer_metrics.INVALID:
            return text
        inner = object_in(text)
        return inner if answer_metrics.parse(inner) is not answer_metrics.INVALID else text


def object_in(text: str) -> str:
    """The inside of the first code fence that is of JSON or of no language, else the text between
    outermost braces.

    It takes linear time, as the text is foreign.
    """
    for part in text.split("```")[1:-1]:
        language, *inner = part.split("\n", 1)
        if inner and language.strip().lower() in ("", "json"):
            return inner[0].strip()
    return text[text.find("{") : text.rfind("}") + 1]


@functools.lru_cache(maxsize=8)
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads(schema))
