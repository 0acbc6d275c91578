"""The artifact of `encode` of an `extract` task as a model, which counts as a baseline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slmctl.artifacts.artifact import FileEntry
from slmctl.errors import UsageError
from slmctl.inference import ENCODER, TAGGER
from slmctl.inference.engine import Answer, Answering, Outcomes, Request
from slmctl.inference.supervised_child import State
from slmctl.model_files import memory
from slmctl.models.model import Loading, Model
from slmctl.models.tagger import TaggedAnswer, Tagger
from slmctl.task.contract import Task

TOGETHER = 64  # texts that are read at once


@dataclass(frozen=True)
class TaggerAlone(Model):
    """An encoder that tags words, which answers the rows of a split and of files."""

    is_baseline = True
    place = 0

    @property
    def title(self) -> str:
        return TAGGER

    @property
    def file(self) -> FileEntry:
        return next(entry for entry in self.artifact.manifest.files if entry.path == ENCODER)

    @property
    def weights(self) -> FileEntry:
        size = sum(entry.size for entry in self.artifact.manifest.files)
        return FileEntry(self.artifact.path.name, size, self.artifact.digest.removeprefix("sha256:"))

    def bytes(self, loading: Loading) -> int:
        return memory.encoder_bytes(self.path)

    def load(self, loading: Loading) -> Answering:
        raise UsageError("a tagger answers the rows of a split or of a file, and serves no clients",
                         hint="slmctl predict encoder --input FILE")  # fmt: skip

    def _loaded(self, task: Task, max_tokens: int, whole_labels: bool) -> Answering:
        return TaggerAnswers(Tagger(self.artifact.path))


class TaggerAnswers(Answering):
    """A tagger that is asked as an engine is; it reads the whole text of a question, without a prompt."""

    def __init__(self, tagger: Tagger) -> None:
        self._tagger, self.on_death = tagger, lambda: None

    @property
    def build(self) -> str:
        return self._tagger.encoder.build

    @property
    def alive(self) -> bool:
        return True

    @property
    def state(self) -> State:
        return "ready"

    def held_bytes(self) -> int:
        return 0  # no process of its own

    def with_reader(self, reader: object) -> TaggerAnswers:
        return self  # it cuts windows by itself

    def close(self) -> None:
        self._tagger.encoder.close()

    def ask_all(self, requests: Iterable[Request], **how: object) -> Outcomes:
        listed = list(requests)
        for start in range(0, len(listed), TOGETHER):
            texts = [request.question for request in listed[start : start + TOGETHER]]
            for index, tagged in enumerate(self._tagger.answers(texts), start):
                yield index, _answer(tagged)


def _answer(tagged: TaggedAnswer) -> Answer:
    return Answer(tagged.text, "stop", tagged.confidence, 0, 0, places=tagged.places)
