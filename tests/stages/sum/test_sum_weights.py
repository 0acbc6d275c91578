"""The weights of a sum by hand-made answers: a file that brings nothing is named at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import handmade

from slmctl.config import SumConfig
from slmctl.metrics import label_sum
from slmctl.stages.sum import sum as stage
from slmctl.task.records import write_jsonl

LABELS = ("a", "b")


@pytest.mark.parametrize("helps", [True, False])
def test_a_file_without_a_weight_is_named_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], helps: bool
) -> None:
    # only publish refused it, after report and policy
    references = np.random.default_rng(0).choice(LABELS, 60).tolist()
    texts = [f"word{label} hello" for label in references]
    fit = label_sum.fit(texts, None, references, fold=np.arange(60) % 5)
    records = [
        {
            "id": f"r{k}",
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": label},
            ],
            "source": {"file": "f", "row": k},
        }
        for k, (text, label) in enumerate(zip(texts, references, strict=True))
    ]
    words = fit.logprobs["words"] if not helps else np.full((60, 2), np.log(0.5))

    def fill(place: Path) -> None:
        fit.model.write(place / "sum.npz")
        np.savez_compressed(place / "validation.npz", words=words)

    encoder = handmade.make(tmp_path / "encoder", fill, kind="encoder", metrics={"source": ""})
    raw = "".join(json.dumps(record) + "\n" for record in records).encode()
    prepared = handmade.make(tmp_path / "prepared", {"validation.jsonl": raw}, kind="prepared")
    lines = [
        {
            "id": f"r{k}",
            "answer": label,
            "expected": label,
            "labels": {label: 0.9} if helps else {"a": 0.5},
        }
        for k, label in enumerate(references)
    ]
    answers = handmade.make(
        tmp_path / "predictions",
        lambda place: write_jsonl(place / "predictions.jsonl", lines),
        kind="predictions",
    )
    (tmp_path / "out").mkdir()
    facts = stage.run(
        SumConfig(), encoder=encoder, prepared=prepared, validation=[answers], out=tmp_path / "out"
    )
    assert ("file" in facts["weights"]) == helps
    assert ("publish: {model: linear}" in capsys.readouterr().err) != helps
