"""quantize: named by convention, measured as they are, and each
file has answered before it counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support import odd_files, tiny
from support.forks import Forks

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.config import MergeConfig, QuantizeConfig
from slmctl.errors import DataError, IntegrityError, MissingError, StageError
from slmctl.inference import engine
from slmctl.model_files import gguf_converter, quantizer
from slmctl.model_files.base_model import Base
from slmctl.task.contract import Task
from slmctl.task.records import Record, read_records

gguf = pytest.importorskip("gguf")

pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from slmctl.model_files import gguf_header, hf_folder  # noqa: E402
from slmctl.model_files.gguf_choice import gguf_file  # noqa: E402
from slmctl.stages.merge import merge  # noqa: E402
from slmctl.stages.publish import publish  # noqa: E402
from slmctl.stages.quantize import gguf_files, lora_gguf, parity, quantize  # noqa: E402


@pytest.fixture
def merged(artifacts: dict[str, Artifact], tmp_path: Path) -> Path:
    """A copy of the tiny merged model that a test may change."""
    folder = Path(shutil.copytree(artifacts["merged"].path, tmp_path / "merged"))
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def lossless(artifacts: dict[str, Artifact]) -> Path:
    """The tiny model in F16."""
    made = artifacts["gguf"]
    return made.file(made.metrics["files"]["F16"]["file"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "made"


@pytest.fixture
def run(
    merged: Path, artifacts: dict[str, Artifact], out: Path, forked_children: None
) -> Callable[..., Any]:
    """Quantize the copy to some types; gives their entries in the metrics."""

    def quantized(*types: str, out: Path = out, **settings: Any) -> Any:
        out.mkdir(parents=True)
        section = QuantizeConfig(project="tiny-desk", types=list(types), **settings)
        wrapped = artifact.foreign(merged, "merged")
        return quantize.run(section, merged=wrapped, prepared=artifacts["prepared"], out=out)[
            "files"
        ]

    return quantized


@pytest.fixture
def converted(lossless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no conversion, which takes seconds: what becomes of its file is another question."""
    monkeypatch.setattr(
        gguf_converter, "convert", lambda model, target, **_: shutil.copyfile(lossless, target)
    )


@pytest.mark.parametrize(
    ("name", "parameters", "wanted"),
    [
        ("SmolLM2-135M-Instruct", 134_515_008, "SmolLM2-135M-acme-v1.0-Q8_0.gguf"),
        ("gemma-3-270m", 268_098_176, "gemma-3-268M-acme-v1.0-Q8_0.gguf"),
        ("base", 115_520, "base-116K-acme-v1.0-Q8_0.gguf"),
        ("Qwen3-1.7B", 1_720_574_976, "Qwen3-1.7B-acme-v1.0-Q8_0.gguf"),
    ],
)
def test_files_are_named_by_convention(
    name: str, parameters: int, wanted: str, tmp_path: Path, out: Path
) -> None:
    base = Base(name, "", "", parameters, "", "base", "", "", ())
    named = gguf_files.file_name(QuantizeConfig(project="acme"), base, "Q8_0")
    assert named == wanted.replace("-v1.0", "")
    (tmp_path / named).write_bytes(b"GGUF")
    out.mkdir(parents=True)
    measured = artifact.foreign(tmp_path / named, "gguf")
    found = publish._carry_file(measured, {"file": named, "size": 4}, "Q8_0", "1.0", out)["file"]
    assert found == wanted and (out / found).read_bytes() == b"GGUF"
    # the pattern of the GGUF naming convention, from its specification
    assert re.match(
        r"^(?P<BaseName>[A-Za-z0-9\s]*(?:(?:-(?:(?:[A-Za-z\s][A-Za-z0-9\s]*)|(?:[0-9\s]*)))*))-"
        r"(?:(?P<SizeLabel>(?:\d+x)?(?:\d+\.)?\d+[A-Za-z](?:-[A-Za-z]+(\d+\.)?\d+[A-Za-z]+)?)"
        r"(?:-(?P<FineTune>[A-Za-z0-9\s-]+))?)?-(?:(?P<Version>v\d+(?:\.\d+)*))"
        r"(?:-(?P<Encoding>(?!LoRA|vocab)[\w_]+))?(?:-(?P<Type>LoRA|vocab))?"
        r"(?:-(?P<Shard>\d{5}-of-\d{5}))?\.gguf$",
        found,
    )


