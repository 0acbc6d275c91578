"""The plan of a training on a CPU or a GPU, made before the model is
loaded: dtypes, tokens at once, memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig

from slmctl import hardware
from slmctl.config import FinetuneConfig
from slmctl.console import size
from slmctl.errors import StageError
from slmctl.model_files import memory, model_shape, model_size
from slmctl.model_files.model_size import ModelSize
from slmctl.stages.finetune import batches, checkpoint, distributed
from slmctl.stages.finetune.answer_loss import VOCABULARY_BLOCK
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord

CHECK_EVERY_STEPS = 10  # between two checks of the losses on a GPU: at each the host waits for it
# tokens computed at once on a GPU, the first that fit its memory
GPU_PIECES = (16384, 8192, 4096, 2048, 1024)
# tokens; larger pieces with activation checkpointing are faster than smaller ones
LEAST_WITHOUT_CHECKPOINTS = 2048
GPU_SHARE = 0.92  # of the free memory: the rest is for fragmentation and libraries
GPU_FIXED_BYTES = 1.2e9  # the driver's context and the libraries' workspaces
LINEAR_BYTES_4BIT = 0.57  # bytes a weight in 4 bits, with its share of the scales
# Bytes that autograd saves for a token, for each input and output of a linear layer: 2 for its
# value in 16 bits, and 2 for the norms, rotations and activations around the layer. PEFT's DoRA
# doubles that.
SAVED_BYTES, DORA_FACTOR = 4, 2
SHARED_BACKEND = "gloo"  # between processes on one GPU, which NCCL refuses
HINT = (
    "a smaller base, --set finetune.load_in_4bit=true, or finetune.max_length=N with "
    "finetune.too_long=truncate"
)

CPU_FIXED_BYTES = 150e6  # optimizer code, thread pools, tokenized records
CPU_HINT = (
    "a smaller base, --set finetune.max_length=N with finetune.too_long=truncate, or a "
    "machine with more"
)


@dataclass(frozen=True)
class Gpu:
    """The GPU of this process.

    Attributes:
        bf16: It computes in bfloat16 itself; emulated, that is slower than float16.
        free: Free bytes, divided by the processes that share the GPU.
        visible: GPUs that this process could use.
        shared: Processes of this machine per GPU, rounded up.
    """

    bf16: bool
    free: int
    visible: int
    shared: int = 1


@dataclass(frozen=True)
class DevicePlan:
    """The plan of a training on its device.

    Attributes:
        dtype: Type of the frozen weights.
        mixed: Type of mixed precision as transformers names it, `bf16` or `fp16`; empty for none.
        piece_tokens: Tokens to compute at once.
        memory_bytes: Estimated peak of the GPU's memory, or on a CPU of the process.
        checkpointing: Save only each layer's input, and compute activations again in the backward
            pass.
        check_every: Steps between two checks that losses and gradients are finite.
        gpu: None on a CPU.
    """

    dtype: torch.dtype = torch.float32
    mixed: str = ""
    piece_tokens: int = model_shape.PIECE_TOKENS
    memory_bytes: int | None = None
    checkpointing: bool = False
    check_every: int = 1
    gpu: Gpu | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `TrainingArguments`."""
        shared = self.gpu is not None and self.gpu.shared > 1
        return {
            "use_cpu": self.gpu is None,
            "bf16": self.mixed == "bf16",  # on a CPU, bf16 everywhere is slower than fp32
            "fp16": self.mixed == "fp16",
            "optim": "adamw_torch_fused",  # by name: unsloth's default has moments of 8 bits
            "gradient_checkpointing": self.checkpointing,
            "ddp_backend": SHARED_BACKEND if shared else None,
        }

    @property
    def idle_gpus(self) -> int:
        """Number of GPUs that no process of this training uses."""
        return max(self.gpu.visible - distributed.processes_here(), 0) if self.gpu else 0

    def peak_bytes(self) -> int:
        """Peak of the memory that the process has taken on its GPU."""
        return torch.cuda.max_memory_reserved()


@contextlib.contextmanager
def out_of_memory(checkpoints: Path) -> Iterator[None]:
    """Turn torch's OutOfMemoryError into a StageError that names the checkpoint to resume from."""
    try:
        yield
    except torch.OutOfMemoryError:
        kept = checkpoint.newest(checkpoints)
        after = f"; the same command goes on from {kept.name}" if kept else ""
        raise StageError(
            f"training ran out of GPU memory{after}", hint=f"nvidia-smi shows who holds it; {HINT}"
        ) from None


