"""A GGUF file in a sum: the linear members' weighted log probabilities are added to each label's of
the file.

They err on other rows than the file, so the sum answers better. It holds no text of a training row.
In a first look the linear members answer alone what they are sure of, and the file is asked for the
rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.inference import ENCODER, SUM
from slmctl.inference.engine import Answering, Request
from slmctl.inference.escalation_policy import Policy
from slmctl.inference.events import Event
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import answering_sha256, is_tagging, require_measured, sum_files
from slmctl.models.batch_reader import Reply
from slmctl.models.beside import AHEAD, Beside
from slmctl.models.field_sum import FieldSum, TaggerAnswers
from slmctl.models.gguf import GgufModel
from slmctl.models.linear import members_of
from slmctl.models.linear_members import LinearMembers, Scores, label_reply, words_of
from slmctl.models.model import Loading, Model
from slmctl.models.tagger import Tagger
from slmctl.reports import IN_SUM


class SumEngine(Beside[Scores]):
    """A model whose log probabilities of labels are one part of a sum.

    Args:
        first: The policy of the linear members' answers: what it keeps is the answer, and the model
            is not asked; None to ask both at once.
        labels: Those that it was fitted for.
        looking: The members that look first where these are not all; None for all.
    """

    def __init__(
        self,
        engine: Answering,
        members: LinearMembers,
        first: Policy | None = None,
        labels: tuple[str, ...] = (),
        looking: LinearMembers | None = None,
    ) -> None:
        super().__init__(engine, members, looking)
        self._members = members
        self._first = first
        self._labels = labels

    @property
    def ahead(self) -> int:  # type: ignore[override]
        return self.engine.ahead if self._first is None else AHEAD

    def step_ms(self, texts: Sequence[str]) -> dict[str, float]:
        return self._members.timed(texts)

    def reads(self, request: Request) -> bool:
        return bool(request.labels and request.question)

    def looks_first(self, request: Request) -> bool:
        return self._first is not None and request.labels == self._labels

    def alone(self, read: Scores, request: Request) -> Reply | None:
        """The linear members' answer if the policy keeps it."""
        answer = read.answer(request.labels)
        assert self._first is not None  # or they would not look first
        decision = self._first.judge(answer, next(iter(answer["labels"])))
        return label_reply(answer | {"p_correct": decision.p_correct}) if decision.keep else None

    def together(self, read: Scores, text: str, event: Event, request: Request) -> Reply:
        return label_reply(read.beside(event, request.labels))


@dataclass(frozen=True)
class FileInSum(Model):
    """A GGUF file with the linear members beside it.

    Attributes:
        model: The GGUF file alone.
        sum: The artifact of the other members; None where they are in the file's own folder, as in
            a release.
        first: The policy by whose first step the linear members answer alone; None to ask all for
            every answer.
    """

    is_gguf = takes_policy = learns_validation = True
    place = 6
    model: GgufModel
    sum: Artifact | None = None
    first: Policy | None = None

    @property
    def kind(self) -> str:
        return self.model.kind if self.sum is None else SUM

    @property
    def title(self) -> str:
        return self.model.title if self.sum is None else f"{self.model.title}{IN_SUM}"

    @property
    def _folder(self) -> Artifact:
        return self.sum or self.artifact

    @property
    def weights(self) -> FileEntry:
        own, others = (
            self.file,
            [(self._folder.path / name).stat().st_size for name in sum_files(self._folder)],
        )
        return FileEntry(
            own.path, own.size + sum(others), answering_sha256(self.artifact, own, self.sum)
        )

    @property
    def file(self) -> FileEntry:
        return self.model.file

    def variants(self) -> Sequence[str | None]:
        return self.model.variants()

    def bytes(self, loading: Loading) -> int:
        return self.model.bytes(loading) + sum(map(memory.encoder_bytes, self._encoders))

    def require_room(self, loading: Loading, *others: Path) -> None:
        self.model.require_room(loading, *self._encoders, *others)

    @property
    def _encoders(self) -> list[Path]:
        return [self._folder.path / ENCODER] if ENCODER in sum_files(self._folder) else []

    def load(self, loading: Loading) -> Answering:
        folder, labels = self._folder, tuple((self.task and self.task.labels) or ())
        if is_tagging(folder):
            return self._with_tagger(loading)
        model = members_of(folder, labels or None)
        if model.head is None and model.words is None:
            return self.model.load(loading)
        with contextlib.ExitStack() as undo:
            step = self.first.in_steps()[0] if self.first is not None else None
            members = undo.enter_context(LinearMembers(model, folder.path))
            looking, words = None, words_of(model)
            fitted = self.first.first if self.first is not None else None
            if model.of_file and words is not None and fitted is not None and fitted.words_alone:
                looking = undo.enter_context(LinearMembers(words, folder.path))
            whole = (
                SumEngine(self.model.load(loading), members, step, labels, looking)
                if model.of_file
                else members
            )
            undo.pop_all()
        return whole

    def _with_tagger(self, loading: Loading) -> Answering:
        require_measured(self._folder)
        with contextlib.ExitStack() as undo:
            tagger = undo.enter_context(TaggerAnswers(Tagger(self._folder.path)))
            whole = FieldSum(self.model.load(loading), tagger)
            undo.pop_all()
        return whole
