"""merge: the same weights as PEFT's, in a new place, for every form
of LoRA that is not refused by name.
"""

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
from slmctl.model_files.safetensors_stream import PlannedTensor, ShardWriter  # noqa: E402
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
                weights_too(load_file(folder / "adapter_model.safetensors")),
                folder / "adapter_model.safetensors",
            )
        return artifact.foreign(folder, "adapter")

    return call


def test_it_writes_the_same_bytes_twice_and_touches_no_input(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        run(artifacts["base"], artifacts["adapter"], tmp_path / name)
    assert artifact.scan(tmp_path / "one") == artifact.scan(tmp_path / "two")
    assert (tmp_path / "one" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert not artifact.verify(artifacts["base"])
    assert not artifact.verify(artifacts["adapter"])


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
    artifacts: dict[str, Artifact],
    changed: Any,
    tmp_path: Path,
    settings: dict[str, Any],
    named: str,
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
    """A PEFT model on the base in a folder, with random weights in every
    part of it, and that adapter as saved.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on tied embeddings, which is what is tested
        tuned = get_peft_model(
            model, LoraConfig(r=8, lora_alpha=12, task_type="CAUSAL_LM", **settings)
        )
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                old = parameter.data
                noise = torch.randn_like(old)
                parameter.data = (
                    old * (1 + 0.1 * noise)
                    if "magnitude" in name
                    else 0.1 * noise + ("norm" in name)
                )
        state = get_peft_model_state_dict(tuned)
    folder.mkdir()
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in state.items()},
        folder / "adapter_model.safetensors",
    )
    fields = tuned.peft_config["default"].to_dict()
    text = json.dumps(
        fields, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
    )
    (folder / "adapter_config.json").write_text(text)
    return tuned.eval(), artifact.foreign(folder, "adapter")


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.arange(5, 29).reshape(1, -1)).logits


HEADS = [(head, form) for head in ("shared", "own") for form in FORMS]
HEADS += [("shared and stored", form) for form in ("plain", "head", "embedding")]


@pytest.mark.parametrize(("head", "form"), HEADS)
def test_every_form_computes_what_peft_computes(
    artifacts: dict[str, Artifact], tmp_path: Path, head: str, form: str
) -> None:
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    (folder / "manifest.json").unlink()
    if head == "shared and stored":
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if head == "own":
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, tie_word_embeddings=False
        )
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
    apart = form in ("head-saved", "head", "embedding", "embedding-dora")
    assert metrics["untied"] == (apart and head == "shared")
    shared = json.loads((tmp_path / "out" / "config.json").read_bytes())["tie_word_embeddings"]
    # other engines go by it, whatever the file holds
    assert shared == (head != "own" and not apart)
    if head == "own" or not apart:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = tuned.merge_and_unload().state_dict()
        for name, tensor in merged.state_dict().items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_layers_stored_the_other_way_round(
    artifacts: dict[str, Artifact], tmp_path: Path, dora: bool
) -> None:
    folder = tmp_path / "base"
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ).save_pretrained(folder)
    shutil.copyfile(artifacts["base"].file("base.json"), folder / "base.json")
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": dora}
    tuned, adapter = adapter_of(folder, tmp_path / "adapter", **settings)
    wanted = logits(tuned)
    run(artifact.foreign(folder, "base"), adapter, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_pefts_sum_cast_once(
    artifacts: dict[str, Artifact], tmp_path: Path, dtype: str
) -> None:
    kind = getattr(torch, dtype)
    run(artifacts["base"], artifacts["adapter"], tmp_path / "out", dtype=dtype)
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["dtype"] == dtype
    model = hf_folder.load_model(artifacts["base"].path)
    theirs = (
        PeftModel.from_pretrained(model, artifacts["adapter"].path).merge_and_unload().state_dict()
    )
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert tensor.dtype == kind
        apart = (
            (tensor.view(torch.int16).int() - theirs[name].to(kind).view(torch.int16).int())
            .abs()
            .max()
        )
        assert int(apart) <= 1, name  # neighbours among 16-bit numbers of one sign


def test_a_wider_type_keeps_the_sum(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    # the sum was once cast to the base's type first, and its lost digits then stored in float32
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    (folder / "manifest.json").unlink()
    half = {
        name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    base = artifact.foreign(folder, "base")
    run(base, artifacts["adapter"], tmp_path / "out", dtype="float32")
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["dtype"] == "float32"
    merged = load_file(tmp_path / "out" / "model.safetensors")
    state = load_file(artifacts["adapter"].file("adapter_model.safetensors"))
    name = "model.layers.0.mlp.down_proj"
    a, b = (state[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(
        merged[f"{name}.weight"], half[f"{name}.weight"].float() + 2 * (b @ a)
    )


def test_shards_in_and_shards_out(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    for name in ("manifest.json", "model.safetensors"):
        (folder / name).unlink()
    hf_folder.load_model(artifacts["base"].path).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    run(artifacts["base"], artifacts["adapter"], tmp_path / "one")
    monkeypatch.setattr(merge, "SHARD_BYTES", 200_000)
    metrics = run(artifact.foreign(folder, "base"), artifacts["adapter"], tmp_path / "many")
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{metrics['shards']:05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_bytes())
    assert sorted(set(index["weight_map"].values())) == files
    for file in files:
        with safe_open(tmp_path / "many" / file, "pt") as opened:
            assert set(opened.keys()) == {
                name for name, where in index["weight_map"].items() if where == file
            }
        assert (tmp_path / "many" / file).stat().st_size <= 2e5 + 4096  # and its header
    one, many = (
        hf_folder.load_model(tmp_path / "one").state_dict(),
        hf_folder.load_model(tmp_path / "many").state_dict(),
    )
    assert index["metadata"]["total_size"] == sum(
        tensor.numel() * 4 for name, tensor in one.items() if name in index["weight_map"]
    )
    assert all(torch.equal(tensor, many[name]) for name, tensor in one.items())


def _wrong_index(folder: Path) -> None:
    index = {
        "weight_map": {"model.layers.9.mlp.up_proj.weight": "model-00002-of-00002.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")


def _torn(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(200_000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_wrong_index, r"'model\.layers\.9\.mlp\.up_proj\.weight' is in model-00002"),
        (_torn, "no readable safetensors file"),
    ],
)
def test_a_damaged_base_is_refused(
    artifacts: dict[str, Artifact], tmp_path: Path, damage: Any, message: str
) -> None:
    folder = Path(shutil.copytree(artifacts["base"].path, tmp_path / "base"))
    (folder / "manifest.json").unlink()
    damage(folder)
    with pytest.raises(IntegrityError, match=message):
        run(artifact.foreign(folder, "base"), artifacts["adapter"], tmp_path / "out")


def test_a_name_that_two_tensors_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="two tensors of the model are named 'a'"):
        ShardWriter(tmp_path, 2 * [PlannedTensor("a", torch.float32, (1,))], limit=1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda name, tensor: (name.replace("layers.1.", "layers.7."), tensor),
            r"it has no layer 'model\.layers\.7\.",
        ),
        (
            lambda name, tensor: (
                name,
                tensor[:, :32].contiguous() if "lora_A" in name else tensor,
            ),
            "does not fit the base at",
        ),
        (
            lambda name, tensor: (name, torch.full_like(tensor, 1e3)),
            r"gives values that torch\.float16 cannot hold",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    artifacts: dict[str, Artifact], changed: Any, tmp_path: Path, other: Any, message: str
) -> None:
    adapter = changed(lambda state: dict(other(*entry) for entry in state.items()))
    with pytest.raises(StageError, match=message):
        run(artifacts["base"], adapter, tmp_path / "out", dtype="float16")


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
merge.SHARD_BYTES = 1_000_000_000
merge.run(MergeConfig(), base=base, adapter=adapter, out=out)
sys.stdout.write(json.dumps([start * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
def test_a_sharded_billion_weights_are_merged_in_little_memory(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    from transformers import LlamaForCausalLM

    folder = tmp_path / "base"
    settings = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
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
    tuned = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"])
    )
    state = get_peft_model_state_dict(tuned)
    state = {name: 0.05 * torch.randn(tensor.shape) for name, tensor in state.items()}
    (tmp_path / "adapter").mkdir()
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(fields))
    del model, tuned
    command = [
        sys.executable,
        "-c",
        PEAK,
        str(folder),
        str(tmp_path / "adapter"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = json.loads(done.stdout)
    assert peak - before < 400e6  # of 2.2 GB of weights
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    where = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    assert index["weight_map"].keys() == where.keys()
    for module in (
        "model.layers.0.self_attn.q_proj",
        "model.layers.21.mlp.down_proj",
        "model.layers.3.mlp.up_proj",
    ):
        name = f"{module}.weight"
        with (
            safe_open(folder / where[name], "pt") as old,
            safe_open(tmp_path / "out" / index["weight_map"][name], "pt") as new,
        ):
            weight, merged = old.get_tensor(name), new.get_tensor(name)
        key = f"base_model.model.{module}.lora_{{}}.weight"
        if key.format("A") in state:
            weight = (weight.float() + 2 * (state[key.format("B")] @ state[key.format("A")])).to(
                torch.bfloat16
            )
        apart = (merged.view(torch.int16).int() - weight.view(torch.int16).int()).abs().max()
        assert int(apart) <= 1
