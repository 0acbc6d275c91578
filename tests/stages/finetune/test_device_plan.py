"""How a training uses its device: planned from what a GPU says of
itself, here one that is made up.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any

import pytest

from slmctl.config import FinetuneConfig
from slmctl.errors import StageError

torch = pytest.importorskip("torch")

from transformers import LlamaConfig  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from slmctl.model_files import model_size  # noqa: E402
from slmctl.stages.finetune import checkpoint, device_plan, finetune  # noqa: E402
from slmctl.stages.finetune.device_plan import Gpu  # noqa: E402
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord  # noqa: E402
from slmctl.stages.finetune.trainer import AnswerTrainer  # noqa: E402

H100 = Gpu(bf16=True, free=79_000_000_000, visible=1)
T4 = Gpu(bf16=False, free=15_000_000_000, visible=1)


def rows(count: int, length: int, answer: int = 8) -> list[EncodedRecord]:
    """Records that share nothing."""
    return [
        EncodedRecord(
            input_ids=[k * length + at for at in range(length)],
            labels=[IGNORED] * (length - answer) + [1] * answer,
            weights=[0.0] * (length - answer) + [1.0] * answer,
        )
        for k in range(count)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a 1B Llama, without weights."""
    folder = tmp_path_factory.mktemp("plan") / "base"
    LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return folder


def planned(
    base: Path, gpu: Gpu, records: list[EncodedRecord], **given: Any
) -> device_plan.DevicePlan:
    return device_plan.for_gpu(
        FinetuneConfig.model_validate({"batch_size": 16} | given), gpu, base, records
    )


def test_short_records_on_a_large_gpu_are_computed_at_once_and_once(base: Path) -> None:
    plan = planned(base, H100, rows(64, 45))
    assert (plan.dtype, plan.mixed, plan.piece_tokens, plan.checkpointing) == (
        torch.bfloat16,
        "bf16",
        16384,
        False,
    )
    assert plan.check_every > 1
    assert plan.memory_bytes is not None
    assert 2.5e9 < plan.memory_bytes < 8e9


def test_a_gpu_that_emulates_bfloat16_takes_float16(base: Path) -> None:
    plan = planned(base, T4, rows(64, 45))
    assert (plan.dtype, plan.mixed) == (torch.float16, "fp16")
    assert plan.arguments()["fp16"]
    assert not plan.arguments()["bf16"]


def test_pieces_shrink_before_activations_are_computed_twice(base: Path) -> None:
    whole = planned(base, H100, rows(64, 1000), batch_size=64)
    less = planned(
        base, dataclasses.replace(H100, free=20_000_000_000), rows(64, 1000), batch_size=64
    )
    least = planned(
        base, dataclasses.replace(H100, free=7_000_000_000), rows(64, 1000), batch_size=64
    )
    assert (whole.piece_tokens, whole.checkpointing) == (16384, False)
    assert 2048 <= less.piece_tokens < 16384
    assert not less.checkpointing
    assert least.checkpointing
    assert least.memory_bytes is not None
    assert least.memory_bytes < 7_000_000_000


def test_what_cannot_fit_is_refused_and_four_bits_need_less(base: Path) -> None:
    small = dataclasses.replace(H100, free=3_000_000_000)
    with pytest.raises(
        StageError, match=r"needs about [4-9]\.\d+ GB of GPU memory, and 2\.76 GB are free"
    ) as caught:
        planned(base, small, rows(64, 1000))
    assert caught.value.code == 6
    assert "load_in_4bit" in caught.value.hint
    whole, quarter = (
        device_plan.gpu_bytes(
            model_size.read(base),
            FinetuneConfig(load_in_4bit=four, batch_size=16),
            0,
            checkpointing=False,
        )
        for four in (False, True)
    )
    # 2 - 0.57 bytes of the layers' weights
    assert whole - quarter == pytest.approx(1.43 * 973e6, rel=0.01)


def test_the_optimizer_and_the_type_are_given_by_name(base: Path) -> None:
    known = {field.name for field in dataclasses.fields(SFTConfig)}
    for plan in (
        device_plan.on_cpu(FinetuneConfig(batch_size=16)),
        planned(base, H100, rows(4, 45)),
    ):
        assert set(plan.arguments()) <= known
        assert plan.arguments()["optim"] == "adamw_torch_fused"
    shared = device_plan.DevicePlan(gpu=dataclasses.replace(H100, shared=2))
    assert shared.arguments()["ddp_backend"] == "gloo"  # NCCL refuses two processes on one GPU


