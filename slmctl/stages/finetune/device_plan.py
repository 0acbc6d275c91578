"""The use that a training makes of its device, planned before the model is loaded; a CPU and a GPU differ here."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from slmctl.config import FinetuneConfig
from slmctl.console import size
from slmctl.errors import StageError
from slmctl.model_files import model_shape, safetensors_header
from slmctl.stages.finetune import batches, checkpoint
from slmctl.stages.finetune.answer_loss import VOCABULARY_BLOCK
from slmctl.stages.finetune.packing import IGNORED, EncodedRecord

CHECK_EVERY_STEPS = 10  # looks at the losses on a GPU: each makes the host wait for it
GPU_PIECES = (16384, 8192, 4096, 2048, 1024)  # tokens computed at once on a GPU, the first that fit its memory
LEAST_WITHOUT_CHECKPOINTS = 2048  # tokens; with smaller pieces, computing activations twice is the faster way
GPU_SHARE = 0.92  # of the free memory: the rest is left to fragments and to what libraries take
GPU_FIXED_BYTES = 1.2e9  # the driver's context and the libraries' workspaces
LINEAR_BYTES_4BIT = 0.57  # bytes a weight in 4 bits, with its share of the scales
# What a linear layer of so many inputs and outputs adds to what autograd saves for a token, and what PEFT's DoRA
# does: the inputs and outputs in 16 bits, and as much again by norms, rotations and activations around it.
SAVED_BYTES, DORA_FACTOR = 4, 2
ADAPTER_BYTES = 20  # bytes a trained weight: itself, its gradient, two moments, the best one so far
SHARED_BACKEND = "gloo"  # between processes on one GPU, which NCCL refuses
EMBEDDINGS = re.compile(r"embed|\bwte\b|\bwpe\b|lm_head")
HINT = "a smaller base, --set finetune.load_in_4bit=true, or finetune.max_length=N with finetune.too_long=truncate"


@dataclass(frozen=True)
class Gpu:
    """The GPU of this process.

    Attributes:
        bf16: It computes in bfloat16 itself; emulated, that is slower than float16.
        free: Bytes that a process may take, where those that share it take the same.
        visible: GPUs that this process could use.
        shared: Processes of this machine for each GPU, rounded up.
    """

    bf16: bool
    free: int
    visible: int
    shared: int = 1


@dataclass(frozen=True)
class DevicePlan:
    """The use that a training makes of its device.

    Attributes:
        dtype: Type of the frozen weights.
        mixed: Type of mixed precision as transformers names it, `bf16` or `fp16`; empty for none.
        piece_tokens: Tokens to compute at once.
        memory_bytes: Estimated peak of the device's memory, that of the process on a CPU.
        checkpointing: Save a layer's input alone and compute its activations again in the backward pass.
        check_every: Steps between two looks at whether losses and gradients are finite.
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
        return max(self.gpu.visible - int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 0) if self.gpu else 0

    def peak_bytes(self) -> int:
        """Peak of the memory that the process has taken on its GPU."""
        return torch.cuda.max_memory_reserved()


