"""The task contract: the form of the prompt and the reading of the answer. It travels as
`task.json`.

`prepare` writes it, every later artifact and release carries it, and finetune, predict and serve
all render their prompts here, so a model is measured and served with the prompts it was trained on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from slmctl.artifacts.artifact import canonical, sha256_bytes
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.artifacts.typed_json import read_typed
from slmctl.config import pattern_bound
from slmctl.errors import DataError, IntegrityError
from slmctl.model_files.base_model import NormalForm
from slmctl.normal_forms import in_normal_form
from slmctl.task import chat_template, cleaning, tool_calls
from slmctl.task.chat_template import LIMIT_S
from slmctl.task.cleaning import Replacement
from slmctl.task.documents import WindowForm
from slmctl.task.kinds import KINDS, kind_of
from slmctl.task.kinds.kind import TaskKind
from slmctl.task.records import Message, RowRejectedError, with_instruction
from slmctl.task.tool_calls import CallForm, ToolCall

FILENAME = "task.json"


@dataclass(frozen=True)
class Task:
    """One task of a model, and the exact form of its prompts.

    Attributes:
        kind: classify, tag, extract, generate or call.
        labels: The allowed answers (classify).
        schema: The JSON Schema of an answer (extract, tag).
        system: The system prompt; empty for none.
        chat_template: Jinja source that turns messages into the prompt.
        bos_token, eos_token: The base's tokens, for the template.
        special_tokens: Texts that its tokenizer turns into control tokens; never taken from data.
        end: The text that ends an answer, such as `<|im_end|>`.
        normal_form: Unicode normal form that its tokenizer applies to every text, and llama.cpp
            does not.
        clean: Steps of `cleaning` for a user's raw text, the same as for the records.
        replace: Replacements after these steps.
        descriptions: A sentence for each label that has one, for models that were not trained for
            the task.
        tools: The tools that may be called, in OpenAI's form, for a conversation without own tools
            (call).
        call_form: The form in which the model writes a call (call).
        ordered: True where the labels are levels, from low to high (classify).
        document: The windows in which long texts are asked; None where a text is asked as a whole.
        must, must_not: Regular expressions that a draft must and must not have (generate).
    """

    # of a file that is read
    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid", "strict": True}

    kind: str
    chat_template: str
    end: str
    labels: tuple[str, ...] = ()
    schema: JsonObject | None = None
    system: str = ""
    bos_token: str = ""
    eos_token: str = ""
    special_tokens: tuple[str, ...] = ()
    normal_form: NormalForm = ""
    clean: tuple[Literal["html", "quoted_mail", "signatures", "whitespace"], ...] = ()
    replace: tuple[Replacement, ...] = ()
    descriptions: dict[str, str] = field(default_factory=dict)
    tools: tuple[JsonObject, ...] = ()
    call_form: CallForm | None = None
    ordered: bool = False
    document: WindowForm | None = None
    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Task:
        """The contract in an artifact's folder.

        Raises:
            IntegrityError: The folder carries none, or one with missing, unknown or wrong values;
                all are named.
        """
        path = folder / FILENAME
        if not path.is_file():
            raise IntegrityError(
                f"{folder} carries no {FILENAME}, so the task of its model is unknown",
                hint="take a model that slmctl made, or name a prepared data set beside it",
            )
        task = read_typed(path, cls, hint="run the stage that wrote it again")
        if task.kind not in KINDS:
            raise IntegrityError(
                f"{path} is not valid: kind: '{task.kind}' is none of {', '.join(KINDS)}"
            )
        if task.schema is not None and (fault := tool_calls.schema_fault(task.schema)):
            raise IntegrityError(f"{path} is not valid: schema: {fault}")
        if "" in task.special_tokens:
            raise IntegrityError(f"{path} is not valid: special_tokens: an empty text is no token")
        if (
            task.document is not None
            and not 0 <= 4 * task.document.overlap <= task.document.size + 4 > 4
        ):
            raise IntegrityError(
                f"{path} is not valid: document: windows of this size and overlap cut no text"
            )
        if fault := task.rules.fault():
            raise IntegrityError(f"{path} is not valid: {fault}")
        patterns = [("replace", entry.pattern, entry.replacement) for entry in task.replace]
        patterns += [
            (key, pattern, "") for key in ("must", "must_not") for pattern in getattr(task, key)
        ]
        for key, pattern, replacement in patterns:
            if fault := pattern_bound.fault_of(pattern, replacement):
                raise IntegrityError(f"{path} is not valid: {key}: {fault}")
        return task

    def write(self, folder: Path) -> None:
        (folder / FILENAME).write_bytes(canonical(self._fields()))

    @property
    def digest(self) -> str:
        """The hash of the whole contract."""
        return sha256_bytes(canonical(self._fields()))

    def _fields(self) -> dict[str, Any]:
        """The fields as JSON; later ones only if they are set, so
        that older contracts keep their bytes.
        """
        fields = dataclasses.asdict(self)
        later = (
            "clean",
            "replace",
            "descriptions",
            "tools",
            "call_form",
            "ordered",
            "document",
            "must",
            "must_not",
        )
        return {name: value for name, value in fields.items() if value or name not in later}

    @property
    def cleans(self) -> bool:
        """True where raw texts are cleaned before they are asked."""
        return bool(self.clean or self.replace)

    @property
    def cleaning_steps(self) -> list[str]:
        """The steps of cleaning by name, in the order in which they are applied."""
        return cleaning.step_names(self.clean, self.replace)

    def cleaned_text(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Returns (a user's raw text, cleaned as `prepare` cleans
        records; the steps that changed it).
        """
        return cleaning.clean(text, self.clean, self.replace)

    def cleaned(self, messages: Sequence[Message]) -> list[Message]:
        """A raw conversation with the user's texts cleaned; records are cleaned already."""
        return [
            {**message, "content": self.cleaned_text(message["content"])[0]}
            if message["role"] == "user"
            else message
            for message in messages
        ]

    @property
    def rules(self) -> TaskKind:
        """The rules of the task's kind: the one place where kinds differ."""
        return kind_of(self.kind)(self)

    @property
    def is_json(self) -> bool:
        """True for a task whose answers are JSON of the schema."""
        return self.rules.structured and not self.rules.calls

    @property
    def mostly_reads(self) -> bool:
        """True where reading takes a model longer than writing: labels, or documents in windows."""
        return bool(self.labels) or self.document is not None

    @property
    def is_object(self) -> bool:
        """True for a task whose answers are JSON with values of a text, and not labels."""
        return self.is_json and not self.rules.has_labels

    @property
    def form(self) -> CallForm:
        """The form in which the model writes a call."""
        return self.call_form or tool_calls.OWN

    def messages(self, text: str, *, list_labels: bool = False) -> list[Message]:
        """The conversation that asks for one answer to a text."""
        turns: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        turns.append({"role": "user", "content": text})
        return self.with_label_list(turns) if list_labels else turns

    def with_label_list(self, messages: Sequence[Message]) -> list[Message]:
        """A conversation with the labels named in its system prompt, for
        a model that was not trained on them.
        """
        if not self.labels:
            return list(messages)
        return with_instruction(messages, f"\nAnswer with one of: {', '.join(self.labels)}.")

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        budget_s: float = LIMIT_S,
    ) -> str:
        """The text that the model continues with its answer; see `render`."""
        return self.render(messages, add_generation_prompt=True, tools=tools, budget_s=budget_s)

    def prompts(
        self, conversations: Iterable[tuple[Sequence[Message], Sequence[Any] | None]]
    ) -> list[str]:
        """The prompts of many conversations, each with its tools, many
        times faster than one by one; see `render`.
        """
        values = [
            self._values(messages, tools, add_generation_prompt=True)
            for messages, tools in conversations
        ]
        return chat_template.render_all(self.chat_template, values)

    def with_calls_as_text(
        self, before: Sequence[Message], message: Message, tools: Sequence[Any] | None
    ) -> Message:
        """An assistant's message with its tool calls as the text that the template makes of them,
        or the task's form.

        Raises:
            RowRejectedError: The template refuses the call, or writes no tool calls, so that no
                model could learn one.
        """
        functions = [call["function"] for call in message["tool_calls"]]
        written = message.copy()
        del written["tool_calls"]
        if self.rules.calls:
            calls = [ToolCall(function["name"], function["arguments"]) for function in functions]
            written["content"] = "\n".join(
                self.form.write(call, safe=self.defused) for call in calls
            )
            return written
        try:
            head = self.render(before, add_generation_prompt=True, tools=tools)
            whole = self.render([*before, message], add_generation_prompt=False, tools=tools)
        except chat_template.TemplateRefusedError as error:
            raise RowRejectedError("chat template", error.message) from None
        text = whole.removeprefix(head).rpartition(self.end)[0].strip()
        if not whole.startswith(head) or any(
            function["name"] not in text for function in functions
        ):
            raise RowRejectedError(
                "tool calls", "the base's chat template does not write tool calls"
            )
        written["content"] = text
        return written

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Any] | None = None,
        budget_s: float = LIMIT_S,
    ) -> str:
        """Render messages, and the tools that the model may call, by the chat template.

        A control token spelled out in a message is data, not control: it is broken up by a
        zero-width space, so that no customer can close their own turn and open the system's. The
        template is rendered by another process, which takes up to `budget_s` seconds: an event loop
        calls this in a thread.

        Raises:
            TemplateRefusedError: The template refuses these messages.
            TemplateLimitError: It takes more time or memory than it may have.
        """
        values = self._values(messages, tools, add_generation_prompt=add_generation_prompt)
        return chat_template.render(self.chat_template, values, budget_s=budget_s)

    @property
    def whole_system(self) -> str:
        """The system prompt with the tools listed in it, for engines
        without a task contract; '' for none.
        """
        first: Sequence[Message] = self.template_input(self.messages(""), None)[0][:1]
        return first[0]["content"] if first[0]["role"] == "system" else ""

    def template_input(
        self, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> tuple[Sequence[Message], Sequence[Any] | None]:
        """Returns (messages, tools) for the chat template; the form of calls
        decides if tools are passed or listed.
        """
        offered = self.rules.offered(tools)
        if not offered:
            return messages, tools
        if self.form.own:
            return tool_calls.with_listed(messages, offered), None
        return messages, [tool.to_json() for tool in offered]

    def _values(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        *,
        add_generation_prompt: bool,
    ) -> dict[str, Any]:
        messages, tools = self.template_input(messages, tools)
        return {
            "messages": self.safe_messages(messages),
            "tools": self.safe(tools) if tools else None,
            "documents": None,  # as transformers passes it to a template without documents
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        }

    def safe_messages(self, messages: Sequence[Message]) -> list[Any]:
        """Messages for rendering: every text defused, but the form of
        earlier calls keeps its control tokens.
        """
        return [self._safe_message(message) for message in messages]

    def _safe_message(self, message: Message) -> Any:
        safe, rest = self.safe(message), message.get("content")
        own = self.form.control and self.form.before and message.get("role") == "assistant"
        # such as a call of the standard form, which has no text
        if not own or not isinstance(rest, str):
            return safe
        calls: list[str] = []  # the last ones of the message, in order
        while (at := rest.rfind(self.form.before)) >= 0:
            try:
                call = self.form.read(rest[at:].rstrip("\n"))
            except DataError:
                break
            calls.insert(0, self.form.write(call, safe=self.defused))
            rest = rest[:at]
        return safe | {"content": self.defused(rest) + "\n".join(calls)} if calls else safe

    def safe(self, value: Any) -> Any:
        """A value of a message with every text in it defused."""
        if isinstance(value, str):
            return self.defused(value)
        if isinstance(value, Mapping):
            return {key: self.safe(inner) for key, inner in value.items()}
        return [self.safe(inner) for inner in value] if isinstance(value, list | tuple) else value

    def defused(self, text: str) -> str:
        """A message's text for rendering: in the normal form, with
        control tokens that it spells out broken up.
        """
        if self.normal_form:
            text = in_normal_form(text, self.normal_form)
        for token in self.special_tokens:
            if token in text:
                text = text.replace(token, token[0] + "\u200b" + token[1:])
        return text

    def written_labels(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Labels in the normal form, as the model learned to
        write them; () where they are in it.
        """
        if not self.normal_form:
            return ()
        written = tuple(in_normal_form(label, self.normal_form) for label in labels)
        return written if written != labels else ()

    def read_answer(self, text: str) -> Any:
        """The value in an answer: a label, the parsed JSON, a ToolCall or None for no call, or the
        text itself.

        Raises:
            DataError: The answer is not one of the labels, not JSON, or no call.
        """
        return self.rules.read(text.strip())

    def accepts(self, text: str, *, tools: Sequence[Any] | None = None) -> bool:
        """True for an answer that the task allows: a label, JSON that satisfies the schema, an
        offered call, any text.

        Args:
            text: The answer as it is kept.
            tools: The conversation's own tools, for a call.
        """
        try:
            return self.rules.allows(self.read_answer(text), tools)
        except DataError:
            return False


def end_of_turn(template: str, *, bos_token: str, eos_token: str) -> str:
    """The text that a chat template puts right after an assistant's message, which must end an
    answer.

    Raises:
        DataError: The template puts nothing there, so a model trained with it would never stop.
    """
    task = Task("generate", template, "", bos_token=bos_token, eos_token=eos_token)
    question: Message = {"role": "user", "content": "question"}
    whole = task.render(
        [question, {"role": "assistant", "content": "ANSWER"}], add_generation_prompt=False
    )
    end = whole.rpartition("ANSWER")[2].strip()
    if not end:
        raise DataError(
            "the chat template has no end of turn", hint="a model trained with it would never stop"
        )
    token = re.match(r"<[^<>\s]+>|\S+", end)
    return token.group() if token else end


def call_form_of(task: Task) -> CallForm:
    """The form in which a base's chat template writes calls, or OWN;
    `task` has the base's part of the contract.
    """
    bare = dataclasses.replace(task, kind="generate")

    def render(messages: Sequence[Message], tools: Sequence[JsonObject] | None, opens: bool) -> str:
        return bare.render(messages, add_generation_prompt=opens, tools=tools)

    return tool_calls.form_of(render, end=task.end, special_tokens=task.special_tokens)