@pytest.mark.parametrize(
    ("local", "visible", "shared", "idle"), [(1, 1, 1, 0), (1, 4, 1, 3), (2, 1, 2, 0), (4, 4, 1, 0)]
)
def test_a_process_takes_one_gpu(
    monkeypatch: pytest.MonkeyPatch, local: int, visible: int, shared: int, idle: int
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.setenv("LOCAL_RANK", str(local - 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8_000 + device, 16_000))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or False
    )
    gpu = device_plan.gpu_here()
    assert gpu == Gpu(
        bf16=False, free=(8_000 + (local - 1) % visible) // shared, visible=visible, shared=shared
    )
    assert asked == [{"including_emulation": False}]
    assert device_plan.DevicePlan(gpu=gpu).idle_gpus == idle


def test_several_gpus_of_one_process_do_not_share_a_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    # as `make_trainer` sets it; transformers wraps a model in DataParallel above 1
    arguments._n_gpu = 1
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 8)
    made = []
    monkeypatch.setattr(finetune, "_sft_config", lambda *args: types.SimpleNamespace(_n_gpu=4))
    monkeypatch.setattr(
        finetune, "AnswerTrainer", lambda **given: made.append(given["args"]._n_gpu)
    )
    finetune.make_trainer(
        FinetuneConfig(batch_size=16),
        types.SimpleNamespace(config=LlamaConfig()),
        types.SimpleNamespace(pad_token_id=0),
        rows(2, 20),
        rows(2, 20),
        tmp_path,
        plan=device_plan.DevicePlan(gpu=dataclasses.replace(H100, visible=4)),
    )
    assert made == [1]


@pytest.mark.parametrize("kept", [None, Path("step-00000012")])
def test_a_full_gpu_is_said_with_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Any
) -> None:
    monkeypatch.setattr(checkpoint, "newest", lambda folder: kept)
    with (
        pytest.raises(StageError, match="ran out of GPU memory") as caught,
        device_plan.out_of_memory(tmp_path),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert caught.value.code == 6
    assert ("goes on from step-00000012" in caught.value.message) == (kept is not None)
    assert "max_length" in caught.value.hint


@pytest.mark.parametrize(("fused", "where"), [(True, "meta"), (False, "cpu")])
def test_the_count_of_steps_is_restored_where_the_optimizer_wants_it(
    tmp_path: Path, fused: bool, where: str
) -> None:
    from safetensors.torch import save_file

    p = torch.nn.Parameter(torch.empty(2, device="meta"))
    state = {
        "w/step": torch.tensor(3.0),
        "w/exp_avg": torch.ones(2),
        "random/0/cpu": torch.get_rng_state(),
    }
    save_file(state, tmp_path / "optimizer.safetensors")
    progress = {"schedule": {"last_epoch": 3, "rates": [0.5]}}
    (tmp_path / "progress.json").write_text(json.dumps(progress))
    optimizer = types.SimpleNamespace(state={}, param_groups=[{"fused": fused, "lr": 1.0}])
    trainer = types.SimpleNamespace(
        optimizer=optimizer, lr_scheduler=types.SimpleNamespace(), trained=lambda: {"w": p}
    )
    checkpoint.load_optimizer(trainer, tmp_path)
    assert optimizer.state[p]["step"].device.type == where
    assert optimizer.state[p]["exp_avg"].device.type == "meta"
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (1.0, False), (0.5, True)])
def test_float16_skips_a_step_with_an_infinite_gradient_until_the_scale_is_used_up(
    monkeypatch: pytest.MonkeyPatch, scale: float, stops: bool
) -> None:
    monkeypatch.setattr(SFTTrainer, "_clip_grad_norm", lambda self, model: torch.tensor(math.inf))
    sft = AnswerTrainer.__new__(AnswerTrainer)
    sft.accelerator = types.SimpleNamespace(scaler=types.SimpleNamespace(get_scale=lambda: scale))
    sft.state = types.SimpleNamespace(global_step=4)
    sft.checkpoints, sft.check_every, sft.unchecked = None, 1, []
    if stops:
        with pytest.raises(StageError, match="the gradient is inf at step 5"):
            sft._clip_grad_norm(None)
        return
    assert float(sft._clip_grad_norm(None)) == 0  # JSON knows no infinity
