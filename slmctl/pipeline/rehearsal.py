"""Runs all stages on a small random copy of a base, in seconds, to find errors before the training
instead of after.

The copy has the base's classes, layer types, tokenizer and chat template. The real stages run on
it: one training step, merge, conversion, quantization, and answers by llama.cpp and by
transformers.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl import config, console, installation
from slmctl.artifacts import artifact, atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.artifacts.typed_json import read_typed
from slmctl.errors import (
    DataError,
    FullError,
    IntegrityError,
    MissingError,
    SlmctlError,
    StageError,
)
from slmctl.model_files import base_model
from slmctl.pipeline import runner
from slmctl.pipeline.graph import Project
from slmctl.pipeline.predictions import predictions_of

STEPS = ("pull", "prepare", "finetune", "merge", "quantize", "answers")
PACKAGES = ("torch", "transformers", "peft", "gguf", "llama_cpp_python")
LABELS = ("billing", "delivery")
ROWS = 24  # made-up messages, of which most are for training
WORDS = (
    "invoice refund charged card payment euro bank price parcel courier late truck doorstep "
    "carrier tracking shipped "
    "hello today yesterday again still why how when my your since monday friday week month twice "
    "never always nobody "
    "someone phone office house garden letter answer green blue big small quick slow first last "
    "open close help thanks"
)
SETTINGS = """\
project: rehearsal
version: "0.1"
base: ./copy
task: {kind: classify, labels: from-data, system: Name the category of the message.}
prepare:
  sources: [{path: rows.csv, input: text, output: label}]
  splits: {validation: 0.25, test: 0.25}
  min_rows: {train: 1, validation: 1, test: 1}
