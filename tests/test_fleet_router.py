"""A fleet from two projects to `auto`: the task router is built, trained, served and measured."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import httpx
import pytest
from support import tiny
from support.serving import begin, chat, end

from slmctl.cli import measure_command

WORDS = {
    "tickets": {"billing": "invoice refund charged", "delivery": "parcel courier late"},
    "house": {"garden": "flower hedge lawn", "kitchen": "kettle oven spoon"},
}
CHATTER = "sun moon star cloud rain snow"
CONFIG = """\
project: {name}
version: "1.0"
base: ./base
pull: {{rehearse: false}}
task: {{kind: classify, system: Name the category.}}
prepare:
  sources: [{{path: rows.csv, input: text, output: category}}]
  splits: {{calibration: 0.45, validation: 0.1, test: 0.15}}
  max_overlap: 100%
finetune: {{max_steps: 120, learning_rate: 4e-3, batch_size: 8}}
quantize: {{types: [Q8_0]}}
evaluate: {{models: [gguf]}}
calibrate: {{max_error: 0.4}}
publish: {{to: "dir:../registry"}}
"""
TRAINED = (
    "--set=pull.rehearse=false", "--set=finetune.max_steps=120", "--set=finetune.learning_rate=4e-3",
    "--set=finetune.batch_size=8", "--set=evaluate.models=[gguf]", "--set=gates=[]", "--set=calibrate.max_error=0.4",
)  # fmt: skip
SMALL = ("--set=serve.context_length=256", "--set=serve.sequences=1")


def texts(words: dict[str, str], count: int, seed: int) -> list[tuple[str, str]]:
    """Distinct texts of two telling words among others."""
    draw, pairs = random.Random(seed), dict[str, str]()
    while len(pairs) < count:
        label = draw.choice(list(words))
        text = [*draw.choices(words[label].split(), k=2), *draw.choices(tiny.FILLER.split(), k=4)]
        pairs[" ".join(text)] = label
    return list(pairs.items())


@pytest.mark.slow
def test_from_two_projects_to_auto(tiny_base: Path, tmp_path: Path) -> None:
    for seed, (name, words) in enumerate(WORDS.items()):
        folder = tmp_path / name
        shutil.copytree(tiny_base, folder / "base")
        (folder / "slmctl.yaml").write_text(CONFIG.format(name=name), encoding="utf-8")
        tiny.write_csv(folder / "rows.csv", texts(words, 600, seed))
        tiny.ok(tiny.slmctl(folder, "run"))
        tiny.ok(tiny.slmctl(folder, "promote", f"{name}@1.0", "--tag", "production"))
    tiny.write_csv(tmp_path / "chatter.csv", texts({"none": CHATTER}, 300, 7))
    tiny.ok(tiny.slmctl(tmp_path, "init", "fleet-router", "--from", "dir:registry", "router", "--none", "chatter.csv"))
    router = tmp_path / "router"
    tiny.ok(tiny.slmctl(router, "run", *TRAINED))
    tiny.ok(tiny.slmctl(router, "promote", "router@0.1", "--tag", "production"))

    child, url = begin(router, *SMALL)
    paths = {}
    for name, text in (("tickets", "invoice refund please"), ("house", "kettle oven today"), ("none", "moon star")):
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "auto", "messages": chat(text)}, timeout=60)
        paths[name] = answer.json()["slmctl"]["path"]
        assert answer.status_code == 200
    assert {path[0]["answer"] for path in paths.values()} <= {*WORDS, "none"}
    assert all(0 <= path[0]["p_correct"] <= 1 for path in paths.values())
    assert all(path[0]["answer"] == path[-1]["model"] for path in paths.values() if path[0]["answer"] != "none")
    listed = {entry["id"]: entry["slmctl"] for entry in httpx.get(f"{url}/v1/models").json()["data"]}
    assert set(listed["auto"]["labels"]) == {*WORDS, "none"}
    assert [name for name, about in listed.items() if "router" in about] == ["auto"]
    end(child)

    measured = tiny.slmctl(router, "measure", "--json", "--policies", "shared")
    figures = json.loads(tiny.ok(measured))
    records = {name: (tmp_path / name / "runs" / "prepared").glob("*/test.jsonl") for name in WORDS}
    counts = {name: len(next(paths).read_text(encoding="utf-8").splitlines()) for name, paths in records.items()}
    assert {line["title"]: line["rows"] for line in figures["tasks"]} == counts
    assert figures["own"]["rows"] == sum(counts.values())
    assert figures["own"]["none_rows"] > 0
    assert figures["shared"]["error_bound"] <= 1
    assert (router / "runs" / measure_command.PAGE).read_text(encoding="utf-8").count("<table") >= 3
    shared = [json.loads((router / "shared" / f"{name}.json").read_bytes()) for name in ("auto", *WORDS)]
    assert {policy["threshold"] for policy in shared} == {figures["threshold"]}
    child, url = begin(router, *SMALL, *(f"--set=serve.fleet.{name}.policy=shared/{name}.json" for name in WORDS))
    assert httpx.get(f"{url}/readyz").json()["ready"] is True
    end(child)
