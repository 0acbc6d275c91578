"""What the importance matrix is worth: KL divergence from the merged model, with and without, by type and records.

    python -m benchmarks.importance MERGED PREPARED [--rows 32 128]

MERGED and PREPARED are artifacts of a project. The divergence is over the answers of held-out
validation records, in nats; `ours` is with the matrix, `theirs` the same type without.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import program, result
from slmctl.artifacts import artifact
from slmctl.config import QuantizeConfig
from slmctl.model_files import hf_folder, quantizer
from slmctl.model_files.base_model import Base
from slmctl.stages.quantize import gguf_files, importance_matrix, parity, quantize
from slmctl.task.contract import Task
from slmctl.task.records import read_records

TYPES = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M")
HELD_OUT = 64  # validation records


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("merged", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    options = parser.parse_args()
    merged = artifact.foreign(options.merged, "merged")
    base, task = Base.read(merged.path), Task.read(merged.path)
    config = QuantizeConfig(project="bench", version="1.0")
    held_out = read_records(options.prepared / "validation.jsonl")[: options.held_out]
    train = read_records(options.prepared / "train.jsonl")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        lossless = gguf_files.convert(config, merged, base, scratch)
        tokenizer, model = hf_folder.load_tokenizer(merged.path), hf_folder.load_model(merged.path)
        parity.COMPARED_RECORDS = options.held_out
        wanted = parity.reference(model, tokenizer, task, held_out)

        def kl(path: Path) -> dict[str, float]:
            logits = scratch / "logits.npy"
            quantizer.probe(path, texts=[], end=task.end, rows=wanted.rows, logits=logits)
            return parity.compare_logits(wanted.logits, np.load(logits, mmap_mode="r"))

        def ladder(matrix: gguf_files.ImportanceMatrix, count: int) -> dict[str, dict[str, float]]:
            targets = [quantizer.QuantizedFile(name, scratch / "made.gguf", bool(matrix)) for name in options.types]
            gguf_files.save(matrix, scratch / "importance.npz")
            found = {}
            for target in targets:
                list(quantizer.quantize_all(lossless.path, [target], importance=scratch / "importance.npz", rows=count))
                found[target.type] = kl(target.path) | {"size": target.path.stat().st_size}
                sys.stderr.write(f"{count} records, {target.type}: {json.dumps(found[target.type])}\n")
            return found

        whole = kl(lossless.path)
        sys.stderr.write(f"{lossless.type}: {json.dumps(whole)}\n")
        without = ladder({}, 0)
        everything = {"0": without}
        for count in options.rows:
            texts = quantize.texts_of(train, task, count)
            matrix = importance_matrix.measure(model, [parity.encode(tokenizer, text) for text in texts], lossless.head)
            everything[str(count)] = with_ = ladder(matrix, count)
            rows += [
                result.compared(
                    f"{base.name} {name}: nats, {count} records", [with_[name]["kl_mean"]],
                    [without[name]["kl_mean"]], peer="without", digits=5,
                )
                for name in options.types
            ]  # fmt: skip
    result.write(
        f"importance-{base.name.lower()}", "python -m benchmarks.importance MERGED PREPARED", rows,
        ("torch", "transformers", "llama-cpp-python"), lossless=whole, measured=everything,
        positions=int(whole["positions"]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