@contextlib.contextmanager
def out_of_memory(checkpoints: Path) -> Iterator[None]:
    """Turn a GPU's full memory into a StageError that says what is kept."""
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
    local, rank = (int(os.environ.get(name, value)) for name, value in (("LOCAL_WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    shared = -(-local // visible)
    free, _ = torch.cuda.mem_get_info(rank % visible)
    return Gpu(torch.cuda.is_bf16_supported(including_emulation=False), free // shared, visible, shared)


def for_cpu(
    config: FinetuneConfig, memory_bytes: int | None = None, piece_tokens: int = model_shape.PIECE_TOKENS
) -> DevicePlan:
    """The plan of a training on a CPU that takes so many bytes."""
    dtype = torch.bfloat16 if config.matmul_dtype == "bfloat16" else torch.float32
    return DevicePlan(dtype, memory_bytes=memory_bytes, piece_tokens=piece_tokens)


def for_gpu(config: FinetuneConfig, gpu: Gpu, folder: Path, records: Sequence[EncodedRecord]) -> DevicePlan:
    """The plan of a training on a GPU: large pieces, and activations computed twice only where memory is short.

    Raises:
        StageError: It fits in no way.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    together = max(config.batch_size // (config.gradient_accumulation_steps * world), 1)
    needs = GpuNeeds.of(folder, config, records, together)
    ways = [(piece, False) for piece in GPU_PIECES if piece >= LEAST_WITHOUT_CHECKPOINTS]
    ways += [(piece, True) for piece in GPU_PIECES]
    have, needed = GPU_SHARE * gpu.free, 0
    for piece, checkpointing in ways:
        needed = needs.bytes(batches.largest_piece(records, together, piece).tokens, checkpointing=checkpointing)
        if needed <= have:
            dtype, mixed = (torch.bfloat16, "bf16") if gpu.bf16 else (torch.float16, "fp16")
            return DevicePlan(dtype, mixed, piece, needed, checkpointing, CHECK_EVERY_STEPS, gpu)
    raise StageError(f"training needs about {size(needed)} of GPU memory, and {size(have)} are free", hint=HINT)


@dataclass(frozen=True)
class GpuNeeds:
    """Needs of a training on a GPU: its memory in parts, from the shapes of a base's tensors.

    Attributes:
        fixed: Bytes of the weights, the adapter and its optimizer.
        saved: Bytes a token of all layers' activations.
        layers: Number of layers.
        hidden: Width of the residual stream.
        logits: Bytes of what the output head computes for the answers of one step.
    """

    fixed: float
    saved: float
    layers: int
    hidden: int
    logits: float

    @classmethod
    def of(cls, folder: Path, config: FinetuneConfig, records: Sequence[EncodedRecord], together: int) -> GpuNeeds:
        """Needs of a training of these records, `together` of them a step."""
        model: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text = model.get_text_config()
        entries = [e for path in sorted(folder.glob("*.safetensors")) for e in safetensors_header.read(path)]
        linear = [e for e in entries if len(e.shape) > 1 and not EMBEDDINGS.search(e.name)]
        # a token goes through some of the experts only
        chosen = getattr(text, "num_experts_per_tok", None) or getattr(text, "num_local_experts", None) or 1
        experts = max(getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1, 1)
        wide = sum(sum(e.shape[-2:]) * (chosen / experts if ".experts." in e.name else 1) for e in linear)
        held = sum(e.elements for e in linear)
        total = sum(e.elements for e in entries)
        weights = 2 * total if not config.load_in_4bit else 2 * (total - held) + LINEAR_BYTES_4BIT * held
        numbers = {match[1] for e in linear if (match := re.search(r"\.(\d+)\.", e.name))}
        hidden, vocabulary = text.hidden_size, text.vocab_size
        answers = sum(sorted(sum(label != IGNORED for label in record["labels"]) for record in records)[-together:])
        own = any(getattr(text, key, None) for key in ("final_logit_softcapping", "logits_scaling", "logit_scale"))
        columns = vocabulary if own else min(VOCABULARY_BLOCK, vocabulary)
        return cls(
            fixed=GPU_FIXED_BYTES + weights + ADAPTER_BYTES * config.lora.rank * wide,
            saved=SAVED_BYTES * wide * (DORA_FACTOR if config.lora.dora else 1),
            layers=max(len(numbers), 1),
            hidden=hidden,
            logits=answers * (columns * 10 + hidden * 16),
        )

    def bytes(self, tokens: int, *, checkpointing: bool) -> int:
        """Estimated peak while so many tokens are computed at once."""
        saved = self.saved / self.layers + 2 * self.hidden * self.layers if checkpointing else self.saved
        return int(self.fixed + tokens * saved + self.logits)
