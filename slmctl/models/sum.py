"""A GGUF file in a sum: the linear members' weighted log probabilities are added to each label's of the file.

They err on other rows than the file, so the sum answers better. It holds no text of a training row. In a first look the
linear members answer alone what they are sure of, and the file is asked for the rest.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.inference import ENCODER, SUM
from slmctl.inference.engine import Answering, Request
from slmctl.inference.escalation_policy import Policy
from slmctl.inference.events import Event
from slmctl.inference.supervised_child import EngineError
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import answering_sha256, sum_files
from slmctl.models.composition import Composition
from slmctl.models.gguf import GgufModel
from slmctl.models.linear import members_of
from slmctl.models.linear_members import Cancel, LinearMembers, OnEvent, Scores, tell, words_of
from slmctl.models.model import Loading, Model
from slmctl.reports import IN_SUM

AHEAD = 512  # requests under way in a first look, so that batches are full and the model is asked last


class SumEngine(Composition):
    """A model whose log probabilities of labels are one part of a sum.

    Requests without labels, and requests to a LoRA adapter, go to the model alone.

    Pieces come when both have answered. Closing it closes both.

    Args:
        first: The policy of the linear members' answers: what it keeps is the answer, and the model is not asked; None
            to ask both at once.
        labels: Those that it was fitted for.
        looking: The members that look first where these are not all; None for all.

    Attributes:
        kept: Number of answers that were the linear members' alone.
    """

    def __init__(
        self,
        engine: Answering,
        members: LinearMembers,
        first: Policy | None = None,
        labels: tuple[str, ...] = (),
        looking: LinearMembers | None = None,
    ) -> None:
        super().__init__(engine, members, *filter(None, [looking]))
        self._members, self._first, self._labels, self.kept = members, first, labels, 0
        self._looking = looking or members

    @property
    def ahead(self) -> int:  # type: ignore[override]
        return self.engine.ahead if self._first is None else AHEAD

    def with_reader(self, reader: Callable[[Answering], Answering]) -> Answering:
        self.engine = reader(self.engine)
        return self

    def step_ms(self, texts: Sequence[str]) -> dict[str, float]:
        return self._members.timed(texts)

    def submit(self, request: Request, on_event: OnEvent) -> Cancel:
        if not (request.labels and request.question) or request.adapter:
            return self.engine.submit(request, on_event)
        if self._first is not None and request.labels == self._labels:
            return self._look(request, on_event, self._first)
        return self._ask_both(request, on_event)

    def _look(self, request: Request, on_event: OnEvent, policy: Policy) -> Cancel:
        """Ask the linear members, and the model too where the policy does not keep their answer."""
        linear, cancels, cancelled = Future[Scores](), list[Cancel](), threading.Event()

        def decide(done: Future[Scores]) -> None:
            answer = None
            try:
                answer = _kept(done, request, policy)
            finally:  # whatever is raised here is heard by nobody, and the model is asked
                if answer is None and not cancelled.is_set():
                    ask_model()
                elif answer is not None and not cancelled.is_set():
                    self.kept += 1
                    tell(on_event, done, lambda _: answer, alternatives=request.alternatives)

        def ask_model() -> None:
            is_whole = self._looking is self._members and linear.exception() is None
            try:  # members that failed are asked once more
                cancels.append(self._ask_both(request, on_event, linear if is_whole else None))
            except EngineError as error:
                on_event({"error": error.message, "died": True})
                return
            if cancelled.is_set():  # meanwhile, so nobody else cancels this one
                cancels[-1]()

        def cancel() -> None:
            cancelled.set()
            linear.cancel()
            for each in cancels:
                each()

        linear.add_done_callback(decide)
        self._looking.read(request, linear)
        return cancel

    def _ask_both(self, request: Request, on_event: OnEvent, scores: Future[Scores] | None = None) -> Cancel:
        """Ask the model, and the linear members where their scores are not there; their sum is the answer."""
        linear, cancelled = scores or Future[Scores](), threading.Event()

        def relay(event: Event) -> None:
            if "finish" in event:
                linear.add_done_callback(functools.partial(finish, event))
            elif "piece" not in event:
                on_event(event)

        def finish(event: Event, done: Future[Scores]) -> None:
            if not cancelled.is_set():
                labels, tokens = request.labels, request.alternatives
                tell(on_event, done, lambda scores: scores.beside(event, labels), alternatives=tokens)

        cancel = self.engine.submit(request, relay)
        if scores is None:
            self._members.read(request, linear)

        def cancel_both() -> None:
            cancelled.set()
            cancel()
            linear.cancel()

        return cancel_both


def _kept(done: Future[Scores], request: Request, policy: Policy) -> Event | None:
    """The linear members' answer where the policy keeps it; None where it does not, or where they failed."""
    if done.cancelled() or done.exception() is not None:
        return None
    answer = done.result().answer(request.labels)
    decision = policy.judge(answer, next(iter(answer["labels"])))
    return answer | {"p_correct": decision.p_correct} if decision.keep else None


@dataclass(frozen=True)
class FileInSum(Model):
    """A GGUF file with the linear members beside it.

    Attributes:
        model: The GGUF file alone.
        sum: The artifact of the other members; None where they are in the file's own folder, as in a release.
        first: The policy by whose first step the linear members answer alone; None to ask all for every answer.
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
        own, others = self.file, [(self._folder.path / name).stat().st_size for name in sum_files(self._folder)]
        return FileEntry(own.path, own.size + sum(others), answering_sha256(self.artifact, own, self.sum))

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
            whole = SumEngine(self.model.load(loading), members, step, labels, looking) if model.of_file else members
            undo.pop_all()
        return whole