def test_lossless_is_the_type_of_the_weights_whatever_the_config_says(merged: Path) -> None:
    # of float32 weights under a config of bfloat16 both sides of the comparison were rounded, which
    # measured 0.0000
    fields = json.loads((merged / "config.json").read_bytes())
    (merged / "config.json").write_text(json.dumps(fields | {"dtype": "bfloat16"}))
    assert gguf_files._dtype(merged) == "f32"
    assert str(hf_folder.load_model(merged, dtype="stored").dtype) == "torch.float32"


def test_the_folder_holds_whole_files_that_say_what_they_are(
    artifacts: dict[str, Artifact],
) -> None:
    made = artifacts["gguf"]
    files = made.metrics["files"]
    assert {path.name for path in made.path.iterdir()} == {
        "manifest.json",
        "task.json",
        "base.json",
        *(entry["file"] for entry in files.values()),
    }
    for entry in files.values():
        path = made.file(entry["file"])
        assert (path.stat().st_size, artifact.sha256_file(path)) == (
            entry["size"],
            f"sha256:{entry['sha256']}",
        )
        reader = gguf.GGUFReader(path)
        stored = sum(int(tensor.n_bytes) for tensor in reader.tensors)
        weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
        assert entry["bits_per_weight"] == pytest.approx(8 * stored / weights, abs=1e-3)
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.startswith("general.")
        }
        assert fields["general.license"] == "apache-2.0"
        assert fields["general.finetune"] == "tiny-desk"
        assert fields["general.languages"] == ["en", "de"]
        assert fields["general.base_model.0.name"] == "Base"
        assert reader.fields["tokenizer.chat_template"].contents() == tiny.TEMPLATE
    assert 8.5 <= files["Q8_0"]["bits_per_weight"] < 8.7
    assert 16 <= files["F16"]["bits_per_weight"] < 16.2


def test_the_token_ids_are_those_of_training(artifacts: dict[str, Artifact]) -> None:
    made = artifacts["gguf"]
    tokenizer, task = hf_folder.load_tokenizer(artifacts["merged"].path), Task.read(made.path)
    texts = [
        "where is my parcel",
        "  two  spaces\n\n\ttab",
        "é 你好 <|im_end|> x",
        "x" * 50,
        "",
        " 123",
        "Ünïcode—dash",
    ]
    with engine.Engine(
        made.file(made.metrics["files"]["F16"]["file"]), sequences=1, context=256
    ) as model:
        for text in texts:
            for form in (text, task.prompt(task.messages(text))):
                assert model.tokenize(form) == tokenizer(form, add_special_tokens=False).input_ids


@pytest.mark.usefixtures("converted")
def test_k_quants_say_what_fell_back(run: Callable[..., Any], out: Path) -> None:
    # no row of the tiny model is a multiple of 256: every matrix falls back
    entry = run("Q4_K_M", importance_matrix="off")["Q4_K_M"]
    assert entry["importance"] is False
    assert not any(
        key.startswith("quantize.imatrix") for key in gguf_header.read(out / entry["file"]).metadata
    )
    assert entry["fallback_tensors"] == sum(entry["tensor_types"].values())
    assert entry["bits_per_weight"] > 4.9


def test_a_model_that_never_stops_is_caught(
    run: Callable[..., Any],
    merged: Path,
    artifacts: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantize, "MAX_PROBE_TOKENS", 16)
    # untrained
    shutil.copyfile(artifacts["base"].file("model.safetensors"), merged / "model.safetensors")
    with pytest.raises(StageError, match="never ends an answer: 0 of 8 held-out prompts") as caught:
        run("F16")
    assert "finetune.epochs" in caught.value.hint


