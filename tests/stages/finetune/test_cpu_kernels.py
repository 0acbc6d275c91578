"""The fast layers give the loss and the gradients that transformers and
PEFT give, whatever the architecture.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from support.scale import sampled  # noqa: E402
from support.training import adapted, compare, in_bfloat16, packed_loss, some_rows  # noqa: E402

from slmctl.stages.finetune import (  # noqa: E402
    answer_loss,
    cpu_kernels,
    fused_kernels,
    layer_replacement,
    packing_check,
    short_convolution,
)
from slmctl.stages.finetune.batches import PaddedBatches  # noqa: E402
from slmctl.stages.finetune.packing import pack  # noqa: E402

# PEFT looks for the experts of every mixture by names that tiny ones do not have
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:peft")

WINDOW = 9  # shorter than every record below
# The class of the config, what it is given, and how many of the three layers are fast.
FAST: dict[str, tuple[str, dict[str, Any], int]] = {
    "Llama": ("LlamaConfig", {}, 3),
    "Mistral, a window told by its config only": (
        "MistralConfig",
        {"sliding_window": WINDOW, "head_dim": 16},
        3,
    ),
    "Qwen2, biases": ("Qwen2Config", {}, 3),
    "Qwen2, a window from the second layer on": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        3,
    ),
    "Qwen3, normed queries and keys": ("Qwen3Config", {"head_dim": 32}, 3),
    "Gemma, norms of 1 + w": ("GemmaConfig", {"head_dim": 32}, 3),
    "Gemma 2, capped scores and logits": (
        "Gemma2Config",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        3,
    ),
    "Gemma 3, windows and normed queries and keys": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        3,
    ),
    "Gemma 4, heads of two sizes, inputs to every layer, keys and values of an earlier one": (
        "Gemma4TextConfig",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": WINDOW,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 300,
            "num_kv_shared_layers": 1,
            "use_double_wide_mlp": True,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        },
        3,
    ),
    "Gemma 4, keys that are the values": (
        "Gemma4TextConfig",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "sliding_window": WINDOW,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        3,
    ),
    "Granite, scaled everywhere": (
        "GraniteConfig",
        {
            "logits_scaling": 4.0,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.3,
        },
        3,
    ),
    "Granite 4, a hybrid's class with attention alone": (
        "GraniteMoeHybridConfig",
        {
            "logits_scaling": 4.0,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.3,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "position_embedding_type": "rope",
            "layer_types": ["attention"] * 3,
        },
        3,
    ),
    "SmolLM3, a layer without positions": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}, 3),
    "EXAONE 4, norms after, windows, a layer without positions": (
        "Exaone4Config",
        {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        3,
    ),
    "OLMo 2, norms over all heads": ("Olmo2Config", {}, 3),
    "OLMo 3, and windows": (
        "Olmo3Config",
        {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        3,
    ),
    "ERNIE 4.5, pairs side by side": ("Ernie4_5Config", {"head_dim": 16}, 3),
    "GLM-4, the same in a part of each head, four norms": (
        "Glm4Config",
        {"head_dim": 16, "attention_bias": True},
        3,
    ),
    "Hunyuan, norms after the rotation": ("HunYuanDenseV1Config", {"head_dim": 16}, 3),
    "Cohere 2, attention beside the MLP": (
        "Cohere2Config",
        {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        3,
    ),
    "LFM2, convolutions": (
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention", "conv"], "conv_bias": True},
        3,
    ),
    "Phi, part of each head is turned, an MLP without gate": ("PhiConfig", {}, 3),
    "Apertus, an activation of its own": ("ApertusConfig", {}, 3),
    "Phi 3, fused projections": ("Phi3Config", {"sliding_window": WINDOW}, 3),
    "Phi 4 mini, the same and part of each head is turned": (
        "Phi3Config",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
            }
        },
        3,
    ),
    "Qwen3 with experts": (
        "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
        0,
    ),
    "GPT-NeoX": ("GPTNeoXConfig", {}, 0),
}
PADDED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-Next, a recurrence": (
        "Qwen3NextConfig",
        {
            "head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 0,
        },
    ),
    "StableLM, an attention of its own": ("StableLmConfig", {}),
}


@pytest.fixture(params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled kernels, or torch's operations as where there is no compiler."""
    if request.param == "torch":
        monkeypatch.setattr(fused_kernels, "load", lambda: None)
    elif fused_kernels.load() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # 300 words in five blocks, the last one short
    monkeypatch.setattr(answer_loss, "VOCABULARY_BLOCK", 64)


