"""A sentence encoder that learns the rows, beside the frozen one, each with words.

    python -m benchmarks.tuned_encoder DATA DEMO [--only NAME...] [--count COUNT...]

DATA and DEMO are those of `sharper`. COUNT rows a label are learned (0 for all), a fifth as many
validate, and the test rows are scored once. Stage `encode` decides as for a user: the tuned encoder
ships where validation rows are likelier by it, and learns them too, as the frozen one does;
`sharper --tuned` has it beside a tuned file. Log probabilities of each member are kept, to a
sixteenth (`tuned-encoder.npz`). Data sets that are not run keep their figures.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import program, result, sharper
from benchmarks.program import Pairs
from slmctl.config import EncodeConfig
from slmctl.metrics import cross_fitting, encoder_head
from slmctl.metrics.label_sum import ENCODER, WORDS
from slmctl.metrics.likelihood import Logprobs
from slmctl.metrics.statistics import wilson
from slmctl.model_files import encoder_source
from slmctl.models.learned_rows import LearnedRows
from slmctl.models.onnx_encoder import Encoder
from slmctl.stages.encode import encode
from slmctl.task.records import Record

COUNTS = (20, 0)  # training rows of each label; 0 for all
TUNED = "tuned"
GOALS = {
    ("Banking77", 20): 0.905,
    ("Banking77", 0): 0.946,
    ("CLINC150", 20): 0.955,
    ("CLINC150", 0): 0.972,
}
KEPT = "tuned-encoder"


def main() -> None:
    parser = program.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("demo", type=Path)
    parser.add_argument(
        "--only", nargs="+", default=["Banking77", "CLINC150", "SNIPS", sharper.DEMO]
    )
    parser.add_argument("--count", nargs="+", type=int, default=COUNTS)
    options = parser.parse_args()
    written, arrays = result.FOLDER / f"{KEPT}.json", result.FOLDER / f"{KEPT}.npz"
    before = (
        [result.Row(**row) for row in json.loads(written.read_bytes())["rows"]]
        if written.exists()
        else []
    )
    tables = dict(np.load(arrays, allow_pickle=False)) if arrays.exists() else {}
    rows = list[result.Row]()
    sets = sharper.readers(options.data, options.demo)
    with tempfile.TemporaryDirectory() as scratch:
        kept = encoder_source.kept(EncodeConfig(), Path(scratch))
        for name in options.only:
            for count in options.count:
                train, validation, test = (list(split) for split in sets[name]())
                if count:
                    train = [train[k] for k in sharper.few(train, count, 0)]
                    validation = [
                        validation[k] for k in sharper.few(validation, max(1, count // 5), 0)
                    ]
                strange = out_of_scope(options.data) if name == "CLINC150" else []
                rows += measured(name, count, kept.folder, train, validation, test, tables, strange)
    new = {row.metric.split(":")[0] for row in rows}
    rows = [row for row in before if row.metric.split(":")[0] not in new] + rows
    packages = ("torch", "transformers", "scikit-learn", "onnxruntime")
    result.write(KEPT, "python -m benchmarks.tuned_encoder DATA DEMO", rows, packages)
    np.savez_compressed(arrays, allow_pickle=False, **tables)


def out_of_scope(data: Path) -> list[str]:
    """Test questions of CLINC150 that none of its labels fits."""
    return [
        text for text, _ in json.loads((data / "clinc150/data_full.json").read_bytes())["oos_test"]
    ]


def recall(known: Logprobs, strange: Logprobs) -> float:
    """Share of strange texts with less evidence for every label than a
    twentieth of known texts; both (n, L).
    """
    return float((strange.max(axis=1) < np.quantile(known.max(axis=1), 0.05)).mean())


def measured(
    name: str,
    count: int,
    folder: Path,
    train: Pairs,
    validation: Pairs,
    test: Pairs,
    tables: dict[str, Any],
    strange: Sequence[str] = (),
) -> list[result.Row]:
    """The rows of one data set; `tables` gets the log probabilities of
    its members, `strange` fit no label.
    """
    records = [[_record(*pair) for pair in split] for split in (train, validation)]
    labels = [label for split in (train, validation) for _, label in split]
    texts = [text for split in (train, validation) for text, _ in split]
    fold = cross_fitting.folds(labels, texts, validation=len(validation))
    learned = LearnedRows(*records, np.arange(len(labels)), fold)
    names, (asked, wanted) = sorted(set(labels)), zip(*test, strict=True)
    with tempfile.TemporaryDirectory() as scratch:
        with Encoder(folder) as encoder:
            vectors, questions = encoder.encode(texts), encoder.encode(asked)
            named = names, encoder.encode([encoder_head.spoken(label) for label in names])
            unlike = encoder.encode(strange) if strange else questions[:1]
        encoded = encode.Vectors(vectors, named)
        frozen = encode.Fitted.on(learned, encoded)
        answers = frozen.model.logprobs(asked, questions)
        of_frozen, evidence = frozen.model.scored(asked, questions)
        recalls = [recall(evidence, frozen.model.scored(strange, unlike)[1])] if strange else []
        begun, first, whole = time.monotonic(), Path(scratch, "first"), Path(scratch, "whole")
        form, tuned = encode.tuned_sum(
            folder / encoder_source.MODEL, learned, encoded, frozen, first
        )
        kept = encode.likelier(tuned, frozen, [label for _, label in validation])
        tuned = encode.whole_sum(learned, tuned, first, whole)
        seconds = time.monotonic() - begun
        with Encoder(whole / form.relative_to(first)) as encoder:
            others = encoder.encode(asked)
            unlike = encoder.encode(strange) if strange else others[:1]
        answers[TUNED] = tuned.model.logprobs(asked, others)[ENCODER]
        of_tuned, evidence = tuned.model.scored(asked, others)
        recalls += [recall(evidence, tuned.model.scored(strange, unlike)[1])] if strange else []
    places = np.array(names)
    shares = {
        key: float((places[table.argmax(axis=1)] == np.array(wanted)).mean())
        for key, table in {**answers, "frozen sum": of_frozen, "tuned sum": of_tuned}.items()
    }
    ships, key = shares[f"{'tuned' if kept else 'frozen'} sum"], _title(name, count, len(train))
    title = f"{key}, {len(test)} test rows"
    held = {**frozen.members, TUNED: tuned.members[ENCODER]}
    for split, each in (("validation", held), ("test", answers)):
        tables |= {
            f"{key} {split} {member}": sharper.coarse(table) for member, table in each.items()
        }
    tables |= {
        f"{key} labels": places,
        f"{key} test": np.array(wanted),
        f"{key} validation": np.array([label for _, label in validation]),
    }
    seen = "out-of-scope questions told by the evidence, of 95 % in scope kept"
    told = (
        [result.single(f"{title}: {seen}", recalls[1], "frozen", recalls[0], ">= 0.85")]
        if recalls
        else []
    )
    goal = GOALS.get((name, count))
    low, high = wilson(round(ships * len(test)), len(test))
    return [
        result.single(
            f"{title}: accuracy of the tuned encoder", shares[TUNED], "frozen", shares[ENCODER]
        ),
        result.single(
            f"{title}: accuracy of the tuned encoder and words",
            shares["tuned sum"],
            "frozen",
            shares["frozen sum"],
        ),
        result.single(
            f"{title}: accuracy of what ships",
            ships,
            "words",
            shares[WORDS],
            f">= {goal}" if goal else "",
        ),
        result.single(f"{title}: 95 % interval of what ships", high, "low", low),
        result.single(f"{title}: seconds to tune", seconds, "", 0),
        *told,
    ]


def _title(name: str, count: int, train: int) -> str:
    return f"{name}, {f'{count} rows a label' if count else f'all {train} training rows'}"


def _record(text: str, label: str) -> Record:
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": label})
    return Record(id=text, messages=messages, source={"file": "", "row": 0})


if __name__ == "__main__":
    main()