def test_a_damaged_model_is_said_before_anything_is_loaded(
    run: Callable[..., Any], merged: Path
) -> None:
    (merged / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    with pytest.raises(DataError, match="the config in merged cannot be loaded"):
        run("Q8_0")


def ladder(source: Path, target: Path, type_name: str) -> list[str]:
    return list(quantizer.quantize_all(source, [quantizer.QuantizedFile(type_name, target)]))


@pytest.mark.parametrize(
    ("type_name", "folder", "said", "hint"),
    [
        ("Q9_9", "", "quantizing to Q9_9 failed: .*no quantization type Q9_9", "Q4_K_M"),
        ("Q8_0", "missing", "quantizing to Q8_0 failed", "df -h"),
    ],
)
def test_a_file_that_llama_cpp_cannot_write_is_said(
    lossless: Path, tmp_path: Path, type_name: str, folder: str, said: str, hint: str
) -> None:
    with pytest.raises(StageError, match=said) as caught:
        ladder(lossless, tmp_path / folder / "x.gguf", type_name)
    assert hint in caught.value.hint


def test_a_file_that_may_not_grow_is_said(lossless: Path, tmp_path: Path) -> None:
    with (
        odd_files.growing_to(100_000),
        pytest.raises(StageError, match="quantizing to Q8_0 failed: ") as caught,
    ):
        ladder(lossless, tmp_path / "x.gguf", "Q8_0")
    assert caught.value.hint == "is the disk full? df -h ."


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 700 kB."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", place], capture_output=True
        ).returncode
        != 0
    ):
        pytest.skip("this process may not mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_no_file_under_a_final_name(
    small_disk: Path, lossless: Path, run: Callable[..., Any]
) -> None:
    # the lossless file fits, a second one beside it does not; llama.cpp leaves what it wrote
    with pytest.raises(StageError, match="quantizing to Q8_0 failed") as caught:
        shutil.copyfile(lossless, small_disk / "lossless.gguf")
        (small_disk / "filler").write_bytes(bytes(400_000))
        ladder(small_disk / "lossless.gguf", small_disk / "x.gguf", "Q8_0")
    assert "df -h" in caught.value.hint
    (small_disk / "filler").unlink()
    (small_disk / "x.gguf").unlink(missing_ok=True)
    (small_disk / "filler").write_bytes(bytes(100_000))
    with pytest.raises(StageError, match="the GGUF converter failed") as caught:
        run("F32", "Q8_0", out=small_disk / "made")
    assert "df -h" in caught.value.hint


WAITING = """
import sys, time
from pathlib import Path
from slmctl.model_files import quantizer
step = quantizer.quantize_all(Path(sys.argv[1]), [quantizer.QuantizedFile("Q4_0", Path(path)) for path in sys.argv[2:]])
sys.stdout.write(next(step) + "\\n")
sys.stdout.flush()
time.sleep(60)
"""


def test_the_child_ends_with_its_parent(lossless: Path, tmp_path: Path) -> None:
    # else it would go on writing into the folder that the next run fills
    targets = [str(tmp_path / f"{number}.gguf") for number in range(500)]
    parent = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(lossless), *targets], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "Q4_0\n"
    (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    for _ in range(200):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"process {child} outlived its parent")
    assert len(list(tmp_path.glob("*.gguf"))) < len(targets)


@pytest.mark.slow
def test_killed_then_two_at_once(desk: Path) -> None:
    options = ("quantize", "--type", "Q5_0", "--type", "Q4_0")
    child = tiny.start(desk, *options)
    before = {path.name for path in (desk / "runs" / "gguf").iterdir()}
    while child.poll() is None and not list((desk / "runs" / "gguf").glob(".draft-*/*.gguf")):
        time.sleep(0.02)
    assert child.poll() is None
    tiny.kill_group(child)
    left = {path.name for path in (desk / "runs" / "gguf").iterdir()} - before
    assert all(name.startswith(".draft-") for name in left)
    first, second = (tiny.start(desk, *options) for _ in range(2))
    paths = {process.communicate()[0].strip() for process in (first, second)}
    assert (first.returncode, second.returncode) == (0, 0)
    (path,) = paths
    assert not artifact.verify(artifact.load(Path(path)))
    assert not list((desk / "runs" / "gguf").glob(".draft-*"))