def gpu_here() -> Gpu | None:
    """The GPU that torch sees; None without one."""
    if not torch.cuda.is_available():
        return None
    visible = torch.cuda.device_count()
    shared = -(-distributed.processes_here() // visible)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    free, _ = torch.cuda.mem_get_info(rank % visible)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Gpu(bf16, free // shared, visible, shared)


def on_cpu(config: FinetuneConfig) -> DevicePlan:
    """The plan of a training on a CPU, without an estimate of its memory."""
    return DevicePlan(torch.bfloat16 if config.matmul_dtype == "bfloat16" else torch.float32)


def for_cpu(config: FinetuneConfig, folder: Path, records: Sequence[EncodedRecord]) -> DevicePlan:
    """The plan of a training on a CPU: smaller pieces where memory is short.

    Raises:
        StageError: The processes of this machine do not fit into its memory together.
    """
    here = distributed.processes_here()
    model = model_size.read(folder)
    memory.trim_heap()  # memory that an earlier stage has freed would count as held
    together = records_a_process(config)
    needs = {}
    for piece in (model_shape.PIECE_TOKENS, *batches.SMALLER_PIECES):
        largest = batches.largest_piece(records, together, piece)
        needs[piece] = cpu_bytes(model, config, largest.tokens, largest.keys)
    # memory that a faster process has loaded by now would count as taken
    if distributed.world_size() > 1:
        PartialState(cpu=True).wait_for_everyone()
    fitting = (piece for piece, needed in needs.items() if memory.fits(needed, here))
    piece = next(fitting, min(needs))
    hint = CPU_HINT if config.load_in_4bit else f"--set finetune.load_in_4bit=true, {CPU_HINT}"
    memory.require(needs[piece], "training", hint=hint, processes=here)
    return dataclasses.replace(on_cpu(config), memory_bytes=needs[piece], piece_tokens=piece)


def cpu_bytes(model: ModelSize, config: FinetuneConfig, tokens: int, keys: int = 0) -> int:
    """Estimated peak of this process in bytes: memory held now, weights, activations saved for
    backward, adapter.

    Args:
        tokens: Tokens of the largest batch computed at once, see `batches.largest_piece`.
        keys: Tokens attended to in that batch, if more than `tokens`.
    """
    width = 2 if config.matmul_dtype == "bfloat16" else 4  # bytes of an element in a product
    activations = model.activation_bytes(width, tokens)
    # keys and values of the prefix, before each record
    activations += 4 * max(keys - tokens, 0) * model.cache
    if config.lora.dora:
        activations *= 4  # PEFT's own layers keep more
    frozen = model.frozen_bytes(width, in_4bit=config.load_in_4bit)
    weights = frozen + model.adapter_bytes(config.lora.rank)
    return int(hardware.held_bytes() + CPU_FIXED_BYTES + weights + activations)


def records_a_process(config: FinetuneConfig) -> int:
    """Records that a process computes for a step."""
    return max(int(config.batch_size) // distributed.world_size(), 1)


def for_gpu(
    config: FinetuneConfig, gpu: Gpu, folder: Path, records: Sequence[EncodedRecord]
) -> DevicePlan:
    """The plan of a training on a GPU: large pieces, and activations computed twice only where
    memory is short.

    Raises:
        StageError: It does not fit, even with the smallest pieces.
    """
    if gpu.shared > 1:  # memory that a faster process has loaded by now would count as taken
        PartialState(backend=SHARED_BACKEND).wait_for_everyone()
    together = records_a_process(config)
    model = model_size.read(folder)
    logits = _logit_bytes(folder, records, together)
    ways = [(piece, False) for piece in GPU_PIECES if piece >= LEAST_WITHOUT_CHECKPOINTS]
    ways += [(piece, True) for piece in GPU_PIECES]
    have = GPU_SHARE * gpu.free
    needed = 0
    for piece, checkpointing in ways:
        tokens = batches.largest_piece(records, together, piece).tokens
        needed = int(logits + gpu_bytes(model, config, tokens, checkpointing=checkpointing))
        if needed <= have:
            return DevicePlan(
                dtype=torch.bfloat16 if gpu.bf16 else torch.float16,
                mixed="bf16" if gpu.bf16 else "fp16",
                piece_tokens=piece,
                memory_bytes=needed,
                checkpointing=checkpointing,
                check_every=CHECK_EVERY_STEPS,
                gpu=gpu,
            )
    raise StageError(
        f"training needs about {size(needed)} of GPU memory, and {size(have)} are free", hint=HINT
    )


def gpu_bytes(
    model: ModelSize, config: FinetuneConfig, tokens: int, *, checkpointing: bool
) -> float:
    """Estimated peak on a GPU in bytes, with `tokens` computed at once;
    see `_logit_bytes` for the output head.
    """
    weights: float = 2 * model.weights
    if config.load_in_4bit:
        weights -= (2 - LINEAR_BYTES_4BIT) * model.linear
    saved: float = SAVED_BYTES * model.channels  # for a token
    if config.lora.dora:
        saved *= DORA_FACTOR
    if checkpointing:
        saved = saved / model.layers + 2 * model.hidden * model.layers
    adapter = model.adapter_bytes(config.lora.rank)
    return GPU_FIXED_BYTES + weights + adapter + tokens * saved


def _logit_bytes(folder: Path, records: Sequence[EncodedRecord], together: int) -> float:
    """Upper bound of the bytes that the output head takes for the answers of a step."""
    model: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = model.get_text_config()
    lengths = sorted(sum(label != IGNORED for label in record["labels"]) for record in records)
    answers = sum(lengths[-together:])
    columns = text.vocab_size
    scaling = ("final_logit_softcapping", "logits_scaling", "logit_scale")
    if not any(getattr(text, key, None) for key in scaling):
        columns = min(VOCABULARY_BLOCK, columns)
    return float(answers * (columns * 10 + text.hidden_size * 16))
