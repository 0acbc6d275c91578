"""A release and texts -> answers, for Python programs: Ray Data,
Spark, Dask, pandas or a plain loop.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.errors import UsageError
from slmctl.inference import engine
from slmctl.inference.escalation_policy import FILENAME, Policy
from slmctl.inference.events import ValuePlace
from slmctl.pipeline import model_lookup, system_errors
from slmctl.pipeline.graph import Project
from slmctl.pipeline.named import Workspace
from slmctl.sources.rows.cells import Row
from slmctl.stages.predict import row_answers

MAX_TOKENS: int = config.PredictConfig().max_tokens


@dataclass(frozen=True)
class TextAnswer:
    """The answer to one text.

    Attributes:
        answer: A label, JSON, or free text, as the task has it; None where there is an error.
        confidence: The model's probability of its whole answer, of an object that of all its values
            together.
        p_correct: How likely the answer is right, by the policy; None without one.
        keep: False for an answer that the policy would escalate; None without a policy.
        labels: The probabilities of the labels that were looked at, likeliest first.
        valid: True where an answer of `extract` or `call` satisfies its schema; None for other
            tasks.
        places: The places of the answer's values in a document, of a task that reads documents.
        faults: The faults of a draft, `ungrounded: number 14`, '' without any; None for other
            tasks.
        error: The reason for a missing answer, such as an empty text; None beside an answer.
    """

    answer: str | None
    confidence: float | None = None
    p_correct: float | None = None
    keep: bool | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    valid: bool | None = None
    places: Sequence[ValuePlace] = ()
    faults: str | None = None
    error: str | None = None


class Answerer:
    """A model that is opened once, and answers lists of texts as `slmctl predict --input` answers
    rows.

    Several threads may ask one Answerer: they take turns, a chunk of up to 512 texts at a time.
    Processes open one each. Its engine is a child process, which ends with `close`, at the end of a
    `with` block, or with this process.

    Args:
        model: A release, a gguf, merged or adapter artifact, a `.gguf` file, or `dir:REGISTRY#TAG`.
        type: The quantization type, where the model has several GGUF files; the smallest file by
            default.
        policy: A policy of `slmctl calibrate`, for `p_correct` and `keep`; the one in the model's
            folder by default.
        max_tokens: The longest answer, in tokens (extract, generate).
        directory: The folder that paths are relative to; its `slmctl.yaml` is the project, if one
            is needed.

    Raises:
        IntegrityError: The model is damaged, does not exist, or the policy is for another file or
            task.
        MissingError: A package that this model needs is not installed.
        UsageError: No such model exists, or a policy is given for a model that is not a GGUF file.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        type: str | None = None,
        policy: str | os.PathLike[str] | None = None,
        max_tokens: int = MAX_TOKENS,
        directory: str | os.PathLike[str] = ".",
    ) -> None:
        root = Path(directory)
        where = Workspace(
            root,
            lambda: Project(
                root=root.resolve(), config=config.load(root.resolve() / config.FILENAME)
            ),
        )
        self._turn = threading.Lock()
        with contextlib.ExitStack() as stack, system_errors.spoken("answering", root):
            request = model_lookup.FileModel(where, os.fspath(model), type, max_tokens=max_tokens)
            self.task, self._untuned = request.task, request.model.untuned
            self._policy = _policy(request, Path(policy) if policy is not None else None)
            self._answerer = stack.enter_context(request.open())
            self.digest = request.source.digest
            self._stack: contextlib.ExitStack | None = stack.pop_all()

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine; a second call does nothing."""
        with self._turn:
            stack, self._stack = self._stack, None
            if stack is not None:
                stack.close()

    def answer(self, texts: Sequence[str]) -> list[TextAnswer]:
        """The answers to texts, in their order.

        A text that cannot be answered has an answer with an `error`, and the others go on.

        Raises:
            StageError: Every text of a chunk ends the engine.
            UsageError: The Answerer is closed, or `texts` is one text.
        """
        if isinstance(texts, str):
            raise UsageError(
                "answer takes a list of texts, and was given one text", hint="answer([text])"
            )
        reading = row_answers.RowInput("text", list_labels=self._untuned)
        rows = (Row(k, {"text": _text(text, k)}) for k, text in enumerate(texts))
        answers: list[TextAnswer] = []
        while chunk := list(itertools.islice(rows, row_answers.CHUNK)):
            with self._turn:
                if self._stack is None:
                    raise UsageError("the Answerer is closed", hint="ask inside of its with block")
                for outcomes in row_answers.answered(
                    self._answerer, self.task, reading, iter(chunk)
                ):
                    answers += map(self._text_answer, outcomes)
        return answers

    def _text_answer(self, pair: tuple[row_answers.Outcome, row_answers.Messages]) -> TextAnswer:
        outcome, _ = pair
        fields: dict[str, Any] = {**row_answers.columns(self.task, *pair)}
        if isinstance(outcome, engine.Answer):
            fields["labels"] = outcome.labels
            if self._policy is not None:
                decision = self._policy.judge(outcome.probabilities(), outcome.text)
                fields |= {"p_correct": decision.p_correct, "keep": decision.keep}
        return TextAnswer(**fields)


def _text(text: Any, place: int) -> str | None:
    """A text; None for the None, NaN or pandas' NA that a table has where a cell is empty."""
    if isinstance(text, str):
        return text
    if text is getattr(sys.modules.get("pandas"), "NA", None) or text is None or text != text:
        return None
    raise UsageError(
        f"text {place} is of type {type(text).__name__}", hint="answer takes a list of texts"
    )


def _policy(request: model_lookup.FileModel, named: Path | None) -> Policy | None:
    """The policy that is named, or that lies in the model's
    folder, for the very file that answers.
    """
    own = request.source.path / FILENAME
    if named is None and not own.is_file():
        return None
    if not request.model.is_gguf:
        raise UsageError(
            f"a policy is for a GGUF file, and {request.source.path} is of kind "
            f"'{request.source.kind}'"
        )
    if named is not None and (named / artifact.MANIFEST).exists():
        artifact.require_whole(named)
    policy = Policy.read(named if named is not None else own)
    policy.require(request.model.digest, request.task.digest)
    return policy