def test_a_ladder_says_what_each_file_is(run: Callable[..., Any], out: Path, capsys: Any) -> None:
    files = run("F32", "Q8_0", "Q4_0")
    assert list(files) == ["F32", "Q8_0", "Q4_0"]
    entry = files["Q4_0"]  # written both ways, and the closer one is kept
    assert entry["kl_mean"] == min(entry["kl_weighted"], entry["kl_plain"])
    kept = gguf_header.read(out / entry["file"]).metadata
    assert entry["importance"] == ("quantize.imatrix.entries_count" in kept)
    assert not files["Q8_0"]["importance"]
    assert files["F32"]["kl_mean"] < files["Q8_0"]["kl_mean"] < files["Q4_0"]["kl_mean"]
    for entry in files.values():
        assert entry["positions"] >= 16
        assert entry["texts"] > 30
    # the file of the merged model's own type is the conversion itself
    assert files["F32"]["bits_per_weight"] == 32.0
    assert files["F32"]["kl_mean"] < 1e-5
    assert {path.name for path in out.iterdir()} == {
        "base.json",
        *(entry["file"] for entry in files.values()),
    }
    said = " ".join(capsys.readouterr().err.split())
    assert f"Q4_0: {files['Q4_0']['size'] / 1000:.1f} kB" in said
    assert "nats from the merged model" in said


@pytest.mark.usefixtures("converted")
def test_a_type_of_a_large_base_is_written_once(
    run: Callable[..., Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "LARGE", 1)
    monkeypatch.setattr(quantize, "AUTO_RECORDS", 6)
    (entry,) = run("Q4_0").values()
    assert entry["importance"] and "kl_plain" not in entry
    assert gguf_header.read(out / entry["file"]).metadata["quantize.imatrix.chunks_count"] == 3


def test_a_file_that_is_larger_and_no_better_is_named_where_it_was_compared() -> None:
    assert gguf_files.dominated_files({"Q8_0": {"size": 900}, "Q4_0": {"size": 500}}) == []
    files = {
        "Q8_0": {"size": 900, "kl_mean": 0.001},
        "Q4_0": {"size": 500, "kl_mean": 0.04},
        "Q4_K_M": {"size": 600, "kl_mean": 0.05},
    }
    (note,) = gguf_files.dominated_files(files)
    assert note.startswith("Q4_K_M (600 B) is larger than Q4_0 (500 B) and no closer")


def test_a_file_that_was_not_compared_is_not_the_closer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"weighted": {"kl_mean": 0.01}, "plain": {}}
    monkeypatch.setattr(parity, "check", lambda path, *_, **__: found[path.read_text()])
    kept, other = tmp_path / "kept.gguf", tmp_path / "other.gguf"
    kept.write_text("weighted")
    other.write_text("plain")
    targets = quantizer.QuantizedFile("Q4_0", kept, True), quantizer.QuantizedFile("Q4_0", other)
    quantize._closest(*targets, reference=None, scratch=tmp_path)  # type: ignore[arg-type]
    assert kept.read_text() == "weighted"


def test_held_out_prompts_may_be_longer_than_the_context(
    artifacts: dict[str, Artifact], lossless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "MAX_PROBE_TOKENS", 16)
    task = Task.read(artifacts["gguf"].path)
    probes = read_records(artifacts["prepared"].file("validation.jsonl"))[:2]
    turns = (
        {"role": "user", "content": "hello " * 3000},
        {"role": "assistant", "content": "billing"},
    )
    probes = [*probes, dataclasses.replace(probes[0], messages=turns)]
    with engine.Engine(lossless, sequences=1) as model:
        assert 2048 < len(model.tokenize(quantize.prompt_of(task, probes[-1]))) < 4000
    assert quantize._probe_answers(lossless, task, probes)["probes"] == 3


