"""Variants of training rows of thin labels: what is shown, what is kept, what they cost, and what they never change."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from support import endpoint, teacher, tiny

from slmctl import config
from slmctl.artifacts import artifact
from slmctl.deduplication.row_fingerprints import FILENAME, Fingerprints, query_fingerprint
from slmctl.errors import PausedError, UsageError
from slmctl.metrics.thin_labels import THIN, thin
from slmctl.pipeline.resolve import Project, resolve_stage
from slmctl.stages.label import cost_plan, invention, rows

pytest.importorskip("httpx")
pytest.importorskip("sklearn")
INVENT = "  votes: 1\n  examples: 2\n  invent: {per_label: 40}\n"
THIN_LABEL = "account"


def is_writing(body: dict[str, Any]) -> bool:
    return str(body["messages"][0]["content"]).startswith(invention.BRIEF)


def variant(body: dict[str, Any], label: str = THIN_LABEL) -> str:
    """A new text of a label, which follows from what is asked."""
    choose = random.Random(f"{body['messages'][-1]['content']}/{body['seed']}")
    words = [*choose.sample(tiny.WORDS[label], 2), *choose.sample(tiny.FILLER.split(), 5)]
    choose.shuffle(words)
    return " ".join(words)


def writes(body: dict[str, Any], before: int = 0) -> endpoint.Turn:
    text = variant(body) if is_writing(body) else teacher.answer(body)
    return teacher.reply(body, text)


def project(folder: Path, url: str, *, rows: int = 30, account: int = 20, more: str = INVENT) -> Path:
    """A project whose label account has few gold rows, and none among the rows to label."""
    teacher.project(folder, url, rows=rows, gold=260, more=more)
    pairs = tiny.rows(700, seed=3)
    few = [pair for pair in pairs if pair[1] == THIN_LABEL][:account]
    others = [pair for pair in pairs if pair[1] != THIN_LABEL]
    tiny.write_csv(folder / "gold.csv", [*others[:300], *few])
    (folder / "new.csv").write_text("\n".join(["text", *(text for text, _ in others[300 : 300 + rows])]) + "\n")
    return folder


def gold_of(folder: Path) -> dict[str, str]:
    with (folder / "gold.csv").open(encoding="utf-8", newline="") as stream:
        return {row["text"]: row["category"] for row in csv.DictReader(stream)}


def test_thin_labels_are_those_below_one_number_the_fewest_first() -> None:
    assert thin({"a": THIN, "b": THIN - 1, "c": 0, "d": 900}) == ["c", "b"]


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, endpoint.Fake]:
    """A project with variants, of a writer that makes every mistake."""
    folder = tmp_path_factory.mktemp("invented") / "desk"
    faults: list[str] = []

    def manners(body: dict[str, Any], before: int) -> endpoint.Turn:
        if not is_writing(body):
            return writes(body)
        seed = body["messages"][-1]["content"]
        text = {
            1: seed,  # the row itself
            2: f"“{variant(body)}”",
            3: "" if tiny_chance(seed) < 0.5 else f"{variant(body)} jane.doe@example.org",
        }.get(body["seed"], variant(body))
        if body["seed"] == 2 and tiny_chance(seed) < 0.3:
            text = variant(body, "billing")
        if body["seed"] == 2 and tiny_chance(seed) > 0.8:
            text = faults[0] + " please"
        return teacher.reply(body, text)

    with endpoint.serving(manners) as fake:
        project(folder, fake.url)
        faults.append(held_out_of(folder))
        teacher.slmctl(folder, "label")
    return folder, fake


def tiny_chance(text: str) -> float:
    return teacher.chance(text, "fault")


def held_out_of(folder: Path) -> str:
    """A gold row of the thin label that prepare holds out for validation or calibration."""
    section = resolve_stage(Project(folder, config.load(folder / "slmctl.yaml")), "label").section
    assert isinstance(section, config.LabelConfig)
    train, held_out = rows.training(section)
    assert {row.text for row in train}.isdisjoint(row.text for row in held_out)
    assert len(train) + len(held_out) == len(gold_of(folder))
    return next(row.text for row in held_out if row.gold == THIN_LABEL)


def test_variants_are_of_training_rows_and_stay_where_the_labels_agree(invented: tuple[Path, endpoint.Fake]) -> None:
    folder, fake = invented
    found = teacher.labelled(folder)
    rows = teacher.lines(found / "invented.jsonl")
    facts = artifact.load(found).metrics["invented"]
    asked = [body for body in fake.bodies if is_writing(body)]
    gold = gold_of(folder)
    seeds = {body["messages"][-1]["content"] for body in asked}
    assert {gold[text] for text in seeds} == {THIN_LABEL}
    (count,) = facts["labels"].values()
    assert count["rows"] == len(seeds) < THIN  # all of them, and no other row
    assert len(asked) == count["written"] == facts["written"] == min(40, 3 * len(seeds))
    assert len(rows) == count["accepted"] == facts["accepted"] > 2
    assert facts["accepted"] + sum(facts["left_out"].values()) == facts["written"]
    assert set(facts["left_out"]) >= {invention.REPEATS, invention.EMPTY, invention.PERSONAL, invention.OTHER_LABEL}
    texts = [row["input"] for row in rows]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & set(gold)
    assert not any("“" in text or "@" in text for text in texts)
    for row in rows:
        assert row["output"] == THIN_LABEL == teacher.label_of(row["input"])
        assert (row["writer"], row["teacher"], row["source"]["file"]) == ("large", ["large"], "invented")
        assert 0 < row["weight"] <= 1
        assert len(row["variant_of"]) == 16
    labelling = {body["messages"][-1]["content"] for body in fake.bodies if not is_writing(body)}
    assert set(texts) <= labelling
    assert "jane.doe" not in json.dumps([body["messages"] for body in fake.bodies])


def test_what_is_near_a_held_out_row_is_left_out(invented: tuple[Path, endpoint.Fake]) -> None:
    folder, _ = invented
    held_out = held_out_of(folder)
    left_out = artifact.load(teacher.labelled(folder)).metrics["invented"]["left_out"]
    assert left_out[invention.HELD_OUT] >= 1
    assert not [row for row in teacher.lines(teacher.labelled(folder) / "invented.jsonl") if held_out in row["input"]]


def test_they_are_found_again_and_stand_in_account_and_page(invented: tuple[Path, endpoint.Fake]) -> None:
    folder, fake = invented
    found = teacher.labelled(folder)
    text = teacher.lines(found / "invented.jsonl")[0]["input"]
    (match,) = Fingerprints(found / FILENAME).look_up([query_fingerprint(text)], threshold=1.0)
    assert match.split == "train"
    (facts,) = artifact.load(found).metrics["teachers"]
    assert facts["sent"] == facts["answered"] == len(fake.bodies)
    page = (found / "report.html").read_text()
    assert "Invented rows" in page
    assert "Written rows that were left out" in page


def test_without_them_the_accepted_rows_are_the_same(invented: tuple[Path, endpoint.Fake]) -> None:
    folder, fake = invented
    with_them = teacher.labelled(folder)
    before = len(fake.bodies)  # the endpoint is gone: every answer is in the journal
    teacher.slmctl(folder, "label")
    text = (folder / "slmctl.yaml").read_text()
    (folder / "slmctl.yaml").write_text(text.replace("  invent: {per_label: 40}\n", ""))
    try:
        teacher.slmctl(folder, "label")
    finally:
        (folder / "slmctl.yaml").write_text(text)
    assert len(fake.bodies) == before
    (other,) = (path for path in (folder / "runs" / "labelled").glob("[!.]*") if path != with_them)
    assert (other / "accepted.jsonl").read_bytes() == (with_them / "accepted.jsonl").read_bytes()
    assert not (other / "invented.jsonl").exists()
    assert "invented" not in artifact.load(other).metrics
    for path in sorted(other.rglob("*"), reverse=True):
        path.unlink()
    other.rmdir()


def test_the_plan_counts_them_and_a_ceiling_stops_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint.serving(writes) as fake:
        folder = project(tmp_path, fake.url, rows=4)
        teacher.slmctl(folder, "label", "--plan", "--json")
        plan = json.loads(capsys.readouterr().out)
        written = sum(map(is_writing, fake.bodies))
        assert written == 5
        assert 0 < plan["writing"]["cost"] < plan["cost"]
        assert (plan["writing"]["written"], plan["writing"]["cut_off"]) == (5, 0)
        own = plan["parts"][0]["cost"]
        most = own + 0.3 * plan["writing"]["cost"]
        with pytest.raises(PausedError, match=r"label stopped at label\.max_cost"):
            teacher.slmctl(folder, "label", "--max-cost", f"{most:.6f}")
        assert written < sum(map(is_writing, fake.bodies)) < plan["writing"]["rows"]
        teacher.slmctl(folder, "label", "--max-cost", "1")
        asked = [json.dumps([body["messages"], body.get("seed")]) for body in fake.bodies]
        assert len(asked) == len(set(asked))
    (bill,) = artifact.load(teacher.labelled(folder)).metrics["teachers"]
    assert plan["cost"] == pytest.approx(bill["cost"], rel=0.1)


def test_nothing_is_written_for_a_label_that_no_gold_row_has(tmp_path: Path) -> None:
    folder = project(tmp_path, "http://127.0.0.1:9/v1")
    pairs = [pair for pair in tiny.rows(700, seed=3) if pair[1] != THIN_LABEL]
    tiny.write_csv(folder / "people.csv", pairs[400:])
    text = (folder / "slmctl.yaml").read_text()
    gold = "label:\n  gold: {path: people.csv, input: text, output: category}\n"
    (folder / "slmctl.yaml").write_text(text.replace("label:\n", gold))
    section = resolve_stage(Project(folder, config.load(folder / "slmctl.yaml")), "label").section
    assert isinstance(section, config.LabelConfig)
    made = invention.plan(section, rows.read(section))
    assert made is not None
    assert (made.most, made.never_given) == (0, [THIN_LABEL])
    assert made.sentence == (
        f"invent: nothing is written; none for '{THIN_LABEL}', which no gold row has: task.labels.names tells teachers "
        "of them"
    )


def test_a_plan_tells_texts_that_are_too_long_and_a_cost_that_is_not_known() -> None:
    made = cost_plan.WritingCost("invent: 12 rows", 12, None, 5, 2)
    _, cost, cut_off = made.lines("EUR", 256)
    assert "cost: not known" in cost
    assert "2 of 5 that were written are longer than label.max_tokens (256)" in cut_off


@pytest.mark.parametrize(
    ("account", "change", "said"),
    [
        (60, ("", ""), "no label has fewer than 20 training rows"),
        (20, ("output: category}]", "output: category}]\n  splits: {test: 0.45}"), "gold rows give no bound"),
    ],
)
def test_where_nothing_can_be_won_nothing_is_written(
    account: int, change: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with endpoint.serving(writes) as fake:
        folder = project(tmp_path, fake.url, rows=4, account=account)
        text = (
            (folder / "slmctl.yaml")
            .read_text()
            .replace("  splits: {test: 0.05}\n", "" if change[0] else "  splits: {test: 0.05}\n")
        )
        (folder / "slmctl.yaml").write_text(text.replace(*change) if change[0] else text)
        teacher.slmctl(folder, "label")
    err = capsys.readouterr().err
    assert said in err.partition("contacting")[0]  # before anything is asked
    assert not any(map(is_writing, fake.bodies))
    assert not teacher.lines(teacher.labelled(folder) / "invented.jsonl")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("classify, labels: from-data", "generate", "a task of kind generate has none"),
        ("{url: http://127.0.0.1:9/v1, model: large, prices: {input: 2.0, output: 8.0, currency: EUR}}",
         "{release: some}", "'invent' needs a teacher that can write"),
        ("per_label: 40", "per_label: 40, only: all", "'thin'"),
        ("per_label: 40", "per_label: 40, terms: permitted", "'terms' belongs to 'release'"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_invent_is_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    folder = project(tmp_path, "http://127.0.0.1:9/v1")
    text = (folder / "slmctl.yaml").read_text()
    assert old in text
    (folder / "slmctl.yaml").write_text(text.replace(old, new))
    with pytest.raises(UsageError, match=said):
        teacher.slmctl(folder, "label")
