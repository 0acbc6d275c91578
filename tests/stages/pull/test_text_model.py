"""text_model: of a base that also sees or hears, the text model alone, with the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from benchmarks import architectures  # noqa: E402
from slmctl.config import PullConfig  # noqa: E402
from slmctl.errors import DataError  # noqa: E402
from slmctl.model_files import hf_folder, safetensors_header  # noqa: E402
from slmctl.model_files.base_model import Base  # noqa: E402
from slmctl.stages.pull import load_check, pull, text_model  # noqa: E402

CLASSES = {
    "gemma3": "Gemma3ForCausalLM",
    "gemma4": "Gemma4ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "qwen3.5": "Qwen3_5ForCausalLM",
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_text_model_loads_alone_and_answers_the_same(name: str, tmp_path: Path) -> None:
    whole = architectures.model(name)
    whole.save_pretrained(tmp_path / "whole", max_shard_size="400KB")
    text = text_model.find(tmp_path / "whole")
    assert text is not None
    (tmp_path / "text").mkdir()
    text.write(tmp_path / "text")
    alone, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "text", dtype=torch.float32, output_loading_info=True
    )
    assert type(alone).__name__ == CLASSES[name] == alone.config.architectures[0]
    assert not any(told.values())  # no missing, unexpected or mismatched weights
    tokens = torch.arange(5, 65)[None]
    with torch.no_grad():
        assert torch.equal(alone.eval()(input_ids=tokens).logits, whole(input_ids=tokens).logits)


@pytest.mark.usefixtures("forked_children")
def test_pull_keeps_the_text_model_and_says_so(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    architectures.build("gemma3", tmp_path / "gemma", tiny_base)
    (tmp_path / "out").mkdir()
    metrics = pull.run(
        PullConfig(base=str(tmp_path / "gemma"), rehearse=False), out=tmp_path / "out"
    )
    described = Base.read(tmp_path / "out")
    assert described.note.startswith(
        "the text model of Gemma3ForConditionalGeneration alone; 34 other tensors"
    )
    assert described.note == metrics["note"]
    assert described.note in capsys.readouterr().err
    assert described.parameters == safetensors_header.parameter_count(tmp_path / "out")
    assert described.parameters < safetensors_header.parameter_count(tmp_path / "gemma")
    assert "vision_config" not in json.loads((tmp_path / "out" / "config.json").read_bytes())


def test_a_text_model_that_no_class_loads_alone_is_refused(tmp_path: Path) -> None:
    architectures.model("gemma3").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    config["text_config"]["model_type"] = "opera"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        DataError, match="Gemma3ForConditionalGeneration, and its text model of type 'opera'"
    ):
        text_model.find(tmp_path)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    architectures.model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    shapes = {
        entry.name: entry.shape for entry in safetensors_header.read(tmp_path / "model.safetensors")
    }
    with pytest.raises(
        DataError,
        match=r"lack 9 of the weights that the config describes, such as 'model\.layers\.2",
    ):
        hf_folder.require_consistent(tmp_path, shapes)


@pytest.mark.parametrize("inside", [False, True])
def test_packed_weights_are_refused_by_name(tmp_path: Path, inside: bool) -> None:
    architectures.model("ministral3").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    (config["text_config"] if inside else config)["quantization_config"] = {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"weights are quantized \(gptq\)") as caught:
        pull.run(PullConfig(base=str(tmp_path)), out=tmp_path / "out")
    assert "bfloat16" in caught.value.hint


def test_a_mixture_of_experts_is_said(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # seconds in a process of its own
    monkeypatch.setattr(load_check, "require_loadable", lambda folder: None)
    architectures.build("qwen3-moe", tmp_path / "mixture", tiny_base)
    (tmp_path / "out").mkdir()
    pull.run(PullConfig(base=str(tmp_path / "mixture"), rehearse=False), out=tmp_path / "out")
    assert (
        "note: a mixture of experts; finetune leaves the experts as they are"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "block"), [("ministral3", None), ("qwen3", [128, 128]), ("qwen3", [100, 60])]
)
def test_fp8_weights_become_bfloat16(name: str, block: list[int] | None, tmp_path: Path) -> None:
    architectures.model(name).save_pretrained(tmp_path)
    stored, wanted = load_file(tmp_path / "model.safetensors"), {}
    for key in [key for key in stored if key.endswith("_proj.weight") and "vision" not in key]:
        weight = stored[key]
        rows, columns = block or weight.shape
        grid = torch.rand(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns)) / 4096
        spread = grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[
            : weight.shape[0], : weight.shape[1]
        ]
        stored[key] = (weight / spread).to(torch.float8_e4m3fn)
        stored[f"{key}_scale_inv"] = grid if block else grid[0, 0]
        stored[key.replace(".weight", ".activation_scale")] = torch.tensor(1.0)
        wanted[key.removeprefix("language_model.")] = (stored[key].float() * spread).to(
            torch.bfloat16
        )
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": block}
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = text_model.find(tmp_path)
    assert text is not None
    assert f"{len(wanted)} matrices in FP8 became bfloat16" in text.note
    (tmp_path / "out").mkdir()
    text.write(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert not any("scale" in key for key in written)
    assert all(torch.equal(written[key], weight) for key, weight in wanted.items())
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_bytes())
    hf_folder.require_consistent(
        tmp_path / "out", {key: tuple(tensor.shape) for key, tensor in written.items()}
    )


def test_fp8_weights_without_scales_are_refused(tmp_path: Path) -> None:
    architectures.model("qwen3").save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    key = next(key for key in stored if key.endswith("q_proj.weight"))
    save_file(stored | {key: stored[key].to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "fp8"}})
    )
    with pytest.raises(DataError, match="in FP8 without scales that fit it"):
        text_model.find(tmp_path)