@pytest.mark.parametrize(
    ("words", "trained", "longest"), [(1, 2048, 16), (40, 2048, 82), (40, 60, 57), (40, 10, 16)]
)
def test_a_file_may_answer_as_long_as_its_reference_answers_are(
    words: int, trained: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # each file of a task with long answers was refused, since none ended within MAX_PROBE_TOKENS
    class Perfect:
        """An engine that answers as the reference does, a token a word, and then ends its turn."""

        info: ClassVar = {"trained_context": trained}
        asked: ClassVar[list[int]] = []

        def __init__(self, path: Path, *, sequences: int) -> None: ...
        def __enter__(self) -> Perfect:
            return self

        def __exit__(self, *exc: object) -> None: ...
        def tokenize(self, text: str) -> list[str]:
            return text.split()

        def ask_all(
            self, requests: list[engine.Request], *, widen: bool
        ) -> Iterator[tuple[int, engine.Answer]]:
            for index, request in enumerate(requests):
                self.asked.append(request.max_tokens)
                yield (
                    index,
                    engine.Answer(
                        "x", "stop" if words < request.max_tokens else "length", 0.9, 3, words
                    ),
                )

    monkeypatch.setattr(quantize, "MAX_PROBE_TOKENS", 16)
    monkeypatch.setattr(engine, "Engine", Perfect)
    task = Task("generate", "{{ messages[-1]['content'] }}", " <end>")
    record = Record(
        "a",
        ({"role": "user", "content": "a b c"}, {"role": "assistant", "content": "w " * words}),
        {},
    )
    if words < longest:
        assert quantize._probe_answers(Path("x"), task, [record]) == {
            "probes": 1,
            "probes_stopped": 1,
        }
    else:
        with pytest.raises(StageError, match=f"0 of 1 held-out prompts within {longest} tokens"):
            quantize._probe_answers(Path("x"), task, [record])
    assert Perfect.asked == [longest]


@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_its_own_does_on_the_base_what_the_merged_model_does(
    artifacts: dict[str, Artifact], tmp_path: Path, rslora: bool
) -> None:
    adapter, task = artifacts["adapter"].path, Task.read(artifacts["merged"].path)
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (folder / "manifest.json").unlink()
    fields = json.loads((folder / "adapter_config.json").read_bytes())
    # each layer's own scale must reach the file, which holds one for all
    change = {"use_rslora": rslora, "alpha_pattern": {"layers.0.self_attn.q_proj": 48}}
    (folder / "adapter_config.json").write_text(json.dumps(fields | change))
    given, out = artifact.foreign(folder, "adapter"), tmp_path / "merged"
    out.mkdir()
    merge.run(MergeConfig(), base=artifacts["base"], adapter=given, out=out)
    merged = artifact.foreign(out, "merged")
    written = lora_gguf.write(given, merged, tmp_path / "base-116K-tiny-desk-F16-LoRA.gguf")
    assert written["layers"] == 14
    lora = tmp_path / written["file"]
    assert gguf_header.read(lora).metadata["general.license"] == "apache-2.0"
    base = tmp_path / "base.gguf"
    gguf_converter.convert(artifacts["base"].path, base, dtype="f32", metadata={})
    records = read_records(artifacts["prepared"].file("validation.jsonl"))
    wanted = parity.reference(
        hf_folder.load_model(out), hf_folder.load_tokenizer(out), task, records
    )
    distance = {}
    for name, path in (("alone", None), ("with", lora)):
        logits = tmp_path / f"{name}.npy"
        quantizer.probe(base, texts=[], end=task.end, rows=wanted.rows, logits=logits, lora=path)
        distance[name] = parity.compare_logits(wanted.logits, np.load(logits))["kl_mean"]
    assert distance["with"] < 1e-4 < 0.1 < distance["alone"]


@pytest.mark.slow
def test_the_stage_writes_the_adapter_where_it_is_asked_to(stages: Forks, desk: Path) -> None:
    made = Path(
        tiny.ok(stages.run(desk, "quantize", "--set", "quantize.lora_gguf=true", "--type", "Q8_0"))
    )
    manifest = artifact.load(made)
    assert manifest.manifest.inputs.keys() == {"merged", "prepared", "adapter", "base_files"}
    assert manifest.file(manifest.metrics["lora"]["file"]).name.endswith("-F16-LoRA.gguf")
    assert list(manifest.metrics["files"]) == ["Q8_0"]
    assert gguf_file(manifest, None).path.endswith("-Q8_0.gguf")  # the adapter alone is no model


def test_an_adapter_that_is_no_sum_gets_no_file_of_its_own(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["adapter"].path, tmp_path / "adapter"))
    (folder / "manifest.json").unlink()
    fields = json.loads((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"modules_to_save": ["norm"]}))
    state = load_file(folder / "adapter_model.safetensors")
    state["base_model.model.model.norm.weight"] = next(iter(state.values())).new_ones(64)
    save_file(state, folder / "adapter_model.safetensors")
    with pytest.raises(StageError, match="trained whole layers") as caught:
        lora_gguf.write(
            artifact.foreign(folder, "adapter"), artifacts["merged"], tmp_path / "x.gguf"
        )
    assert caught.value.hint == "--set quantize.lora_gguf=false"


