"""A GGUF file in a sum: the linear members' weighted log probabilities are added to each label's of the file.

They err on other rows than the file, so the sum answers better. It holds no text of a training row.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from slmctl.artifacts.artifact import Artifact, FileEntry
from slmctl.errors import IntegrityError
from slmctl.inference import ENCODER, IN_SUM, SUM, SUM_FILE
from slmctl.inference.engine import Answering, Request
from slmctl.inference.events import Event
from slmctl.metrics.label_sum import LabelSum
from slmctl.model_files import memory
from slmctl.model_files.gguf_choice import answering_sha256, sum_files
from slmctl.models.composition import Composition
from slmctl.models.gguf import GgufModel
from slmctl.models.linear_members import Cancel, LinearMembers, OnEvent, Scores, tell
from slmctl.models.model import Loading, Model


class SumEngine(Composition):
    """A model whose log probabilities of labels are one part of a sum.

    Requests without labels, and requests to a LoRA adapter, go to the model alone.

    Pieces come when both have answered. Closing it closes both.
    """

    def __init__(self, engine: Answering, members: LinearMembers) -> None:
        super().__init__(engine, members)
        self._members = members

    def submit(self, request: Request, on_event: OnEvent) -> Cancel:
        if not (request.labels and request.question) or request.adapter:
            return self.engine.submit(request, on_event)
        linear, cancelled = Future[Scores](), threading.Event()

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
        self._members.read(request, linear)

        def cancel_both() -> None:
            cancelled.set()
            cancel()
            linear.cancel()

        return cancel_both


@dataclass(frozen=True)
class FileInSum(Model):
    """A GGUF file with the linear members beside it.

    Attributes:
        model: The GGUF file alone.
        sum: The artifact of the other members; None where they are in the file's own folder, as in a release.
    """

    is_gguf = takes_policy = True
    place = 6
    model: GgufModel
    sum: Artifact | None = None

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
        folder, labels = self._folder, self.task and self.task.labels
        measured = folder.metrics.get("sum", {}).get("files", {})  # of a release
        if measured and measured != sum_files(folder):
            raise IntegrityError(f"the sum in {folder.path} is not the one that was measured",
                                 hint="fetch the release again")  # fmt: skip
        model = LabelSum.read(folder.path / SUM_FILE, labels or None)
        if model.head is None and model.words is None:
            return self.model.load(loading)
        with contextlib.ExitStack() as undo:
            members = undo.enter_context(LinearMembers(model, folder.path / ENCODER, alone=True))
            whole = SumEngine(self.model.load(loading), members) if model.of_file else members
            undo.pop_all()
        return whole