finetune: {max_steps: 1, batch_size: 4, backend: transformers}
quantize: {types: [Q8_0]}
"""
# Errors that the code of an architecture, of PEFT or of TRL raises where they do not fit each
# other.
FOREIGN = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    RuntimeError,
    ArithmeticError,
    OSError,
    ImportError,
    Warning,
)
# messages that are answered at once
TOGETHER = ("one", "two", "a late parcel", "charged twice for a lamp")
# of a probability: other prompts in the same batch change it by rounding, some 0.005
ROUNDING = 0.05
HINT = "take another base: slmctl bases lists those that work"


@dataclass(frozen=True)
class Rehearsal:
    """The result of a rehearsal; `base.json` holds it under these names.

    Attributes:
        passed: Every stage but those in `left_out` went through.
        layers: Layers of the copy.
        fast_layers: Of these, how many train with the CPU kernels.
        packed: Records train packed into one sequence, their common beginning computed once.
        attention: The implementation that transformers takes: `sdpa` or `eager`.
        left_out: Stages that could not be tried here, each with the reason.
    """

    passed: bool
    layers: int = 0
    fast_layers: int = 0
    packed: bool = False
    attention: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """Sentences on slower paths that the base takes, and on stages that were not tried."""
        remarks = []
        if not self.packed:
            remarks.append(
                "records of this architecture cannot be packed: training computes each one whole, "
                "padded"
            )
        elif self.fast_layers < self.layers:
            slow = self.layers - self.fast_layers
            remarks.append(
                f"{slow} of {self.layers} layers have no fast kernels on a CPU: training is slower"
            )
        if self.attention == "eager":
            remarks.append(
                "transformers has no fused attention for it: eager attention, slower on long texts"
            )
        return [*remarks, *(f"not rehearsed: {sentence}" for sentence in self.left_out)]

    def as_json(self) -> JsonObject:
        return {**self.__dict__, "left_out": list(self.left_out), "remarks": self.remarks}


def rehearsed(base: Path, lora: config.Lora | None = None) -> Rehearsal:
    """The result of `rehearse`, or of an earlier one that passed, which this user's cache keeps.

    It is known by the base's files, the adapter's shape, and the versions of slmctl and of the
    packages that it runs.
    """
    if (cache := installation.user_cache()) is None:
        return rehearse(base, lora)
    files = {
        entry.path: entry.sha256
        for entry in artifact.scan(base)
        if entry.path != base_model.FILENAME
    }
    versions = {
        name: runner.environment(PACKAGES).get(name, "")
        for name in ("slmctl", "machine", *PACKAGES)
    }
    shape = lora.model_dump(mode="json") if lora is not None else {}
    kept = (
        cache
        / "rehearsals"
        / f"{artifact.sha256_bytes(artifact.canonical([files, shape, versions]))[7:]}.json"
    )
    with contextlib.suppress(IntegrityError):  # not there, or damaged
        earlier = read_typed(kept, Rehearsal, hint="")
        console.say(
            "  this version has rehearsed every stage on this base before, and does not again"
        )
        return earlier
    if (result := rehearse(base, lora)).passed:
        with contextlib.suppress(OSError):  # a cache that cannot be written
            kept.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(kept, artifact.canonical(dataclasses.asdict(result)))
    return result


def rehearse(base: Path, lora: config.Lora | None = None) -> Rehearsal:
    """Run the chain on a small random copy of a base.

    Args:
        base: The folder of the base, with its `base.json`.
        lora: The adapter's shape; None for the default.

    Raises:
        DataError: The base cannot go through a stage; the message names it and says why.
        FullError: The memory or the disk of this machine is full.
        MissingError: A package that training needs is not installed.
    """
    from slmctl.model_files import tiny_copy  # with it comes torch

    console.say("  rehearsing every stage on a small random copy of the base")
    with (
        tempfile.TemporaryDirectory(prefix="slmctl-rehearsal-") as scratch,
        console.progress("rehearsing", len(STEPS), "steps") as meter,
    ):
        root = Path(scratch)
        try:
            with _quiet():
                attention = tiny_copy.write(base, root / "copy")
        except FOREIGN as error:
            return Rehearsal(
                False,
                left_out=(f"no small copy of its architecture can be made ({_sentence(error)})",),
            )
        _write_rows(root / "rows.csv")
        (root / config.FILENAME).write_text(SETTINGS, encoding="utf-8")
        settings = config.load(root / config.FILENAME)
        settings = settings.model_copy(
            update={"pull": settings.pull.model_copy(update={"rehearse": False})}
        )
        if lora is not None:
            settings = settings.model_copy(
                update={"finetune": settings.finetune.model_copy(update={"lora": lora})}
            )
        return _chain(Project(root=root, config=settings), attention, meter)


def _chain(project: Project, attention: str, meter: console.Meter) -> Rehearsal:
    made = {"pull": _stage(project, "pull", foreign=False)}
    for name in STEPS[1:4]:
        meter.advance(note=f"now {name}")
        made[name] = _stage(project, name)
    meter.advance(note="now quantize")
    training = made["finetune"].metrics
    left_out: list[str] = []
    try:
        gguf = _stage(project, "quantize", must_end=False)
        meter.advance(note="now answers")
        with _quiet():
            _answer(gguf)
        for model in ("gguf", "adapter"):
            with _explained("predict"), _quiet():
                for request in predictions_of(project, model):
                    runner.run(project, request)
    except MissingError as error:  # a machine that only trains needs no llama.cpp
        left_out = [f"{error.message} ({error.hint})"]
    return Rehearsal(
        passed=not left_out,
        layers=int(training.get("layers", 0)),
        fast_layers=int(training.get("fast_layers", 0)),
        packed="fast_layers" in training,
        attention=attention,
        left_out=tuple(left_out),
    )


def _stage(project: Project, name: str, **options: Any) -> Artifact:
    with _explained(name), _quiet():
        return runner.run(project, project.request(name), **options).artifact


@contextlib.contextmanager
def _explained(stage: str) -> Iterator[None]:
    """Turn whatever a stage raises on a foreign architecture into
    one sentence that names the stage.
    """
    try:
        yield
    except (MissingError, FullError):  # of this machine, whatever the base
        raise
    except SlmctlError as error:
        raise DataError(
            f"this base cannot go through {stage}: {error.message}", hint=HINT
        ) from error
    except FOREIGN as error:
        raise DataError(
            f"this base cannot go through {stage}: {_sentence(error)}", hint=HINT
        ) from error


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _answer(gguf: Artifact) -> None:
    """Have the engine answer in free text, after a beginning that prompts share, and labels alone
    and together.

    Raises:
        DataError: It cannot, or labels get other probabilities when several prompts are answered at
            once.
    """
    from slmctl.inference import engine
    from slmctl.task.contract import Task

    task = Task.read(gguf.path)
    file = next(iter(gguf.metrics["files"].values()))["file"]
    head, prompts = task.system or "Name", [task.prompt(task.messages(text)) for text in TOGETHER]
    free = [engine.Request(prompt, prefix=head, max_tokens=4) for prompt in prompts[:2]]
    labels = [engine.Request(prompt, labels=task.labels, end=task.end) for prompt in prompts]
    with _explained("serve"), engine.Engine(gguf.file(file), sequences=len(labels)) as model:
        for request in free:
            model.ask(request)
        alone = [model.ask(request) for request in labels]
        for at, answer in model.ask_all(labels):
            if isinstance(answer, Exception):
                raise answer
            if any(
                abs(p - alone[at].labels[label]) > ROUNDING for label, p in answer.labels.items()
            ):
                raise StageError(
                    "llama.cpp computes it wrongly on this processor when several are asked at once"
                )


def _write_rows(path: Path) -> None:
    """Made-up messages that are unlike each other, or the split would keep them together."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for k in range(ROWS):
            writer.writerow((" ".join(random.Random(k).sample(WORDS.split(), 7)), LABELS[k % 2]))  # noqa: S311 - no secret


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have the stages of the copy say nothing: their notes are about made-up rows."""
    before = console.level()
    console.set_level(-1)
    try:
        yield
    finally:
        console.set_level(before)
