"""merge: the same weights as PEFT's, in a new place, for every form of LoRA that is not refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmctl.artifacts import artifact
from slmctl.artifacts.artifact import Artifact
from slmctl.config import MergeConfig
from slmctl.errors import IntegrityError, StageError

torch = pytest.importorskip("torch")

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig  # noqa: E402

from slmctl.model_files import hf_folder  # noqa: E402
from slmctl.stages.merge import merge  # noqa: E402


def run(base: Artifact, adapter: Artifact, out: Path, **settings: Any) -> dict[str, Any]:
    out.mkdir()
    return merge.run(MergeConfig.model_validate(settings), base=base, adapter=adapter, out=out)


@pytest.fixture
def changed(artifacts: dict[str, Artifact], tmp_path: Path) -> Any:
    """The tiny adapter with other settings or weights."""

    def call(weights_too: Any = None, **settings: Any) -> Artifact:
        folder = Path(shutil.copytree(artifacts["adapter"].path, tmp_path / "adapter"))
        (folder / "manifest.json").unlink()
        fields = json.loads((folder / "adapter_config.json").read_bytes())
        (folder / "adapter_config.json").write_text(json.dumps(fields | settings))
        if weights_too is not None:
            save_file(
                weights_too(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors"
            )
        return artifact.foreign(folder, "adapter")

    return call


@pytest.mark.parametrize("rslora", [False, True])
def test_it_equals_pefts_own_merge(artifacts: dict[str, Artifact], changed: Any, tmp_path: Path, rslora: bool) -> None:
    adapter = changed(use_rslora=rslora)
    run(artifacts["base"], adapter, tmp_path / "out", dtype="float32")
    theirs = PeftModel.from_pretrained(hf_folder.load_model(artifacts["base"].path), adapter.path).merge_and_unload()
    ours = hf_folder.load_model(tmp_path / "out")
    wanted = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
    base = hf_folder.load_model(artifacts["base"].path).state_dict()
    assert any(not torch.equal(tensor, base[name]) for name, tensor in ours.state_dict().items())


def test_its_inputs_are_not_touched(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    run(artifacts["base"], artifacts["adapter"], tmp_path / "out")
    assert not artifact.verify(artifacts["base"])
    assert not artifact.verify(artifacts["adapter"])


def test_the_same_bytes_twice(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(artifacts["base"], artifacts["adapter"], tmp_path / name)
    assert artifact.scan(tmp_path / "one") == artifact.scan(tmp_path / "two")
    assert (tmp_path / "one" / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_type_is_written_and_said(artifacts: dict[str, Artifact], tmp_path: Path, dtype: str) -> None:
    run(artifacts["base"], artifacts["adapter"], tmp_path / "out", dtype=dtype)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["dtype"] == dtype


def test_the_card_names_base_and_licence(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    run(artifacts["base"], artifacts["adapter"], tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: base\n")
    assert "\nlicense: apache-2.0\n" in card
    assert yaml.safe_load(card.split("---")[1])["language"] == ["en", "de"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "lists 'lm_head' in its modules_to_save"),
        ({"bias": "all"}, "trained biases"),
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa"}, "'pissa' belongs to a base that was changed"),
        ({"a_form_of_next_year": {"x": 1}}, "a_form_of_next_year"),
    ],
)
def test_other_forms_are_refused_by_name(
    artifacts: dict[str, Artifact], changed: Any, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(StageError, match=named):
        run(artifacts["base"], changed(**settings), tmp_path / "out")


LAYERS = ["q_proj", "v_proj", "down_proj"]
FORMS = {
    "plain": {"target_modules": LAYERS},
    "rslora": {"target_modules": LAYERS, "use_rslora": True},
    "dora": {"target_modules": LAYERS, "use_dora": True},
    "patterns": {
        "target_modules": LAYERS,
        "rank_pattern": {"down_proj": 4},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 5},
    },
    "some-layers": {"target_modules": LAYERS, "layers_to_transform": [1]},
    "norm-saved": {"target_modules": LAYERS, "modules_to_save": ["norm"]},
    "head-saved": {"target_modules": LAYERS, "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding-dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "q_proj"]},
}


def adapter_of(base: Path, folder: Path, **settings: Any) -> tuple[Any, Artifact]:
    """A PEFT model on the base in a folder, with random weights in every part of it, and that adapter as saved."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on tied embeddings, which is what is tested
        tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=12, task_type="CAUSAL_LM", **settings))
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                old = parameter.data
                noise = torch.randn_like(old)
                parameter.data = old * (1 + 0.1 * noise) if "magnitude" in name else 0.1 * noise + ("norm" in name)
        state = get_peft_model_state_dict(tuned)
    folder.mkdir()
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "adapter_model.safetensors"
    )
    fields = tuned.peft_config["default"].to_dict()
    text = json.dumps(fields, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    (folder / "adapter_config.json").write_text(text)
    return tuned.eval(), artifact.foreign(folder, "adapter")


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.arange(5, 29).reshape(1, -1)).logits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_form_computes_what_peft_computes(
    artifacts: dict[str, Artifact], tmp_path: Path, form: str, tied: bool
) -> None:
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    (folder / "manifest.json").unlink()
    if not tied:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, tie_word_embeddings=False)
        torch.nn.init.normal_(model.lm_head.weight, std=0.1)
        model.save_pretrained(folder)
    before = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    tuned, adapter = adapter_of(folder, tmp_path / "adapter", **FORMS[form])
    wanted = logits(tuned)
    assert float((wanted - before).abs().max()) > 1e-2
    metrics = run(artifact.foreign(folder, "base"), adapter, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)
    # a head that shares the embedding's weights is another one once only one of the two was trained
    assert metrics["untied"] == (tied and form in ("head-saved", "head", "embedding", "embedding-dora"))
    if not metrics["untied"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = tuned.merge_and_unload().state_dict()
        for name, tensor in merged.state_dict().items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_layers_stored_the_other_way_round(artifacts: dict[str, Artifact], tmp_path: Path, dora: bool) -> None:
    folder = tmp_path / "base"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(folder)
    shutil.copyfile(artifacts["base"].file("base.json"), folder / "base.json")
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": dora}
    tuned, adapter = adapter_of(folder, tmp_path / "adapter", **settings)
    wanted = logits(tuned)
    run(artifact.foreign(folder, "base"), adapter, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_pefts_sum_cast_once(artifacts: dict[str, Artifact], tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    run(artifacts["base"], artifacts["adapter"], tmp_path / "out", dtype=dtype)
    model = hf_folder.load_model(artifacts["base"].path)
    theirs = PeftModel.from_pretrained(model, artifacts["adapter"].path).merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        wanted = theirs[name].to(kind)
        apart = (tensor.view(torch.int16).int() - wanted.view(torch.int16).int()).abs().max()
        assert int(apart) <= 1, name  # neighbours among 16-bit numbers of one sign


def test_shards_in_and_shards_out(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    for name in ("manifest.json", "model.safetensors"):
        (folder / name).unlink()
    hf_folder.load_model(artifacts["base"].path).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    run(artifacts["base"], artifacts["adapter"], tmp_path / "one")
    metrics = run(artifact.foreign(folder, "base"), artifacts["adapter"], tmp_path / "many", max_shard_gb=2e-4)
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{metrics['shards']:05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_bytes())
    assert sorted(set(index["weight_map"].values())) == files
    for file in files:
        with safe_open(tmp_path / "many" / file, "pt") as opened:
            assert set(opened.keys()) == {name for name, where in index["weight_map"].items() if where == file}
        assert (tmp_path / "many" / file).stat().st_size <= 2e5 + 4096  # and its header
    one, many = (
        hf_folder.load_model(tmp_path / "one").state_dict(),
        hf_folder.load_model(tmp_path / "many").state_dict(),
    )
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * 4 for name, tensor in one.items() if name in index["weight_map"]
    )
    assert all(torch.equal(tensor, many[name]) for name, tensor in one.items())


def test_an_index_that_names_what_is_not_there_is_refused(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    (folder / "manifest.json").unlink()
    index = {"weight_map": {"model.layers.9.mlp.up_proj.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match=r"'model\.layers\.9\.mlp\.up_proj\.weight' is in model-00002"):
        run(artifact.foreign(folder, "base"), artifacts["adapter"], tmp_path / "out")


def test_a_torn_base_is_refused(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    (folder / "manifest.json").unlink()
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(200_000)
    with pytest.raises(IntegrityError, match="no readable safetensors file"):
        run(artifact.foreign(folder, "base"), artifacts["adapter"], tmp_path / "out")


def test_an_adapter_of_another_base_is_refused(artifacts: dict[str, Artifact], changed: Any, tmp_path: Path) -> None:
    adapter = changed(lambda state: {name.replace("layers.1.", "layers.7."): tensor for name, tensor in state.items()})
    with pytest.raises(StageError, match=r"it has no layer 'model\.layers\.7\."):
        run(artifacts["base"], adapter, tmp_path / "out")


def test_an_adapter_of_another_shape_is_refused(artifacts: dict[str, Artifact], changed: Any, tmp_path: Path) -> None:
    def narrow(state: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor[:, :32].contiguous() if "lora_A" in name else tensor for name, tensor in state.items()}

    with pytest.raises(StageError, match="does not fit the base at"):
        run(artifacts["base"], changed(narrow), tmp_path / "out")


def test_what_the_type_cannot_hold_is_refused(artifacts: dict[str, Artifact], changed: Any, tmp_path: Path) -> None:
    adapter = changed(lambda state: {name: torch.full_like(tensor, 1e3) for name, tensor in state.items()})
    with pytest.raises(StageError, match=r"gives values that torch\.float16 cannot hold"):
        run(artifacts["base"], adapter, tmp_path / "out", dtype="float16")


def test_a_wider_type_keeps_the_sum(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    # the sum was once cast to the base's type first, and its lost digits then stored in float32
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    (folder / "manifest.json").unlink()
    half = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    base = artifact.foreign(folder, "base")
    run(base, artifacts["adapter"], tmp_path / "out", dtype="float32")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    state = load_file(artifacts["adapter"].file("adapter_model.safetensors"))
    name = "model.layers.0.mlp.down_proj"
    a, b = (state[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(merged[f"{name}.weight"], half[f"{name}.weight"].float() + 2 * (b @ a))


PEAK = """
import json, resource, sys
from pathlib import Path
from slmctl.artifacts import artifact
from slmctl.config import MergeConfig
from slmctl.stages.merge import merge
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = Path(sys.argv[3])
out.mkdir()
base, adapter = (artifact.foreign(Path(folder), kind) for folder, kind in zip(sys.argv[1:3], ("base", "adapter")))
merge.run(MergeConfig(max_shard_gb=1.0), base=base, adapter=adapter, out=out)
sys.stdout.write(json.dumps([start * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
def test_a_sharded_billion_weights_are_merged_in_little_memory(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    folder = tmp_path / "base"
    settings = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(0)
        model = LlamaForCausalLM(settings)
    finally:
        torch.set_default_dtype(torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e9
    model.save_pretrained(folder, max_shard_size="700MB")
    assert len(list(folder.glob("*.safetensors"))) >= 3
    shutil.copyfile(artifacts["base"].file("base.json"), folder / "base.json")
    tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"]))
    state = get_peft_model_state_dict(tuned)
    state = {name: 0.05 * torch.randn(tensor.shape) for name, tensor in state.items()}
    (tmp_path / "adapter").mkdir()
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(fields))
    del model, tuned
    command = [sys.executable, "-c", PEAK, str(folder), str(tmp_path / "adapter"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = json.loads(done.stdout)
    assert peak - before < 400e6  # of 2.2 GB of weights
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    where = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    assert index["weight_map"].keys() == where.keys()
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.21.mlp.down_proj", "model.layers.3.mlp.up_proj"):
        name = f"{module}.weight"
        with (
            safe_open(folder / where[name], "pt") as old,
            safe_open(tmp_path / "out" / index["weight_map"][name], "pt") as new,
        ):
            weight, merged = old.get_tensor(name), new.get_tensor(name)
        key = f"base_model.model.{module}.lora_{{}}.weight"
        if key.format("A") in state:
            weight = (weight.float() + 2 * (state[key.format("B")] @ state[key.format("A")])).to(torch.bfloat16)
        apart = (merged.view(torch.int16).int() - weight.view(torch.int16).int()).abs().max()
        assert int(apart) <= 1
