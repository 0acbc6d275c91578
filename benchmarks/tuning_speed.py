"""The tuning of a sentence encoder beside its recipe of before: processor seconds and likelihood of
validation rows.

    python -m benchmarks.tuning_speed DATA DEMO MODEL [--seeds N] [--only NAME...]

DATA and DEMO are those of `sharper`, MODEL is the folder of an encoder (`runs/.encoders/*/model`).
A seed deals the batches, and of 20 rows a label it draws these too. Both recipes take turns in one
process with one thread of torch, so that other work on the machine changes little. The judgement is
that of the head alone; test rows are not read. Runs that the results hold are not repeated. `tried`
in the results are the recipes of the choice, on one draw.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks import program, result, sharper
from benchmarks.program import Pairs
from slmctl.metrics import cross_fitting, encoder_head
from slmctl.metrics.encoder_head import Floats
from slmctl.metrics.likelihood import normalised, sharpest
from slmctl.model_files import encoder_source, hf_folder
from slmctl.stages.encode import tuning, tuning_bounds

KEPT, BEFORE = "tuning-speed", "ten passes, embeddings and dropout"
SETS = {
    "Banking77, 20 rows a label": ("Banking77", 20),
    "the demo, 20 rows a label": (sharper.DEMO, 20),
    "the demo, all rows": (sharper.DEMO, 0),
}
# The recipe of before; the bound on the work counted the layers alone, which are 47 % of MiniLM's
# weights.
OLD: dict[str, Any] = {
    "RATE": 5e-5,
    "OF_HEAD": 1,
    "PASSES": 10,
    "WORK": 6e12 / 0.47,
    "_layers": lambda model: [*model.train().parameters()],
}


@dataclass(frozen=True)
class Run:
    """A tuned encoder: `steps`, processor `seconds`, and `loss` (nats a
    row) and `accuracy` of validation rows.
    """

    data: str
    seed: int
    old: bool
    steps: int
    seconds: float
    loss: float
    accuracy: float


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("demo", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[*SETS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets, written = sharper.readers(options.data, options.demo), result.FOLDER / f"{KEPT}.json"
    before = json.loads(written.read_bytes()) if written.exists() else {"runs": [], "tried": []}
    runs = [Run(**run) for run in before["runs"]]
    for seed in range(options.seeds):
        for data in options.only:
            if any((run.data, run.seed) == (data, seed) for run in runs):
                continue
            name, count = SETS[data]
            train, validation, _ = sets[name]()
            train = [train[k] for k in sharper.few(train, count, seed)]
            turns = (seed % 2 == 0, seed % 2 == 1)
            runs += [
                measured(data, seed, options.model, train, validation, old=old) for old in turns
            ]
            result.write(
                KEPT,
                "python -m benchmarks.tuning_speed DATA DEMO MODEL",
                compared(runs),
                ("torch", "transformers", "scikit-learn"),
                runs=[asdict(run) for run in runs],
                tried=before["tried"],
            )


def compared(runs: Sequence[Run]) -> list[result.Row]:
    """Figures of each data set: medians over its seeds, with the ratios of pairs."""
    rows = []
    for data in dict.fromkeys(run.data for run in runs):
        new, old = (
            [
                run
                for run in sorted(runs, key=lambda run: run.seed)
                if (run.data, run.old) == (data, which)
            ]
            for which in (False, True)
        )
        for what, field, goal in (
            ("CPU-seconds", "seconds", "<= 0.5"),
            ("steps", "steps", ""),
            ("loss of validation rows, nats", "loss", "<= 1"),
            ("accuracy on validation rows", "accuracy", ""),
        ):
            ours, theirs = ([getattr(run, field) for run in side] for side in (new, old))
            metric = f"{data}, {len(new)} seeds: {what}"
            rows.append(result.compared(metric, ours, theirs, peer=BEFORE, goal=goal, digits=4))
    return rows


def measured(
    data: str, seed: int, folder: Path, train: Pairs, validation: Pairs, *, old: bool
) -> Run:
    """Tune on the training rows, from the head of the frozen
    encoder, and judge by the validation rows.
    """
    (texts, labels), (asked, wanted) = zip(*train, strict=True), zip(*validation, strict=True)
    names = sorted(set(labels))
    named = names, vectors_of(folder, [encoder_head.spoken(name) for name in names])
    fold, learned = cross_fitting.folds(labels, texts, validation=0), vectors_of(folder, texts)
    head = encoder_head.cross_fit(learned, labels, fold=fold, named=named).head
    steps, steps_of = list[int](), tuning.steps_of

    def counted(*args: Any) -> int:
        steps.append(steps_of(*args))
        return steps[-1]

    torch.manual_seed(seed)
    changed = {"SEED": seed, "steps_of": counted, **(OLD if old else {})}
    with tempfile.TemporaryDirectory() as scratch, mock.patch.multiple(tuning, **changed):
        begun, out = time.process_time(), Path(scratch, "tuned")
        head = tuning.tune(
            folder, texts, labels, head, out, OLD["PASSES"] if old else tuning_bounds.PASSES
        )
        seconds = time.process_time() - begun
        table = normalised(head.evidence(vectors_of(out, asked)))
    _, likelihood = sharpest(head.labels, table, wanted)
    accuracy = float((np.array(head.labels)[table.argmax(axis=1)] == np.array(wanted)).mean())
    loss = round(-likelihood / len(wanted), 5)
    return Run(data, seed, old, steps[0], round(seconds, 2), loss, round(accuracy, 5))


def vectors_of(folder: Path, texts: Sequence[str]) -> Floats:
    """Vectors (n, size) of texts by an encoder's folder, in float32."""
    model, tokenizer = hf_folder.load_encoder(folder), hf_folder.load_tokenizer(folder)
    first, found = encoder_source.pooling(folder) == "cls", []
    for k in range(0, len(texts), 32):
        batch = tokenizer(
            list(texts[k : k + 32]),
            padding=True,
            truncation=True,
            max_length=tuning.LONGEST - 2,
            return_tensors="pt",
        )
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        found.append(tuning.pooled(states, batch["attention_mask"], first=first).numpy())
    return np.concatenate(found)


if __name__ == "__main__":
    main()