CONVERSION = """
import sys
from pathlib import Path
place = Path(sys.argv[1])
sys.path.insert(0, str(place / "gguf-py"))
sys.path.insert(0, sys.argv[2])
import gguf, gguf_converter_child
values = [["a", "żó", "", "x" * 300] * 400, [1, -2, 3] * 500, [0.5, 1e-9] * 600, [True, False] * 600, ["x"]]
values += [[1.5, 2] * 600, [1] * 999, ["a", 1] * 600]
def packed():
    writer = gguf.GGUFWriter(None, "llama")
    result = []
    for value in values:
        for head in (True, False):
            try:
                result.append(writer._pack_val(value, gguf.GGUFValueType.ARRAY, head))
            except ValueError as error:
                result.append(str(error))
    return result
slow = packed()
gguf_converter_child.install(gguf)
assert packed() == slow
merges = [["a", "b c"], [" ", "x"], ["d", "e"]]
own = [" ".join("".join(chr(ord(c) + 256) if c == " " else c for c in part) for part in pair) for pair in merges]
assert gguf_converter_child.joined(merges) == own
assert gguf_converter_child.joined(["a b"]) == ["a b"] and gguf_converter_child.joined(None) is None
"""


def test_the_faster_loops_pack_the_same_bytes() -> None:
    place = gguf_converter.require()
    source = Path(gguf_converter.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", CONVERSION, place, source], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_conversion_is_the_scripts_own(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    merged = artifacts["merged"].path
    gguf_converter.convert(merged, tmp_path / "ours.gguf", dtype="f16", metadata={})
    script = gguf_converter.require() / gguf_converter.SCRIPT
    command = [
        sys.executable,
        script,
        merged,
        "--outtype",
        "f16",
        "--outfile",
        tmp_path / "theirs.gguf",
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_a_converter_that_is_missing_or_changed_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = gguf_converter.folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    with pytest.raises(MissingError, match="is missing") as caught:
        gguf_converter.require()
    assert caught.value.hint == "slmctl doctor --fix"
    shutil.copytree(kept, gguf_converter.folder())
    assert gguf_converter.require() == gguf_converter.folder()
    with (gguf_converter.folder() / gguf_converter.SCRIPT).open("a") as stream:
        stream.write("#")
    with pytest.raises(IntegrityError, match="has changed since it was fetched"):
        gguf_converter.require()
