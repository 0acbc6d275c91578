"""quantize: named by convention, measured as they are, and each file has answered before it counts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny

from slmctl import artifact, converter, engine, quantizer
from slmctl.artifact import Artifact
from slmctl.base import Base
from slmctl.config import QuantizeConfig
from slmctl.errors import IntegrityError, MissingError, StageError
from slmctl.task import Task

gguf = pytest.importorskip("gguf")

from slmctl.model import _ladder, quantize  # noqa: E402


def config(*types: str) -> QuantizeConfig:
    return QuantizeConfig(project="tiny-desk", version="1.0", types=list(types))


@pytest.fixture
def merged(artifacts: dict[str, Artifact], tmp_path: Path) -> Path:
    """A copy of the tiny merged model that a test may change."""
    folder = Path(shutil.copytree(artifacts["merged"].path, tmp_path / "merged"))
    (folder / "manifest.json").unlink()
    return folder


def run(
    settings: QuantizeConfig, merged: Path, artifacts: dict[str, Artifact], out: Path
) -> dict[str, dict[str, object]]:
    out.mkdir(parents=True)
    wrapped = artifact.foreign(merged, "merged")
    metrics = quantize.run(settings, merged=wrapped, prepared=artifacts["prepared"], out=out)
    files: dict[str, dict[str, object]] = metrics["files"]
    return files


@pytest.mark.parametrize(
    ("name", "parameters", "wanted"),
    [
        ("SmolLM2-135M-Instruct", 134_515_008, "SmolLM2-135M-acme-v1.0-Q8_0.gguf"),
        ("gemma-3-270m", 268_098_176, "gemma-3-268M-acme-v1.0-Q8_0.gguf"),
        ("base", 115_520, "base-116K-acme-v1.0-Q8_0.gguf"),
        ("Qwen3-1.7B", 1_720_574_976, "Qwen3-1.7B-acme-v1.0-Q8_0.gguf"),
    ],
)
def test_files_are_named_by_convention(name: str, parameters: int, wanted: str) -> None:
    base = Base(name, "", "", parameters, "", "base", "", "", ())
    found = _ladder.file_name(QuantizeConfig(project="acme", version="1.0"), base, "Q8_0")
    assert found == wanted
    # the pattern of the GGUF naming convention, from its specification
    assert re.match(
        r"^(?P<BaseName>[A-Za-z0-9\s]*(?:(?:-(?:(?:[A-Za-z\s][A-Za-z0-9\s]*)|(?:[0-9\s]*)))*))-"
        r"(?:(?P<SizeLabel>(?:\d+x)?(?:\d+\.)?\d+[A-Za-z](?:-[A-Za-z]+(\d+\.)?\d+[A-Za-z]+)?)"
        r"(?:-(?P<FineTune>[A-Za-z0-9\s-]+))?)?-(?:(?P<Version>v\d+(?:\.\d+)*))"
        r"(?:-(?P<Encoding>(?!LoRA|vocab)[\w_]+))?(?:-(?P<Type>LoRA|vocab))?"
        r"(?:-(?P<Shard>\d{5}-of-\d{5}))?\.gguf$",
        found,
    )


def test_the_folder_holds_the_files_and_nothing_torn(artifacts: dict[str, Artifact]) -> None:
    made = artifacts["gguf"]
    names = {path.name for path in made.path.iterdir()}
    files = {entry["file"] for entry in made.metrics["files"].values()}
    assert names == files | {"manifest.json", "task.json", "base.json"}
    for entry in made.metrics["files"].values():
        path = made.file(entry["file"])
        assert (path.stat().st_size, artifact.sha256_file(path)) == (entry["size"], f"sha256:{entry['sha256']}")


def test_bits_a_weight_are_the_real_ones(artifacts: dict[str, Artifact]) -> None:
    made = artifacts["gguf"]
    files = made.metrics["files"]
    for entry in files.values():
        tensors = gguf.GGUFReader(made.file(entry["file"])).tensors
        stored, weights = sum(int(t.n_bytes) for t in tensors), sum(int(t.n_elements) for t in tensors)
        assert entry["bits_per_weight"] == pytest.approx(8 * stored / weights, abs=1e-3)
    assert 8.5 <= files["Q8_0"]["bits_per_weight"] < 8.7
    assert 16 <= files["F16"]["bits_per_weight"] < 16.2


def test_licence_project_and_template_are_inside(artifacts: dict[str, Artifact]) -> None:
    made = artifacts["gguf"]
    for entry in made.metrics["files"].values():
        fields = gguf.GGUFReader(made.file(entry["file"])).fields
        assert fields["general.license"].contents() == "apache-2.0"
        assert fields["general.finetune"].contents() == "tiny-desk"
        assert fields["tokenizer.chat_template"].contents() == tiny.TEMPLATE


def test_the_token_ids_are_those_of_training(artifacts: dict[str, Artifact]) -> None:
    from slmctl import weights

    made = artifacts["gguf"]
    tokenizer, task = weights.load_tokenizer(artifacts["merged"].path), Task.read(made.path)
    texts = [
        "where is my parcel",
        "  two  spaces\n\n\ttab",
        "é 你好 <|im_end|> x",
        "x" * 50,
        "",
        " 123",
        "Ünïcode—dash",
    ]
    with engine.Engine(made.file(made.metrics["files"]["F16"]["file"]), sequences=1, context=256) as model:
        for text in texts:
            for form in (text, task.prompt(task.messages(text))):
                assert model.tokenize(form) == tokenizer(form, add_special_tokens=False).input_ids


def test_k_quants_say_what_fell_back(merged: Path, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    # no row of the tiny model is a multiple of 256: every matrix falls back
    entry = run(config("Q4_K_M"), merged, artifacts, tmp_path / "out" / "made")["Q4_K_M"]
    assert entry["fallback_tensors"] == sum(entry["tensor_types"].values())  # type: ignore[attr-defined]
    assert entry["bits_per_weight"] > 4.9  # type: ignore[operator]


def test_a_changed_template_is_caught(merged: Path, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    (merged / "chat_template.jinja").write_text(tiny.TEMPLATE.replace("assistant", "model"))
    with pytest.raises(StageError, match="carries another chat template than it was trained with"):
        run(config("Q8_0"), merged, artifacts, tmp_path / "out" / "made")


def test_an_end_of_turn_that_is_no_token_is_caught(
    merged: Path, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    fields = json.loads((merged / "task.json").read_bytes())
    (merged / "task.json").write_bytes(artifact.canonical(fields | {"end": "<|the_end|>"}))
    with pytest.raises(StageError, match=r"does not read '<\|the_end\|>' as one token"):
        run(config("Q8_0"), merged, artifacts, tmp_path / "out" / "made")


def test_a_model_that_never_stops_is_caught(
    merged: Path, artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "FREE_TOKENS", 16)
    shutil.copyfile(artifacts["base"].file("model.safetensors"), merged / "model.safetensors")  # untrained
    with pytest.raises(StageError, match="never ends an answer: 0 of 8 held-out prompts") as caught:
        run(config("F16"), merged, artifacts, tmp_path / "out" / "made")
    assert "finetune.epochs" in caught.value.hint


def test_a_damaged_model_is_said_by_the_converter(merged: Path, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    (merged / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    with pytest.raises(StageError, match="the GGUF converter failed"):
        run(config("Q8_0"), merged, artifacts, tmp_path / "out" / "made")


def ladder(source: Path, target: Path, type_name: str) -> list[str]:
    return list(quantizer.ladder(source, [quantizer.Target(type_name, target)]))


@pytest.fixture
def lossless(artifacts: dict[str, Artifact]) -> Path:
    """The tiny model in F16."""
    made = artifacts["gguf"]
    return made.file(made.metrics["files"]["F16"]["file"])


def test_a_type_that_llama_cpp_does_not_know_is_said(lossless: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"quantizing to Q9_9 failed: .*no quantization type Q9_9") as caught:
        ladder(lossless, tmp_path / "x.gguf", "Q9_9")
    assert "Q4_K_M" in caught.value.hint


def test_a_target_that_cannot_be_written_is_said(lossless: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="quantizing to Q8_0 failed"):
        ladder(lossless, tmp_path / "missing" / "x.gguf", "Q8_0")


def test_a_converter_that_is_missing_or_changed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = converter.folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingError, match="is missing") as caught:
        converter.require()
    assert caught.value.hint == "slmctl doctor --fix"
    shutil.copytree(kept, converter.folder())
    assert converter.require() == converter.folder()
    with (converter.folder() / converter.SCRIPT).open("a") as stream:
        stream.write("#")
    with pytest.raises(IntegrityError, match="has changed since it was fetched"):
        converter.require()
