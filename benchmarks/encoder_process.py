"""One engine of `encoder_engine` in a process of its own; imports nothing that another version of
slmctl lacks.

python benchmarks/encoder_process.py ENGINE FILE TEXTS.json
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ALONE = 200  # texts that are read one by one
Encode = Callable[[Sequence[str]], Any]


def timed(name: str, file: str, texts: Sequence[str]) -> dict[str, float]:
    """Seconds to load, rows a CPU-second, and the peak of memory of one engine in this process."""
    begun = time.monotonic()
    encode_texts = opened(name, Path(file))
    encode_texts(texts[:1])
    start = time.monotonic() - begun
    return {
        "start, s": start,
        "rows/CPU-s in batches": rate(lambda: encode_texts(texts), len(texts)),
        "rows/CPU-s one by one": rate(
            lambda: [encode_texts([text]) for text in texts[:ALONE]], ALONE
        ),
        "peak memory, MB": peak_bytes() / 1e6,
    }


def peak_bytes() -> int:
    """The largest memory that this process has held; what
    `getrusage` says begins with the parent's.
    """
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return 1024 * int(peak[1]) if peak else 0


def rate(work: Callable[[], Any], rows: int) -> float:
    begun = time.process_time()
    work()
    return rows / (time.process_time() - begun)


def opened(name: str, file: Path) -> Encode:
    """What makes vectors of texts on one thread."""
    if name.startswith("llama"):
        from slmctl.models.encoder_child import LoadedEncoder  # type: ignore[import-not-found]  # of the commit before

        encode_texts: Encode = LoadedEncoder(str(file), 1).encode
        return encode_texts
    if name.startswith("torch"):
        return by_torch(file)
    from slmctl.models.onnx_encoder import Encoder

    return Encoder(file, threads=1).encode


def by_torch(folder: Path) -> Encode:
    """transformers in bfloat16, 16 texts of like length at once."""
    import torch

    from slmctl.model_files import hf_folder

    torch.set_num_threads(1)
    tokenizer = hf_folder.load_tokenizer(folder)
    model = hf_folder.load_encoder(folder).eval().to(torch.bfloat16)

    def encode_texts(texts: Sequence[str]) -> None:
        ordered = sorted(texts, key=len)
        with torch.inference_mode():
            for k in range(0, len(ordered), 16):
                batch = tokenizer(
                    ordered[k : k + 16], padding=True, truncation=True, return_tensors="pt"
                )
                states = model(**batch).last_hidden_state
                (states * batch["attention_mask"][..., None]).sum(1)

    return encode_texts


if __name__ == "__main__":
    engine, path, listed = sys.argv[1:]
    sys.stdout.write(json.dumps(timed(engine, path, json.loads(Path(listed).read_bytes()))) + "\n")
