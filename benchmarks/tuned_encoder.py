"""A sentence encoder that is tuned, as one more member of the sum: what it adds to the frozen one and words.

    python -m benchmarks.tuned_encoder DATA DEMO FOLDER [--only NAME...]

DATA and DEMO are those of `sharper`; FOLDER holds the encoder with its safetensors. Of COUNT rows a label, the head
begins as the logistic regression on frozen vectors, then all weights learn (cross entropy, EPOCHS passes). The weights
of the sum are those of validation rows, a fifth as many as the training rows, which the tuned encoder does not learn.
Data sets that are not named keep their figures.

With `--file`, all rows of the demo are learned, and the members that `sum.npz` keeps of them stand beside.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks import program, result, sharper
from benchmarks.program import Pairs
from slmctl.config import EncodeConfig
from slmctl.metrics import cross_fitting, encoder_head, label_sum
from slmctl.metrics.likelihood import Logprobs, normalised
from slmctl.model_files import encoder_source
from slmctl.models.encoder_process import Encoder

EPOCHS, RATE, BATCH, LONGEST = 10, 5e-5, 16, 128
COUNT = 20  # training rows of each label
FILE_TITLE = "all rows of the demo"
PARTS = {"tuned": "encoder", "tuned + words": "ships", "encoder + words + tuned": "encoder + words"}  # beside a peer


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("demo", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=["Banking77", "CLINC150", "SNIPS", "the demo"])
    parser.add_argument("--file", action="store_true")
    options = parser.parse_args()
    rows = list[result.Row]()
    with tempfile.TemporaryDirectory() as scratch:
        gguf, _ = encoder_source.kept(EncodeConfig(), Path(scratch))
        with Encoder(gguf) as encoder:
            sets = {
                "Banking77": lambda: program.banking77(options.data),
                "CLINC150": lambda: program.clinc150(options.data),
                "SNIPS": lambda: sharper.snips(options.data),
                "the demo": lambda: sharper.demo(options.demo),
            }
            if options.file:
                options.only = [FILE_TITLE]
                train, validation, test = sharper.demo(options.demo)
                head = begun_head(encoder, train, sorted({label for _, label in train}))
                asked = [text for text, _ in validation], [text for text, _ in test]
                rows = beside_file(len(train), *tuned(options.folder, train, head, asked))
            for name in options.only if not options.file else ():
                train, validation, test = (list(split) for split in sets[name]())
                drawn, chosen = sharper.few(train, COUNT, 0), sharper.few(validation, COUNT // 5, 0)
                parts = [train[k] for k in drawn], [validation[k] for k in chosen], test
                rows += figures(name, scored(encoder, options.folder, *parts))
    packages = ("torch", "transformers", "scikit-learn", "llama-cpp-python")
    path = result.FOLDER / "tuned-encoder.json"
    if path.exists():
        before = [result.Row(**row) for row in json.loads(path.read_bytes())["rows"]]
        rows = [row for row in before if row.metric.split(",")[0] not in options.only] + rows
    result.write("tuned-encoder", "python -m benchmarks.tuned_encoder DATA DEMO FOLDER", rows, packages)


def figures(name: str, accuracy: dict[str, Any]) -> list[result.Row]:
    """The rows of one data set."""
    title = f"{name}, {accuracy['rows']} training rows"
    rows = [
        result.single(f"{title}: accuracy of {part}", accuracy[part], peer, accuracy[peer])
        for part, peer in PARTS.items()
    ]
    return [*rows, result.single(f"{title}: seconds to tune", accuracy["seconds"], "", 0)]


def begun_head(encoder: Encoder, train: Pairs, names: Sequence[str]) -> encoder_head.EncoderHead:
    """The logistic regression on frozen vectors that a tuned encoder begins with."""
    texts, own = (list(each) for each in zip(*train, strict=True))
    named = list(names), encoder.encode([encoder_head.spoken(label) for label in names])
    fold = cross_fitting.folds(own, texts, validation=0)
    fitted = encoder_head.cross_fit(encoder.encode(texts), own, fold=fold, named=named)
    assert fitted is not None and list(fitted.head.labels) == list(names)
    return fitted.head


def beside_file(count: int, of_validation: Logprobs, of_test: Logprobs) -> list[result.Row]:
    """Each sum of a tuned encoder with members that `sum.npz` keeps of so many rows, beside the same sum without."""
    with np.load(result.FOLDER / "sum.npz", allow_pickle=False) as kept:
        held, asked = ({member: kept[f"{count}_{split}_{member}"].astype(np.float64) for member in label_sum.MEMBERS}
                       for split in ("validation", "test"))  # fmt: skip
        names, wanted, answers = (kept[f"{count}_{what}"] for what in ("labels", "test", "validation"))
    held["tuned"], asked["tuned"] = of_validation, of_test

    def right(group: Sequence[str]) -> float:
        own = {member: held[member] for member in group}
        weights = label_sum.choose(own, list(names), list(answers)).weights
        return float((names[label_sum.weighted(asked, weights).argmax(axis=1)] == wanted).mean())

    groups = [("file",), ("words",), ("file", "words")]
    rows = [result.single(f"{FILE_TITLE}, {count}: accuracy of tuned", right(["tuned"]), "file", right(["file"]))]
    return rows + [
        result.single(f"{FILE_TITLE}, {count}: accuracy of {' + '.join(group)} + tuned", right([*group, "tuned"]),
                      " + ".join(group), right(group))
        for group in groups
    ]  # fmt: skip


def scored(encoder: Encoder, folder: Path, train: Pairs, validation: Pairs, test: Pairs) -> dict[str, Any]:
    """The share of right test answers of each member, of what ships and of the sum with the tuned encoder."""
    vectors = [encoder.encode([text for text, _ in split]) for split in (train, validation, test)]
    texts, labels = ([*a, *b] for a, b in zip(zip(*train, strict=True), zip(*validation, strict=True), strict=True))
    names = np.array(sorted(set(labels)))
    named = list(names), encoder.encode([encoder_head.spoken(label) for label in names])
    fold = cross_fitting.folds(labels, texts, validation=len(validation))
    ships = label_sum.fit(texts, np.concatenate(vectors[:2]), labels, fold=fold, named=named)
    begun = time.monotonic()
    head = begun_head(encoder, train, list(names))
    asked = [text for text, _ in validation], [text for text, _ in test]
    of_validation, of_test = tuned(folder, train, head, asked)
    seconds = time.monotonic() - begun
    held = {name: table[len(train) :] for name, table in ships.logprobs.items()} | {"tuned": of_validation}
    answers = {**ships.model.logprobs(asked[1], vectors[2]), "tuned": of_test}
    wanted = np.array([label for _, label in test])

    def right(table: Logprobs) -> float:
        return round(float((names[table.argmax(axis=1)] == wanted).mean()), 4)

    told = {name: right(table) for name, table in answers.items()}
    told["ships"] = right(ships.model.scored(asked[1], vectors[2])[0])
    for group in (("encoder", "words"), ("tuned", "words"), ("encoder", "tuned"), ("encoder", "words", "tuned")):
        weights = label_sum.choose(
            {name: held[name] for name in group}, list(names), [label for _, label in validation]
        ).weights
        told[" + ".join(group)] = right(label_sum.weighted(answers, weights))
    return told | {"seconds": round(seconds), "rows": len(train)}


def tuned(
    folder: Path, train: Pairs, head: encoder_head.EncoderHead, asked: tuple[list[str], list[str]]
) -> list[Logprobs]:
    """Log probabilities of some texts by an encoder that learned the training rows with its head."""
    torch.manual_seed(0)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    weights, bias = (torch.nn.Parameter(torch.tensor(part, dtype=torch.float32)) for part in (head.weights, head.bias))

    def scores(texts: list[str]) -> torch.Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        pooled = (states.float() * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1) @ weights.T + bias

    places = {label: k for k, label in enumerate(head.labels)}
    steps = -(-len(train) // BATCH) * EPOCHS
    optimizer = torch.optim.AdamW([*model.parameters(), weights, bias], RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    random = np.random.default_rng(0)
    model.train()
    for _ in range(EPOCHS):
        order = random.permutation(len(train))
        for first in range(0, len(order), BATCH):
            rows = [train[k] for k in order[first : first + BATCH]]
            loss = torch.nn.functional.cross_entropy(
                scores([text for text, _ in rows]), torch.tensor([places[label] for _, label in rows])
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()
    with torch.no_grad():
        tables = [[scores(texts[k : k + 64]).double().numpy() for k in range(0, len(texts), 64)] for texts in asked]
    return [normalised(np.concatenate(parts)) for parts in tables]


if __name__ == "__main__":
    main()