def fast(make: Callable[[], Any], fast_layers: int = 3) -> tuple[Any, Any]:
    """A model as transformers and PEFT compute it, and the same with the kernels."""
    plain, replaced = make(), make()
    assert packing_check.supports_packing(replaced)
    assert layer_replacement.install_kernels(replaced) == {"layers": 3, "fast_layers": fast_layers}
    return plain, replaced


COMPILED = {(name, "compiled") for name in FAST}


@pytest.mark.parametrize(
    ("name", "kernels"),
    sampled(
        itertools.product(FAST, ("compiled", "torch")),
        {*COMPILED, *((name, "torch") for name in [*FAST][::4])},
    ),
    indirect=["kernels"],
)
def test_every_architecture_gives_its_own_loss_and_gradients(name: str, kernels: str) -> None:
    kind, settings, fast_layers = FAST[name]
    # of a wild Gemma 4 transformers' own gradients are 2.4e-3 from those in float64, those of the
    # kernels 1e-3
    loose = kernels == "compiled" and name.startswith("Gemma 4")
    compare(*fast(lambda: adapted(kind, settings), fast_layers), near=3e-3 if loose else 5e-4)


# of those whose norms, activations or projections are of one form, one
FORMS = {
    "Llama",
    "Qwen3",
    "Gemma",
    "Gemma 2",
    "Gemma 4",
    "OLMo 2",
    "Cohere 2",
    "LFM2",
    "Phi",
    "Apertus",
    "Phi 3",
    "Qwen3 with experts",
    "GPT-NeoX",
}


@pytest.mark.parametrize(
    "name", sampled(FAST, [name for name in FAST if name.partition(",")[0] in FORMS])
)
def test_every_architecture_trains_with_weights_in_bfloat16(name: str) -> None:
    # layer norms once stayed in bfloat16, which torch refuses to multiply with the float32 around
    # them
    kind, settings, fast_layers = FAST[name]
    # as its class makes it: a wild one makes so much of every rounding that nothing could be
    # compared
    plain, replaced = fast(lambda: in_bfloat16(adapted(kind, settings, wild=0)), fast_layers)
    # Gemma 4 does not scale its scores down: over eight draws of the weights both are 0.15 to 0.94
    # off
    compare(plain.float(), replaced, near=0.4 if "Gemma4" in kind else 0.1)


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


# `merge` unties them
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("name", "lora", "fast_layers", "half"),
    [
        ("Llama", {"target_modules": ["q_proj", "down_proj"]}, 3, False),
        ("Llama", {"target_modules": ["v_proj"]}, 3, False),
        ("Llama", {"dora": True}, 0, False),
        ("Llama", {"dora": True, "target_modules": ["o_proj"]}, 0, False),
        # the head's frozen weight alone was multiplied, and its update stayed at zero
        ("Llama", {"target_modules": ["lm_head", "q_proj"]}, 3, True),
        ("Granite, scaled everywhere", {"target_modules": ["lm_head", "q_proj"]}, 3, False),
        (
            "Gemma 3, windows and normed queries and keys",
            {"target_modules": ["lm_head", "embed_tokens"]},
            3,
            False,
        ),
    ],
)
def test_every_shape_of_adapter_gives_the_plain_gradients(
    name: str, lora: dict[str, Any], fast_layers: int, half: bool
) -> None:
    kind, settings, _ = FAST[name]
    if half:
        plain, replaced = fast(
            lambda: in_bfloat16(adapted(kind, settings, lora, wild=0)), fast_layers
        )
        compare(plain.float(), replaced, near=0.1)
    else:
        compare(*fast(lambda: adapted(kind, settings, lora), fast_layers))


def test_records_that_share_nothing_are_packed_too() -> None:
    rows = some_rows()
    for k, row in enumerate(rows):
        row["input_ids"][0] = 10 + k
    batch = pack(rows)
    assert batch["layout"] == (0, 3)
    compare(*fast(lambda: adapted("LlamaConfig", {})), lambda model: model(**batch).loss, rows=rows)


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
        torch.autograd.grad((wanted * weights).sum(), (x, a, b)),
        strict=True,
    ):
        torch.testing.assert_close(mine, own)
    stack.dropout.eval()
    torch.testing.assert_close(stack(x), x @ layer.weight.T + x @ a.T @ b.T * 2)


def test_dropout_does_not_keep_a_layer_slow_and_is_not_lost() -> None:
    plain, replaced = fast(
        lambda: adapted("LlamaConfig", {"attention_dropout": 0.4}, {"dropout": 0.3}).train()
    )
    assert replaced.training
    for module in replaced.modules():
        if type(module) is torch.nn.Dropout:
            module.p = 0.0  # the adapter's, so that what differs is the attention's
    assert packed_loss(replaced) != packed_loss(replaced)
    compare(plain.eval(), replaced.eval())


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
