"""The one place that turns the kind of an artifact into a model, and
what the models say of themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from support import handmade

from slmctl import models
from slmctl.artifacts import artifact
from slmctl.errors import IntegrityError
from slmctl.inference.engine import Answer, Answering, Outcomes, Request
from slmctl.inference.events import Event
from slmctl.inference.supervised_child import State
from slmctl.models.composition import Composition
from slmctl.models.gguf import GgufModel
from slmctl.models.hf import UntunedBase
from slmctl.models.model import Loading
from slmctl.models.sum import FileInSum

KINDS = ("gguf", "base", "adapter", "merged", "published", "encoder", "linear", "endpoint")


def test_every_kind_that_can_be_measured_is_a_model() -> None:
    assert {kind for kind in KINDS if models.class_of(kind).untuned} == {"base"}
    assert {kind for kind in KINDS if models.class_of(kind).is_remote} == {"endpoint"}
    assert {kind for kind in KINDS if models.class_of(kind).needs_base} == {"adapter"}
    assert {kind for kind in KINDS if models.class_of(kind).is_gguf} == {"gguf", "published"}


def test_members_beside_a_file_change_its_hash_and_its_size(tmp_path: Path) -> None:
    for name in ("a-Q8_0.gguf", "encoder.onnx", "tokenizer.json", "sum.npz"):
        (tmp_path / name).write_bytes(name.encode())
    both = models.of(artifact.foreign(tmp_path, "gguf"), type="Q8_0")
    assert isinstance(both, FileInSum) and isinstance(both.model, GgufModel)
    assert (both.kind, both.title, both.path.name, both.variants()) == (
        "gguf",
        "Q8_0",
        "a-Q8_0.gguf",
        [None],
    )
    assert both.weights.size == len("a-Q8_0.gguf") + len("encoder.onnx") + len(
        "tokenizer.json"
    ) + len("sum.npz")
    assert both.digest != both.model.digest == both.file.sha256
    beside = models.of(artifact.foreign(tmp_path / "a-Q8_0.gguf", "gguf"), sum=both.artifact)
    assert (beside.kind, beside.title, beside.digest) == ("sum", "a-Q8_0+sum", both.digest)


def test_another_sum_than_the_measured_one_is_refused(tmp_path: Path) -> None:
    for name in ("a-Q8_0.gguf", "encoder.onnx", "tokenizer.json", "sum.npz"):
        (tmp_path / name).write_bytes(name.encode())
    both = models.of(artifact.foreign(tmp_path, "gguf"), type="Q8_0")
    hashes = {
        entry.path: entry.sha256
        for entry in both.artifact.manifest.files
        if entry.path != "a-Q8_0.gguf"
    }
    for measured, words in (
        (hashes, "sum.npz holds"),
        (hashes | {"encoder.onnx": "0" * 64}, "measured"),
    ):
        manifest = dataclasses.replace(both.artifact.manifest, metrics={"sum": {"files": measured}})
        release = dataclasses.replace(
            both, artifact=dataclasses.replace(both.artifact, manifest=manifest)
        )
        with pytest.raises(IntegrityError, match=words):
            release.load(Loading())


@pytest.mark.parametrize("others", [[], ["a-Q8_0.gguf"]], ids=["linear", "file in a sum"])
@pytest.mark.parametrize(
    "lacks", [["sum.npz"], ["encoder.onnx"], ["sum.npz", "encoder.onnx"]], ids="+".join
)
def test_who_takes_the_sum_out_of_a_release_gets_no_answer_of_the_rest(
    tmp_path: Path, others: list[str], lacks: list[str]
) -> None:
    """A linear release was a wrong flag (exit 2), and a file in a sum
    answered alone, which nobody had measured.
    """
    members = {"sum.npz": "0" * 64, "encoder.onnx": "1" * 64}
    files = {name: name.encode() for name in [*members, *others] if name not in lacks}
    release = handmade.make(
        tmp_path / "published" / "a", files, metrics={"sum": {"files": members}}
    )
    with pytest.raises(IntegrityError, match="is not the one that was measured") as caught:
        models.of(release)
    assert caught.value.code == 7


def test_a_base_is_whole_and_untuned(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    model = models.of(artifact.foreign(tmp_path, "base"))
    assert isinstance(model, UntunedBase) and model.untuned and model.task is None
    assert (model.title, model.weights.size) == ("base", 5)
    assert f"sha256:{model.digest}" == model.artifact.digest


class Echo(Answering):
    """Answers each request with its prompt, by way of what stands before it."""

    ahead, alive, build = 3, True, "0"

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        on_event({"piece": request.prompt})
        return lambda: None

    def ask_all(
        self,
        requests: Iterable[Request],
        *,
        widen: bool = False,
        alone: bool = False,
        through: Answering | None = None,
    ) -> Outcomes:
        pieces: list[Event] = []
        for index, request in enumerate(requests):
            (through or self).submit(request, pieces.append)
            yield index, Answer(pieces[-1]["piece"], "stop", 1.0, 0, 0)


class Louder(Composition):
    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Callable[[], object]:
        return self.engine.submit(request, lambda event: on_event({"piece": event["piece"] + "!"}))


class Part(Answering):
    def __init__(self, state: State) -> None:
        self.told = state

    @property
    def state(self) -> State:
        return self.told

    @property
    def alive(self) -> bool:
        return self.told != "dead"

    def revive(self) -> None:
        self.told = "ready"


@pytest.mark.parametrize(
    ("engine", "encoder", "together"),
    [
        ("ready", "ready", "ready"),
        ("ready", "hung", "hung"),
        ("hung", "ready", "hung"),
        ("ready", "dead", "dead"),
    ],
)
def test_a_composition_is_as_ready_as_its_parts(
    engine: State, encoder: State, together: State
) -> None:
    deaths = list[str]()
    model = Composition(*(parts := (Part(engine), Part(encoder))))
    model.on_death = lambda: deaths.append("")
    assert (model.state, model.alive) == (together, together != "dead")
    for part in parts:
        part.on_death()
    model.revive()
    assert (model.state, len(deaths)) == ("ready", 2)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_lists_pass_every_composition_as_one_question_does(depth: int) -> None:
    model: Answering = Echo()
    for _ in range(depth):
        model = Louder(model)
    answers = [answer for _, answer in model.ask_all([Request("a"), Request("b")])]
    texts = [answer.text for answer in answers if isinstance(answer, Answer)]
    assert texts == [f"{text}{'!' * depth}" for text in "ab"]
    assert (model.ahead, model.alive, model.build) == (3, True, "0")
