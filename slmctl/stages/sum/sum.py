"""encoder + validation rows' predictions of any GGUF files -> sum: the
linear members that help, with all weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from slmctl import console
from slmctl.artifacts import atomic
from slmctl.artifacts.artifact import Artifact
from slmctl.artifacts.bounded_json import JsonObject
from slmctl.config import SumConfig
from slmctl.errors import IntegrityError
from slmctl.inference import ENCODER as ENCODER_FILE
from slmctl.inference import FILE, SUM_FILE, TOKENIZER
from slmctl.metrics import label_sum, stored_arrays
from slmctl.metrics.label_sum import ENCODER, WORDS, LabelSum
from slmctl.metrics.predictions import read_predictions
from slmctl.model_files.encoder_source import VALIDATION
from slmctl.model_files.gguf_choice import is_tagging
from slmctl.stages.sum import fields
from slmctl.task.records import read_records


class SumFacts(TypedDict):
    """The weights of a sum.

    `weights` has the members that are kept; `gains` the share of right answers that the sum expects
    to lose on validation rows without each member, see `Weighing`; `rows` counts validation rows,
    `right` those that the file alone answers right (of several files on the mean; None without a
    file); `source` is the encoder's, empty where it is left out, with `encoder_license` as its card
    states it, and `tuned` where it has learned the rows.
    """

    weights: dict[str, float]
    gains: dict[str, float]
    floor: float
    rows: int
    right: int | None
    source: str
    encoder_license: str
    tuned: NotRequired[bool]


def run(
    config: SumConfig,
    *,
    encoder: Artifact,
    prepared: Artifact,
    validation: list[Artifact],
    out: Path,
) -> SumFacts | JsonObject:
    """Write `sum.npz`, and link the encoder's files if it has a weight.

    Where several files were made, one sum is weighed for all of them; without any, linear members
    alone.

    Raises:
        IntegrityError: The predictions are of other rows.
    """
    if is_tagging(encoder):
        return fields.run(
            config.floor, encoder=encoder, prepared=prepared, validation=validation, out=out
        )
    model = LabelSum.read(encoder.file(SUM_FILE))
    records = read_records(prepared.file("validation.jsonl"))
    # by members that had not learned these rows
    with stored_arrays.opened(encoder.file(VALIDATION)) as arrays:
        shape = len(records), len(model.labels)
        members = {
            name: arrays.numbers(name, *shape) for name in (ENCODER, WORDS) if name in arrays
        }
    answers = [read_predictions(made) for made in validation]
    if any(
        [line["id"] for line in lines] != [record.id for record in records] for lines in answers
    ):
        raise IntegrityError(
            "the predictions answer other validation rows than the data set's",
            hint="slmctl evaluate",
        )
    of_files = [
        [label_sum.spread(line.get("labels", {}), model.labels) for line in lines]
        for lines in answers
    ]
    tables = {FILE: np.array(of_files).reshape(-1, shape[1])} if answers else {}
    times = max(len(answers), 1)
    tables |= {name: np.tile(table, (times, 1)) for name, table in members.items()}
    references = [record.answer for record in records] * times
    choice = label_sum.choose(tables, model.labels, references, floor=config.floor)
    summed = model.only(choice.weights)
    summed.write(out / SUM_FILE)
    if summed.head is not None:
        for name in (ENCODER_FILE, TOKENIZER):
            atomic.link(encoder.file(name), out / name)
    for name in label_sum.MEMBERS:
        if name in choice.gains:
            weight = f"weight {choice.weights[name]:.2f}" if name in choice.weights else "left out"
            console.say(
                f"  {name}: {weight}, without it the sum expects {100 * choice.gains[name]:.1f} "
                "points less"
            )
    if answers and FILE not in choice.weights:
        console.say(
            "  note: the file has no weight in the sum, so no release has it; `publish: {model: "
            "linear}` releases the "
            "linear members alone"
        )
    gains = {name: round(gain, 6) for name, gain in choice.gains.items()}
    kept = encoder.metrics if summed.head is not None else {}
    right = sum(line["answer"] == line["expected"] for lines in answers for line in lines) // times
    facts: SumFacts = {
        "weights": choice.weights,
        "gains": gains,
        "floor": config.floor,
        "rows": len(records),
        "right": right if answers else None,
        "source": kept.get("source", ""),
        "encoder_license": kept.get("license", ""),
    }
    if kept.get("tuned", {}).get("kept"):
        facts["tuned"] = True
    return facts
