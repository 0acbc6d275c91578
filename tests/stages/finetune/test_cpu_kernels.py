"""The fast layers give the loss and the gradients that transformers and PEFT give, whatever the architecture."""

from __future__ import annotations

from typing import Any

import pytest

from slmctl.config import FinetuneConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from peft import LoraConfig, get_peft_model  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from slmctl.stages.finetune import (  # noqa: E402
    answer_loss,
    cpu_kernels,
    fused_kernels,
    layer_replacement,
    lora_targets,
    packing_check,
    short_convolution,
)
from slmctl.stages.finetune.batches import PaddedBatches  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, BatchPacker  # noqa: E402

# PEFT looks for the experts of every mixture by names that tiny ones do not have
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:peft")

WINDOW = 9  # shorter than every record below
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": True,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# The class of the config, what it is given, and how many of the three layers are fast.
FAST: dict[str, tuple[str, dict[str, Any], int]] = {
    "Llama": ("LlamaConfig", {}, 3),
    "Mistral, a window told by its config only": ("MistralConfig", {"sliding_window": WINDOW, "head_dim": 16}, 3),
    "Qwen2, biases": ("Qwen2Config", {}, 3),
    "Qwen2, a window from the second layer on": (
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}, 3,
    ),
    "Qwen3, normed queries and keys": ("Qwen3Config", {"head_dim": 32}, 3),
    "Gemma, norms of 1 + w": ("GemmaConfig", {"head_dim": 32}, 3),
    "Gemma 2, capped scores and logits": (
        "Gemma2Config",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "attn_logit_softcapping": 5.0,
         "final_logit_softcapping": 3.0}, 3,
    ),
    "Gemma 3, windows and normed queries and keys": (
        "Gemma3TextConfig",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW,
         "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}, 3,
    ),
    "Gemma 4, heads of two sizes, inputs to every layer, keys and values of an earlier one": (
        "Gemma4TextConfig",
        {"head_dim": 16, "global_head_dim": 32, "sliding_window": WINDOW, "hidden_size_per_layer_input": 8,
         "vocab_size_per_layer_input": 300, "num_kv_shared_layers": 1, "use_double_wide_mlp": True,
         "layer_types": ["sliding_attention", "full_attention", "full_attention"]}, 3,
    ),
    "Gemma 4, keys that are the values": (
        "Gemma4TextConfig",
        {"head_dim": 16, "global_head_dim": 32, "num_global_key_value_heads": 1, "sliding_window": WINDOW,
         "hidden_size_per_layer_input": 0, "attention_k_eq_v": True,
         "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}, 3,
    ),
    "Granite, scaled everywhere": (
        "GraniteConfig",
        {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
        3,
    ),
    "Granite 4, a hybrid's class with attention alone": (
        "GraniteMoeHybridConfig",
        {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3,
         "num_local_experts": 0, "shared_intermediate_size": 96, "position_embedding_type": "rope",
         "layer_types": ["attention"] * 3}, 3,
    ),
    "SmolLM3, a layer without positions": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}, 3),
    "EXAONE 4, norms after, windows, a layer without positions": (
        "Exaone4Config",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}, 3,
    ),
    "OLMo 2, norms over all heads": ("Olmo2Config", {}, 3),
    "OLMo 3, and windows": (
        "Olmo3Config",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}, 3,
    ),
    "ERNIE 4.5, pairs side by side": ("Ernie4_5Config", {"head_dim": 16}, 3),
    "GLM-4, the same in a part of each head, four norms": (
        "Glm4Config", {"head_dim": 16, "attention_bias": True}, 3,
    ),
    "Hunyuan, norms after the rotation": ("HunYuanDenseV1Config", {"head_dim": 16}, 3),
    "Cohere 2, attention beside the MLP": (
        "Cohere2Config",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}, 3,
    ),
    "LFM2, convolutions": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv"], "conv_bias": True}, 3),
    "Phi, part of each head is turned, an MLP without gate": ("PhiConfig", {}, 3),
    "Apertus, an activation of its own": ("ApertusConfig", {}, 3),
    "Phi 3, fused projections": ("Phi3Config", {"sliding_window": WINDOW}, 3),
    "Phi 4 mini, the same and part of each head is turned": (
        "Phi3Config",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}, 3,
    ),
    "Qwen3 with experts": (
        "Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}, 0,
    ),
    "GPT-NeoX": ("GPTNeoXConfig", {}, 0),
}  # fmt: skip
PADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-Next, a recurrence": (
        "Qwen3NextConfig",
        {"head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
         "linear_value_head_dim": 16, "num_experts": 0},
    ),
    "StableLM, an attention of its own": ("StableLmConfig", {}),
}  # fmt: skip


