"""A fleet from two projects to `auto`: the task router is built, trained, served and measured, then with a cascade."""

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


def trained(folder: Path, base: Path, config: str, rows: list[tuple[str, str]]) -> None:
    """A project after `slmctl run`."""
    shutil.copytree(base, folder / "base")
    (folder / "slmctl.yaml").write_text(config, encoding="utf-8")
    tiny.write_csv(folder / "rows.csv", rows)
    tiny.ok(tiny.slmctl(folder, "run"))


@pytest.fixture(scope="module")
def fleet(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two projects, their registry, and the project of their router, trained and promoted."""
    folder = tmp_path_factory.mktemp("fleet")
    for seed, (name, words) in enumerate(WORDS.items()):
        trained(folder / name, tiny_base, CONFIG.format(name=name), texts(words, 600, seed))
        tiny.ok(tiny.slmctl(folder / name, "promote", f"{name}@1.0", "--tag", "production"))
    tiny.write_csv(folder / "chatter.csv", texts({"none": CHATTER}, 300, 7))
    tiny.ok(tiny.slmctl(folder, "init", "fleet-router", "--from", "dir:registry", "router", "--none", "chatter.csv"))
    tiny.ok(tiny.slmctl(folder / "router", "run", *TRAINED))
    tiny.ok(tiny.slmctl(folder / "router", "promote", "router@0.1", "--tag", "production"))
    return folder


@pytest.mark.slow
def test_from_two_projects_to_auto(fleet: Path) -> None:
    router = fleet / "router"
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
    records = {name: (fleet / name / "runs" / "prepared").glob("*/test.jsonl") for name in WORDS}
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


@pytest.mark.slow
def test_a_cascade_is_served_and_measured(fleet: Path, tiny_base: Path) -> None:
    # another registry: what is in production in that of the router is a label of it
    config = CONFIG.format(name="house-large").replace("dir:../registry", "dir:../larger")
    own = "{path: rows.csv, input: text, output: category}"
    config = config.replace(own, f"{own.replace('rows', 'seen').replace('}', ', split: train}')}, {own}")
    (path,) = (fleet / "house" / "runs" / "prepared").glob("*/test.jsonl")
    test = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    (fleet / "house-large").mkdir()
    seen = [(turns[-2]["content"], turns[-1]["content"]) for turns in test[:9]]  # it is trained on these
    tiny.write_csv(fleet / "house-large" / "seen.csv", seen)
    others = [row for row in texts(WORDS["house"], 600, 1) if row not in seen]
    trained(fleet / "house-large", tiny_base, config, others)
    (fitted,) = (fleet / "house-large" / "runs" / "policy").glob("[!.]*/policy.json")
    router = fleet / "router"
    text = (router / "slmctl.yaml").read_text(encoding="utf-8")
    text += f'    house-large: {{release: "dir:../larger#house-large@1.0", policy: {fitted}}}\n'
    (router / "slmctl.yaml").write_text(text, encoding="utf-8")
    (small,) = (fleet / "house" / "runs" / "policy").glob("[!.]*/policy.json")
    never = router / "never.json"  # the smaller one is sure of nothing
    never.write_text(json.dumps({**json.loads(small.read_bytes()), "threshold": 1e9}), encoding="utf-8")
    cascade = ("--set=serve.fleet.house.larger=house-large", f"--set=serve.fleet.house.policy={never}")

    figures = json.loads(tiny.ok(tiny.slmctl(router, "measure", "--json", "--policies", "cascade", *cascade)))
    assert figures["larger"] == {"house": "house-large"}
    models = {name: numbers for name, *numbers in figures["models"]}
    named = sum(rows for _, name, rows in figures["confusion"] if name == "house")
    assert models["house"] == [named, 0, 0]
    assert 0 < models["house-large"][1] <= models["house-large"][0] <= named  # less where the router is not sure
    assert sum(kept for _, kept, _ in models.values()) == figures["own"]["kept_rows"]
    # its other rows have the splits of the smaller one
    assert figures["notes"] == ["9 rows of house are left out: house-large was trained on them, or chosen by them."]
    assert {line["title"]: line["rows"] for line in figures["tasks"]}["house"] == len(test) - 9
    policies = {
        name: json.loads((router / "cascade" / f"{name}.json").read_bytes()) for name in (*WORDS, "house-large")
    }
    assert {policy["threshold"] for policy in policies.values()} == {figures["threshold"]}
    assert "house-large" in (router / "runs" / measure_command.PAGE).read_text(encoding="utf-8")

    child, url = begin(router, *SMALL, *cascade)
    answer = httpx.post(
        f"{url}/v1/chat/completions", json={"model": "house", "messages": chat("kettle oven")}, timeout=60
    )
    assert answer.headers["x-slmctl-path"] == "house, house-large"
    assert answer.json()["choices"][0]["message"]["content"] in WORDS["house"]
    end(child)
