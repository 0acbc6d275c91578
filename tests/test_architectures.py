"""Every architecture that companies pick, as a small random model: copied, counted, trained, packed, merged.

A row of ARCHITECTURES says how an architecture trains, and a test asks the model itself.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.forks import Forks

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText  # noqa: E402

from benchmarks import architectures, bases, real_tokenizers  # noqa: E402
from slmctl.artifacts import artifact  # noqa: E402
from slmctl.config import FinetuneConfig, MergeConfig  # noqa: E402
from slmctl.model_files import catalogue, hf_folder, model_size, tiny_copy  # noqa: E402
from slmctl.model_files.base_model import Base  # noqa: E402
from slmctl.stages.finetune import finetune, layer_replacement, lora_targets, packing_check  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, BatchPacker  # noqa: E402
from slmctl.stages.merge import merge  # noqa: E402
from slmctl.stages.pull import text_model  # noqa: E402

# of packages that would make some architectures faster, and of tied weights that PEFT unties
pytestmark = pytest.mark.filterwarnings("ignore")
NEAR = 1e-3


@dataclass(frozen=True)
class Architecture:
    """An architecture as slmctl handles it.

    Attributes:
        training: `fast` (packed, with the CPU kernels in most layers), `packed`, or `padded`; of a multimodal base that
            of its text model, which is what `pull` keeps.
        merged_slowly: Merged in the slow tests alone: its modules, stored names and layers are those of another row.
        layers: Last names of the layers that `all-linear` adapts, where a test says them.
    """

    training: str = "fast"
    merged_slowly: bool = True
    layers: str = ""


ATTENTION, MLP = " q_proj k_proj v_proj o_proj", " gate_proj up_proj down_proj"
ARCHITECTURES = {
    "llama": Architecture(layers=ATTENTION + MLP),
    "smollm3": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "mistral": Architecture(),
    "granite": Architecture(),
    "granite4": Architecture(),
    "granite4-h": Architecture("padded", False, ATTENTION + " in_proj input_linear output_linear"),
    "olmo2": Architecture(),
    "olmo3": Architecture(),
    "exaone4": Architecture(),
    "apertus": Architecture(),
    "gemma2": Architecture(),
    "gemma3-text": Architecture(),
    "gemma4-text": Architecture(),
    "phi3": Architecture("fast", False, "qkv_proj o_proj gate_up_proj down_proj"),
    "lfm2": Architecture("fast", False, "in_proj out_proj q_proj k_proj v_proj w1 w2 w3"),
    "qwen3.5-text": Architecture(
        "padded", False, ATTENTION + MLP + " in_proj_qkv in_proj_z in_proj_a in_proj_b out_proj"
    ),
    "falcon-h1": Architecture("padded", layers=ATTENTION + MLP + " in_proj"),
    "mamba2": Architecture("padded", False, "in_proj"),
    "bamba": Architecture("padded"),
    "hunyuan": Architecture(),
    "ernie4.5": Architecture(),
    "glm4": Architecture(),
    "cohere2": Architecture(),
    "qwen3-moe": Architecture("packed", False, ATTENTION),
    "granite-moe": Architecture("packed", False),
    "olmoe": Architecture("packed"),
    "deepseek-v3": Architecture("packed", False, "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj"),
    "gpt-oss": Architecture("padded", False),
    "nemotron-h": Architecture("padded", False, ATTENTION + " in_proj up_proj down_proj"),
    "bloom": Architecture("padded", False),
    "mpt": Architecture("padded"),
    "gemma3": Architecture(),
    "gemma4": Architecture("fast", False),
    "ministral3": Architecture("fast", False),
    "qwen3.5": Architecture("padded"),
}
MULTIMODAL = {name for name in ARCHITECTURES if architectures.ARCHITECTURES[name].multimodal}
FAST = [name for name, row in ARCHITECTURES.items() if row.training == "fast" and name not in MULTIMODAL]


def test_no_architecture_is_left_out() -> None:
    assert set(ARCHITECTURES) == set(architectures.ARCHITECTURES)


@functools.lru_cache(maxsize=1)  # the tests of one architecture come together
def built(name: str) -> Any:
    return architectures.model(name)


@pytest.fixture(params=ARCHITECTURES, scope="module")
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def test_a_copy_computes(name: str) -> None:
    model = built(name)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 60)[None]).logits
    assert logits.shape == (1, 57, 640)
    assert torch.isfinite(logits).all()
    assert sum(p.numel() for p in model.parameters()) < 7e6


def test_a_model_is_packed_and_fast_by_what_it_computes(name: str) -> None:
    # small random weights, as their classes draw them: BLOOM's lost biases change little there
    model, training = copy.deepcopy(built(name)), "padded"
    if name in MULTIMODAL:
        assert not packing_check.supports_packing(model)
        model = tiny_copy.random_model(architectures.config(name, vocabulary=640).get_text_config())
    packs = packing_check.supports_packing(model)
    assert packing_check.supports_packing(copy.deepcopy(model).bfloat16()) == packs
    if packs:
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        layers = layer_replacement.install_kernels(get_peft_model(model, lora))
        training = "fast" if 2 * layers["fast_layers"] > layers["layers"] else "packed"
    assert training == ARCHITECTURES[name].training


@pytest.mark.parametrize("name", sorted({entry.architecture for entry in catalogue.entries()}))
def test_the_catalogue_says_how_a_base_trains(name: str) -> None:
    entry = next(entry for entry in catalogue.entries() if entry.architecture == name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architectures.config(name, vocabulary=640).get_text_config())
    assert type(model).__name__ == entry.model_class
    assert entry.training == ARCHITECTURES[name].training.replace("padded", "slow")


def test_every_weight_is_counted_once(name: str, tmp_path: Path) -> None:
    if name in MULTIMODAL:
        pytest.skip("pull keeps the text model alone")
    built(name).save_pretrained(tmp_path)
    found = model_size.read(tmp_path)
    assert found.weights == sum(parameter.numel() for parameter in built(name).parameters())
    assert found.channels > 4 * found.hidden * found.layers
    assert found.stored_bytes(100) < found.stored_bytes(1000)
    assert not found.halves


def empty(name: str) -> Any:
    """The model without memory for weights."""
    factory = AutoModelForImageTextToText if name in MULTIMODAL else AutoModelForCausalLM
    with torch.device("meta"):
        return factory.from_config(architectures.config(name, vocabulary=640))


def test_all_linear_adapts_layers_of_the_text_model(name: str) -> None:
    targets = lora_targets.adapted_layers(empty(name), "all-linear")
    assert targets
    if name in MULTIMODAL:  # towers are left alone
        assert all(target.startswith("model.language_model.") for target in targets)
    leaves = ARCHITECTURES[name].layers.split()
    assert not leaves or {target.rpartition(".")[2] for target in targets} == set(leaves)


# Merging: an adapter that is trained for a step, saved, merged by name and loaded again gives the same answers.

BASE = Base("tiny", "tiny", "", 1, "", "base", "", "</s>", ())


def pulled(name: str, tmp_path: Path, *, whole: bool = False) -> Path:
    """The HF folder of a tiny base as `pull` leaves it, or the whole of a multimodal one as earlier versions did."""
    model, folder = built(name), tmp_path / "base"
    model.save_pretrained(tmp_path / "download" if not whole else folder)
    if not whole and (text := text_model.find(tmp_path / "download")) is not None:
        folder.mkdir()
        text.write(folder)
    elif not whole:
        (tmp_path / "download").rename(folder)
    BASE.write(folder)
    return folder


def after_merge(base: Path, tmp_path: Path) -> tuple[Any, Any, Any]:
    """Logits of base, base with an adapter that took a step, and merged model."""
    torch.manual_seed(0)
    config = FinetuneConfig.model_validate({"lora": {"rank": 4, "alpha": 8}, "matmul_dtype": "float32"})
    model = finetune.load_transformers(config, base)
    tokens = torch.arange(5, 27)[None]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    for _ in range(2):  # B is zero at first, and A gets its gradient from it
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
    assert all(bool(parameter.grad.any()) for parameter in trained)
    for name in ("adapter", "merged"):
        (tmp_path / name).mkdir()
    finetune._save(model, SimpleNamespace(path=base), tmp_path / "adapter")  # type: ignore[arg-type]
    adapter = artifact.foreign(tmp_path / "adapter", "adapter")
    merge.run(MergeConfig(), base=artifact.foreign(base, "base"), adapter=adapter, out=tmp_path / "merged")
    with torch.no_grad():
        tuned = model.eval()(input_ids=tokens).logits
        with model.disable_adapter():
            plain = model(input_ids=tokens).logits
        return plain, tuned, hf_folder.load_model(tmp_path / "merged")(input_ids=tokens).logits


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * row.merged_slowly) for name, row in ARCHITECTURES.items()],
)
def test_merged_answers_like_base_and_adapter(name: str, tmp_path: Path) -> None:
    plain, tuned, merged = after_merge(pulled(name, tmp_path), tmp_path)
    torch.testing.assert_close(merged, tuned, rtol=0, atol=1e-3)
    assert (tuned - plain).abs().max() > 3e-3  # Granite divides its logits, and starts them small


def test_a_multimodal_base_pulled_by_an_earlier_version_is_merged(tmp_path: Path) -> None:
    # transformers calls the layers model.language_model.…, and the files language_model.model.…
    base = pulled("gemma3", tmp_path, whole=True)
    _, tuned, merged = after_merge(base, tmp_path)
    torch.testing.assert_close(merged, tuned, rtol=0, atol=1e-3)


# Packing: packed batches give the loss and the gradients that each record gives alone.


def rows() -> list[Any]:
    """Records of three lengths, longer than the windows of the small models, that open with the same tokens."""
    choose = torch.Generator().manual_seed(3)
    head = torch.randint(3, 600, (9,), generator=choose).tolist()
    made = []
    for length in (35, 40, 47):
        ids = head + torch.randint(3, 600, (length - 9,), generator=choose).tolist()
        labels = [IGNORED] * (length - 4) + ids[-4:]
        made.append({"input_ids": ids, "labels": labels, "weights": [0.0] * (length - 4) + [1.0, 1.0, 0.5, 1.0]})
    return made


def adapted(name: str, targets: Any = "all-linear") -> Any:
    """A model with an adapter that changes what it computes."""
    model = copy.deepcopy(built(name))
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.03)  # more makes much of every rounding
    return model


def alone(model: Any) -> Any:
    """Each record alone, all its logits, by transformers and PEFT."""
    total = torch.zeros(())
    for record in rows():
        logits = model(input_ids=torch.tensor([record["input_ids"]]), use_cache=False).logits[0, :-1].float()
        labels, weights = torch.tensor(record["labels"])[1:], torch.tensor(record["weights"])[1:]
        losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        total = total + (losses * weights).sum()
    return total


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def require_parity(model: Any, near: float = NEAR, half: bool = False) -> None:
    plain = copy.deepcopy(model)
    if half:  # the frozen weights as `finetune` loads them where products are in bfloat16
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    assert packing_check.supports_packing(model)
    layer_replacement.install_kernels(model)
    batch = BatchPacker()(rows())
    assert batch["layout"] == (9, 3)
    loss, expected = model(**batch).loss, alone(plain)
    torch.testing.assert_close(loss, expected, rtol=near, atol=0)
    found, wanted = gradients(model, loss), gradients(plain, expected)
    assert all(gradient is not None for gradient in wanted.values())
    assert all(gradient is not None for gradient in found.values())
    flat, flat_wanted = (torch.cat([g.flatten() for g in part.values()]) for part in (found, wanted))
    assert (flat - flat_wanted).norm() / flat_wanted.norm() < near


@pytest.mark.parametrize("name", FAST)
def test_packed_records_train_as_each_alone(name: str) -> None:
    # Gemma 4 does not scale scores down: in float64, embeddings that are off by 2e-7 change its gradients by 2e-3
    require_parity(adapted(name), near=1e-2 if name == "gemma4-text" else NEAR)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("name", ["llama", "gemma3-text", "granite"])
def test_updates_of_head_and_embeddings_are_trained(name: str, targets: list[str], half: bool) -> None:
    # the head's frozen weight alone was multiplied, and its update stayed at zero
    require_parity(adapted(name, targets), near=0.1 if half else NEAR, half=half)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3-text"])
def test_dropout_of_attention_is_honoured_in_training_only(name: str) -> None:
    model = adapted(name)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    layer_replacement.install_kernels(model)
    batch = BatchPacker()(rows())
    assert float(model.eval()(**batch).loss) == float(model(**batch).loss)
    model.train()
    assert len({float(model(**batch).loss) for _ in range(3)}) == 3


# The whole chain, with the real tokenizers that can be had: nothing fails after pull.


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", bases.QUICK)
def test_the_chain_passes(name: str, stages: Forks, tmp_path: Path) -> None:
    try:
        real_tokenizers.fetch(bases.FAMILIES[architectures.ARCHITECTURES[name].family].vocabulary)
    except real_tokenizers.UnavailableError as error:
        pytest.skip(str(error))
    # pull ends with the rehearsal of all that follows
    outcome = bases.try_base(name, tmp_path, until="pull", run=stages.run)
    assert (outcome.verdict, outcome.sentence) == ("passed", "")
    assert outcome.training.startswith(ARCHITECTURES[name].training)