def adapted(name: str, settings: dict[str, Any], lora: dict[str, Any] | None = None, *, wild: float = 1.0) -> Any:
    """A random model under a random adapter; the same arguments give the same weights, the less `wild` the tamer.

    Without any wildness the base is as its class makes it.
    """
    torch.manual_seed(0)
    given = SIZES | settings
    if not wild:
        del given["initializer_range"]
    config = getattr(transformers, name)(**given)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            parameter.data.add_(torch.randn_like(parameter) * 2 * wild)  # large, as Gemma's are
        if parameter_name.endswith("bias") and wild:
            parameter.data.normal_(std=0.3 * wild)
    shape = {"rank": 4, "alpha": 8} | (lora or {})
    model = get_peft_model(model, lora_targets.lora_config(FinetuneConfig.model_validate({"lora": shape}), model))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def some_rows() -> list[Any]:
    """Records of different lengths that open with the same tokens; one answer token weighs less."""
    choose = torch.Generator().manual_seed(3)
    head = torch.randint(3, 300, (5,), generator=choose).tolist()
    rows = []
    for length in (20, 24, 31):
        ids = head + torch.randint(3, 300, (length - 5,), generator=choose).tolist()
        weights = [0.0] * (length - 4) + [1.0, 1.0, 0.5, 1.0]
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length - 4) + ids[-4:], "weights": weights})
    return rows


def plain_loss(model: Any, rows: list[Any]) -> Any:
    """Each record alone, all its logits, by transformers and PEFT."""
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1].float()
        wanted, weights = torch.tensor(row["labels"])[1:], torch.tensor(row["weights"])[1:]
        losses = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="none")
        total = total + (losses * weights).sum()
    return total


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


NEAR = 5e-4  # 3.2e-4 were seen


