"""call: the answer is a call of one of the offered tools, or none."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from slmctl.errors import DataError
from slmctl.metrics import answer_metrics
from slmctl.metrics.baseline import Nearest, NoCall
from slmctl.task import tool_calls
from slmctl.task.kinds.extract import object_in
from slmctl.task.kinds.kind import TaskKind
from slmctl.task.tool_calls import NO_CALL, Tool, ToolCall


class Calling(TaskKind):
    name = "call"
    structured = calls = True
    row_metric = "field_f1"
    baselines = (NoCall.name, Nearest.name)
    empty = NO_CALL
    right = "the call of the reference answer with equal arguments, or no call where it has none"
    rubric = (
        "The better answer calls the tool that does what is asked, with the right arguments, "
        "or none if none fits."
    )
    instruction = (
        'Answer with one JSON object {{"arguments": {{…}}, "name": "…"}} that calls one of the '
        "tools and nothing else, "
        f"or with the word {NO_CALL} where no tool fits. The tools: {{tools}}"
    )

    def fault(self) -> str:
        if self.task.call_form is None:
            return "call_form: it is missing"
        try:
            self.offered()
        except DataError as error:
            return f"tools: {error.message}"
        return ""

    def offered(self, tools: Sequence[Any] | None = None) -> tuple[Tool, ...]:
        values = tools or self.task.tools
        return tool_calls.read_tools(values) if values else ()

    def constraint(self, tools: Sequence[Any] | None = None) -> str:
        offered = self.offered(tools)
        return self.task.form.rules(offered) if offered else ""

    def read(self, text: str) -> ToolCall | None:
        return tool_calls.read_answer(text)

    def allows(self, value: Any, tools: Sequence[Any] | None = None) -> bool:
        tool_calls.require_offered(value, self.offered(tools))
        return True

    def written(self, answer: str) -> str:
        """The text of a call in the base's own form, whose control tokens stay."""
        with contextlib.suppress(DataError):
            return self.task.form.write(self.read(answer), safe=self.task.defused)
        return super().written(answer)

    def kept(self, text: str) -> str:
        with contextlib.suppress(DataError):
            return tool_calls.answer_of(self.task.form.read(text))
        return text

    def same(self, answer: str, other: str) -> bool:
        try:
            first, second = self.read(answer.strip()), self.read(other.strip())
        except DataError:
            return False
        if first is None or second is None:
            return first is second
        return first.name == second.name and answer_metrics.equal(first.arguments, second.arguments)

    def read_reply(self, text: str) -> str:
        """The call in the base's form, or in JSON of name and
        arguments; NO_CALL if the reply is that word.
        """
        kept = self.kept(text)
        with contextlib.suppress(DataError):
            if self.allows(self.read(kept.strip())):
                return kept
        if text.casefold().rstrip(".") == NO_CALL:
            return NO_CALL
        value = answer_metrics.parse(object_in(text))
        if isinstance(value, dict) and value.keys() == {"name", "arguments"}:
            return json.dumps(value, ensure_ascii=False, sort_keys=True)
        return kept
