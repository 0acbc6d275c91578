"""Answers of a model from one or several OpenAI-compatible endpoints that serve it (vLLM,
llama-server).

Prompts are those of training, with the labels or the schema as a constraint. Answers are checked
against the task here too, since not every server applies the constraint.
"""

from __future__ import annotations

from collections.abc import Sequence

from slmctl.errors import DataError
from slmctl.inference.engine import Answer, Outcomes
from slmctl.inference.supervised_child import EngineError
from slmctl.models.prompts import Prompt
from slmctl.network.endpoint_pool import EndpointPool, Refusal
from slmctl.network.endpoint_replies import Reply
from slmctl.network.openai_client import EndpointRequest, constraint
from slmctl.task import tool_calls
from slmctl.task.contract import Task
from slmctl.task.untuned_prompt import read


class EndpointAnswerer:
    """Answers through endpoints."""

    def __init__(self, pool: EndpointPool, task: Task, max_tokens: int) -> None:
        self.pool = pool
        self.task = task
        self.max_tokens = max_tokens

    def answer(self, prompts: Sequence[Prompt]) -> Outcomes:
        calls = self.task.rules.calls  # no endpoint takes the grammar of calls
        more = {
            "logprobs": True,
            **constraint(self.task.labels, "" if calls else self.task.rules.constraint()),
        }
        for index, reply in self.pool.ask_all(self._request(prompt, more) for prompt in prompts):
            yield index, self._answer(reply)

    def _request(self, prompt: Prompt, options: dict[str, object]) -> EndpointRequest:
        """A prompt's messages, with the tools of a task of calls as
        its model was trained to see them.
        """
        messages, tools = self.task.template_input(prompt.messages, None)
        turns = self.task.safe_messages(messages)
        return EndpointRequest(turns, self.max_tokens, tools=tuple(tools or ()), options=options)

    def _answer(self, reply: Reply | Refusal) -> Answer | EngineError:
        if isinstance(reply, Refusal):
            return EngineError(reply.message)
        text = read(self.task, reply.text)
        if self.task.rules.calls and reply.tool_calls:
            text = tool_calls.answer_of_openai(reply.tool_calls) or text
        if self.task.rules.chooses:
            try:
                self.task.read_answer(text)
            except DataError as error:
                return EngineError(f"the endpoint's answer does not fit: {error.message}")
        return Answer(
            text,
            reply.finish,
            reply.confidence,
            reply.prompt_tokens or 0,
            reply.completion_tokens or 0,
        )