@pytest.fixture(params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled kernels, or torch's operations as where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(fused_kernels, "load", lambda: None)
    elif fused_kernels.load() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


def compare(plain: Any, fast: Any, loss: Any, near: float = NEAR) -> None:
    """Both models' losses and gradients are equal; `loss` gives that of the fast one."""
    wanted = plain_loss(plain, some_rows())
    got = loss(fast)
    torch.testing.assert_close(got, wanted, rtol=near, atol=0)
    assert_same_gradients(gradients(plain, wanted), gradients(fast, got), near)


def assert_same_gradients(wanted: dict[str, Any], got: dict[str, Any], near: float) -> None:
    """Each is near enough by itself: those of queries and keys are small beside the others."""
    assert got.keys() == wanted.keys()
    off = {name: float((got[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted}
    assert max(off.values()) < near, {name: error for name, error in off.items() if error >= near}


def packed_loss(model: Any) -> Any:
    batch = BatchPacker()(some_rows())
    assert batch["layout"] == (5, 3)
    return model(**batch).loss


@pytest.mark.parametrize("wild", [0.0, 1.0])
@pytest.mark.parametrize("name", FAST)
def test_every_architecture_gives_its_own_loss_and_gradients(name: str, wild: float, kernels: str) -> None:
    kind, settings, fast_layers = FAST[name]
    plain, fast = adapted(kind, settings, wild=wild), adapted(kind, settings, wild=wild)
    assert packing_check.supports_packing(fast)
    assert layer_replacement.install_kernels(fast) == {"layers": 3, "fast_layers": fast_layers}
    # of a wild Gemma 4 transformers' own gradients are 2.4e-3 from those in float64, those of the kernels 1e-3
    loose = kernels == "compiled" and wild and name.startswith("Gemma 4")
    compare(plain, fast, packed_loss, near=3e-3 if loose else NEAR)


def in_bfloat16(kind: str, settings: dict[str, Any]) -> Any:
    """A model with its frozen weights as `finetune` loads them where products are in bfloat16.

    It is as its class makes it: a wild one makes so much of every rounding that nothing could be compared.
    """
    model = adapted(kind, settings, wild=0)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


@pytest.mark.parametrize("name", FAST)
def test_every_architecture_trains_with_weights_in_bfloat16(name: str, kernels: str) -> None:
    # layer norms once stayed in bfloat16, which torch refuses to multiply with the float32 around them
    kind, settings, fast_layers = FAST[name]
    plain, fast = in_bfloat16(kind, settings).float(), in_bfloat16(kind, settings)
    assert packing_check.supports_packing(fast)
    assert layer_replacement.install_kernels(fast) == {"layers": 3, "fast_layers": fast_layers}
    # Gemma 4 does not scale its scores down: over eight draws of the weights both are 0.15 to 0.94 off
    loose = 0.4 if kernels == "compiled" else 0.3
    compare(plain, fast, packed_loss, near=loose if "Gemma4" in kind else 0.1)


@pytest.mark.parametrize("name", PADDED)
def test_a_model_that_would_mix_packed_records_is_found_and_padded(name: str) -> None:
    kind, settings = PADDED[name]
    plain, other = adapted(kind, settings), adapted(kind, settings)
    before = other.config._attn_implementation
    assert not packing_check.supports_packing(other)
    assert other.config._attn_implementation == before
    (batch,) = PaddedBatches(0)(some_rows())
    answer_loss.install(other)
    compare(plain, other, lambda model: model(**batch).loss, near=1e-3)


@pytest.mark.parametrize(
    ("lora", "fast_layers"),
    [
        ({"rslora": True}, 3),
        ({"target_modules": ["q_proj", "down_proj"]}, 3),
        ({"target_modules": ["v_proj"]}, 3),
        ({"dora": True}, 0),
        ({"dora": True, "target_modules": ["o_proj"]}, 0),
    ],
)
def test_every_shape_of_adapter_gives_the_plain_gradients(lora: dict[str, Any], fast_layers: int) -> None:
    plain, fast = adapted("LlamaConfig", {}, lora), adapted("LlamaConfig", {}, lora)
    assert packing_check.supports_packing(fast)
    assert layer_replacement.install_kernels(fast) == {"layers": 3, "fast_layers": fast_layers}
    compare(plain, fast, packed_loss)


def test_dropout_is_before_the_update_and_its_gradient_goes_the_same_way() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(12, 7, bias=False)
    shape = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.4, target_modules=["0"])
    member = get_peft_model(torch.nn.Sequential(layer), shape).base_model.model[0]
    a, b = member.lora_A["default"].weight, member.lora_B["default"].weight
    torch.nn.init.normal_(b)
    stack = cpu_kernels.StackedLinear([member])
    x = torch.randn(5, 12, requires_grad=True)
    got = stack(x)
    mask = got.grad_fn.drop(torch.ones(cpu_kernels.ROW_MULTIPLE, 12))[:5]
    assert sorted(set(mask.flatten().tolist())) == pytest.approx([0, 1 / 0.6])
    wanted = x @ layer.weight.T + (x * mask) @ a.T @ b.T * 2
    torch.testing.assert_close(got, wanted)
    weights = torch.randn_like(got)
    for mine, own in zip(
        torch.autograd.grad((got * weights).sum(), (x, a, b)),
        torch.autograd.grad((wanted * weights).sum(), (x, a, b)), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, own)
    stack.dropout.eval()
    torch.testing.assert_close(stack(x), x @ layer.weight.T + x @ a.T @ b.T * 2)


def test_dropout_does_not_keep_a_layer_slow_and_is_not_lost() -> None:
    settings = {"attention_dropout": 0.4}
    plain, fast = (adapted("LlamaConfig", settings, {"dropout": 0.3}) for _ in range(2))
    fast.train()
    assert packing_check.supports_packing(fast)
    assert layer_replacement.install_kernels(fast) == {"layers": 3, "fast_layers": 3}
    assert fast.training
    for module in fast.modules():
        if type(module) is torch.nn.Dropout:
            module.p = 0.0  # the adapter's, so that what differs is the attention's
    assert packed_loss(fast) != packed_loss(fast)
    compare(plain.eval(), fast.eval(), packed_loss)


def test_a_part_of_another_form_does_not_cost_the_others() -> None:
    kind, settings, fast_layers = FAST["Qwen3 with experts"]
    model = adapted(kind, settings)
    assert layer_replacement.install_kernels(model)["fast_layers"] == fast_layers == 0
    layer = model.base_model.model.model.layers[0]
    replaced = {name for name, part in layer.named_children() if "forward" in vars(part)}
    assert replaced == {"self_attn", "input_layernorm", "post_attention_layernorm"}


def test_a_convolution_sees_the_end_of_the_prefix_and_no_other_record() -> None:
    kind, settings, _ = FAST["LFM2, convolutions"]
    model = adapted(kind, settings).base_model.model
    short_convolution.teach_layout(model)
    convolution = model.model.layers[0].conv
    x = torch.randn(1, 1 + 2 * 4, 64)  # the prefix is shorter than what a token sees
    packed = convolution(x, layout=(1, 2))
    for rest in (slice(1, 5), slice(5, 9)):
        alone = convolution(torch.cat([x[:, :1], x[:, rest]], dim=1))
        torch.testing.assert_close(packed[:, rest], alone[:, 1:])
    torch.testing.assert_close(packed[:, :1], convolution(x[:, :1]))


class LogitRows(TorchDispatchMode):
    """Counts how many rows of logits the largest tensor over the vocabulary holds, in any operation."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.rows = max(self.rows, tensor.numel() // self.vocabulary if tensor.numel() else 0)
        return result


def rows_of_logits(loss_of: Any) -> int:
    """The largest tensor that forward and backward make, in rows over a vocabulary of 5,000 tokens."""
    with LogitRows(5000) as seen:
        loss_of().backward()
    return seen.rows


def test_the_head_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    # 64 answer tokens through a head of (5000, 32): all logits are twice as large as the head itself
    torch.manual_seed(0)
    head, hidden = torch.randn(5000, 32), torch.randn(64, 32, requires_grad=True)
    targets, weights = torch.randint(0, 5000, (64,)), torch.ones(64)

    def blockwise() -> Any:
        return answer_loss.BlockwiseCrossEntropy.apply(hidden, head, targets, weights).sum()

    def whole() -> Any:
        return torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="sum")

    monkeypatch.setattr(answer_loss, "VOCABULARY_BLOCK", 512)
    torch.testing.assert_close(blockwise(), whole())
    assert rows_of_logits(blockwise) < 64
    assert rows_of_logits(whole) >= 64  # the count sees logits where they are held
    monkeypatch.setattr(answer_loss, "VOCABULARY_BLOCK", 5000)
    assert rows_of_logits(blockwise) >= 64


def test_training_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"vocab_size": 5000, "hidden_size": 16, "head_dim": 16}
    batch = BatchPacker()(some_rows() * 6)
    answers = len(batch["labels"])
    monkeypatch.setattr(answer_loss, "VOCABULARY_BLOCK", 512)
    fast, planted = adapted("LlamaConfig", settings), adapted("LlamaConfig", settings)
    layer_replacement.install_kernels(fast)
    assert rows_of_logits(lambda: fast(**batch).loss) < answers
    monkeypatch.setattr(answer_loss, "is_plain_head", lambda core, trunk: False)  # the model's own full logits
    layer_replacement.install_kernels(planted)
    assert rows_of_logits(lambda: planted(**batch).loss) >= answers


def test_the_blocks_of_the_head_give_the_plain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_loss, "VOCABULARY_BLOCK", 64)  # 300 words in five blocks, the last one short
    plain, fast = adapted("LlamaConfig", {}), adapted("LlamaConfig", {})
    layer_replacement.install_kernels(fast)
    compare(plain, fast, packed_loss)


@pytest.mark.parametrize("name", ["Llama", "Gemma 2, capped scores and logits"])
def test_smoothed_targets_give_torchs_loss_and_only_in_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_loss, "VOCABULARY_BLOCK", 64)
    kind, settings, _ = FAST[name]
    plain, fast = adapted(kind, settings), adapted(kind, settings)
    layer_replacement.install_kernels(fast, 0.2)
    fast.eval()
    torch.testing.assert_close(packed_loss(fast), plain_loss(plain, some_rows()), rtol=1e-4, atol=0)
    fast.train()  # no dropout in either
    (batch,) = PaddedBatches(0)(some_rows())
    wanted, got = answer_loss.padded_loss(plain, batch, 0.2), packed_loss(fast)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=0)
    assert_same_gradients(gradients(plain, wanted), gradients(fast, got), 1e-3)


def test_a_loss_that_is_far_off_stays_finite() -> None:
    head = torch.randn(50, 8) * 100
    hidden = (torch.randn(4, 8) * 100).requires_grad_()
    targets, weights = torch.tensor([0, 17, 18, 49]), torch.tensor([1.0, 0.5, 0.0, 2.0])
    got = answer_loss.BlockwiseCrossEntropy.apply(hidden, head, targets, weights).sum()
    wanted = (torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in (got, wanted)), atol=1e-3, rtol=1e-4)
