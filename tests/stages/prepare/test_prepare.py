"""prepare: every row is accounted for, and no held-out row leaks into training."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from support import preparing, reported, teacher, tiny, workbooks
from support.forks import Forks
from support.preparing import COLUMNS, Prepared

from slmctl import config as configs
from slmctl.artifacts.artifact import Artifact
from slmctl.config import Source
from slmctl.deduplication import minhash, row_fingerprints
from slmctl.errors import DataError, GateError, UsageError
from slmctl.metrics import linear_baseline
from slmctl.metrics.statistics import wilson
from slmctl.sources import snapshot
from slmctl.stages.prepare import (
    data_set_files,
    linear_model,
    prepare,
    record_reader,
    report_findings,
)
from slmctl.stages.prepare.record_reader import RecordBatch
from slmctl.task.contract import Task
from slmctl.task.records import SPLITS, read_records

TEMPLATES = Path(__file__).parents[3] / "templates"
CLASSIFY = {"kind": "classify", "labels": "from-data", "system": tiny.SYSTEM}
TAIL = "if you are not the person whom this letter is meant for then tear it up at once"


@pytest.fixture(autouse=True)
def unfitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit no linear model of labels: that takes longer than all
    the rest, and has tests of its own.
    """
    monkeypatch.setattr(linear_baseline, "is_installed", lambda: False)


@pytest.fixture
def fitted(unfitted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_baseline, "is_installed", lambda: True)


@pytest.fixture
def run_on(tmp_path: Path) -> Any:
    """prepare on sources as the config has them."""

    def call(*sources: dict[str, Any], task: Any = CLASSIFY, **settings: Any) -> Prepared:
        return preparing.prepared(tmp_path, *sources, task=task, **settings)

    return call


@pytest.fixture
def run(run_on: Any, tmp_path: Path) -> Any:
    """prepare on pairs of text and category."""

    def call(pairs: list[tuple[str, str]], *, source: Any = None, **settings: Any) -> Prepared:
        path = tiny.write_csv(tmp_path / "tickets.csv", pairs)
        return run_on({"path": path, **COLUMNS, **(source or {})}, **settings)

    return call


@pytest.mark.usefixtures("forked_readers")
@pytest.mark.parametrize(
    "template", sorted(path.parent.name for path in TEMPLATES.glob("*/slmctl.yaml"))
)
def test_the_rows_of_every_template_are_taken(
    template: str, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    """What `slmctl init` writes is refused by no limit, least of
    all by that on what the splits share.
    """
    teacher.slmctl(tmp_path, "init", template, "desk")
    out = tmp_path / "out"
    out.mkdir()
    config = configs.load(tmp_path / "desk" / "slmctl.yaml").prepare
    sources = snapshot.gather(config.sources, tmp_path / "copies", config.limits)
    metrics = prepare.run(
        config.model_copy(update={"sources": sources}), base=artifacts["base"], out=out
    )
    assert metrics["rows_in"] >= 300
    assert len(read_records(out / "test.jsonl")) >= 40


def test_rows_in_are_rows_out_and_rejected_each_with_its_reason(run: Any) -> None:
    pairs = tiny.rows(200)
    text, label = pairs[0]
    other = next(name for name in tiny.WORDS if name != label)
    found = run(
        [*pairs, ("", "billing"), ("no category", ""), (text, label), (text.upper() + " !", other)]
    )
    kept = sum(len(records) for records in found.sides.values())
    assert found.metrics["rows_in"] == 204 == kept + len(found.rejected)
    places = [record.source["row"] for records in found.sides.values() for record in records]
    assert sorted([*places, *(row["source"]["row"] for row in found.rejected)]) == list(
        range(2, 206)
    )
    rules = {
        row["source"]["row"]: (row["rule"], row["reason"])
        for row in found.rejected
        if row["source"]["row"] > 201
    }
    assert rules == {
        202: ("empty input", "'text' is empty"),
        203: ("empty answer", "'category' is empty"),
        204: ("duplicate", "same input as tickets.csv line 2"),
        205: (
            "conflicting duplicate",
            f"same input as tickets.csv line 2, which has the answer '{label}'",
        ),
    }
    assert found.metrics["conflicts"]["pairs"] == 1
    assert found.metrics["conflicts"]["examples"][0]["answers"] == [label, other]


def test_a_label_outside_the_list_is_rejected_with_the_nearest(run: Any) -> None:
    task = {**CLASSIFY, "labels": list(tiny.WORDS)}
    found = run([*tiny.rows(200), ("a row by itself", "biling")], task=task)
    assert found.rejected[-1]["rule"] == "unknown label"
    assert "did you mean 'billing'?" in found.rejected[-1]["reason"]
    # a row with a new label was left out, and nothing was said of it
    assert (
        "! 1 row is left out for its label ('biling' is not one of the task's labels; did you mean "
        "'billing'?). Name a "
        "new label in task.labels to learn it, or rename it by task.labels.map."
    ) in report_findings.lines(found.metrics)


def test_the_split_does_not_depend_on_order_or_on_other_rows(run: Any) -> None:
    pairs = tiny.rows(200)
    first = run(pairs).side_of
    shuffled = random.Random(1).sample(pairs, len(pairs))
    assert run(shuffled).side_of == first
    more = run([*pairs, *tiny.rows(120, seed=9)]).side_of
    moved = {text for text, side in first.items() if more.get(text, side) != side}
    assert not moved


def test_groups_stay_together(run_on: Any, tmp_path: Path) -> None:
    with (tmp_path / "tickets.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "category", "customer"])
        writer.writerows(
            [text, label, f"C{k % 40}"] for k, (text, label) in enumerate(tiny.rows(300))
        )
    source = {"path": tmp_path / "tickets.csv", **COLUMNS, "group": "customer"}
    found = run_on(source)
    sides: dict[str, set[str]] = {}
    for split, records in found.sides.items():
        for record in records:
            sides.setdefault(str(record.group), set()).add(split)
    assert len(sides) == 40
    assert all(len(splits) == 1 for splits in sides.values())
    more = tiny.write_csv(
        tmp_path / "more.csv", [(f"{text} again", label) for text, label in tiny.rows(60)]
    )
    # a row without a group is none
    facts = run_on(source, {"path": more, **COLUMNS}).metrics["splits"]
    assert (facts["groups"], facts["largest_group"]) == (40, 8)
    # each label took its own share of a group, so a customer was in training and in the test
    splits = {"labels": {"billing": {"test": 0.4}}}
    section = {"sources": [source], "task": {"kind": "classify"}, "splits": splits}
    with pytest.raises(DataError, match=r"splits\.labels would tear groups of tickets\.csv apart"):
        run_on(source, splits=splits)
    with pytest.raises(DataError, match=r"splits\.labels would tear groups"):
        prepare.check(configs.PrepareConfig.model_validate(section))


def test_near_duplicates_of_held_out_rows_are_kept_out_of_training(run: Any) -> None:
    pairs = tiny.rows(200)
    held_out = [record.input for record in run(pairs).sides["test"]]
    variants = [
        (text + extra, "billing")
        for text in held_out[:6]
        for extra in (" so", " ok", " at", " by", " up", " to")
    ]
    found = run([*pairs, *variants])
    assert found.metrics["near_held_out"]["left_out"] > 0
    near = [row for row in found.rejected if row["rule"] == "near a held-out row"]
    assert len(near) == found.metrics["near_held_out"]["left_out"]
    references = [minhash.normalise(r.input) for split in SPLITS[1:] for r in found.sides[split]]
    # every pair compared, in place of the hashes that prepare trusts
    for record in found.sides["train"]:
        assert (
            max(minhash.ratio(minhash.normalise(record.input), other) for other in references)
            < 0.85
        )


SWAPPED = [(label, text) for text, label in tiny.rows(100)]


@pytest.mark.parametrize(
    ("pairs", "settings", "message", "hint"),
    [
        ([], {}, "holds no rows", ""),
        (tiny.rows(3), {}, "no rows are left for", ""),
        (
            tiny.rows(50),
            {"source": {"split": "test"}},
            r"no rows are left for 'train': 50 came in, 0 were left out \(none\)",
            "",
        ),
        (
            tiny.rows(50),
            {"source": {"output": "categry"}},
            r"has no column 'categry'; did you mean 'category'\?",
            "its columns: text, category",
        ),
        (
            [*tiny.rows(100), *[("", "billing")] * 5],
            {"max_rejected": "4%"},
            r"5 of 105 rows are unusable, more than max_rejected 4.0 %: 5 empty input",
            "",
        ),
        (
            [(text, "billing") for text, _ in tiny.rows(60)],
            {},
            "every usable row has the label 'billing', so there is nothing to tell apart",
            "",
        ),
        (
            SWAPPED,
            {},
            "the columns look swapped: 3 different inputs have 100 different labels",
            "exchange the columns of 'input' and 'output'",
        ),
        (
            SWAPPED,
            {"task": {"kind": "generate"}},
            r"left for 'calibration': 100 came in, 97 were left out \(97 conflicting duplicate\); "
            r"also, too few rows "
            r"are left: .* test 0 \(at least 10\)$",
            "are 'input' and 'output' swapped?",
        ),
        # each limit was a refusal of its own, and the next one came after the first was set
        (
            [*tiny.rows(30), *[("", "billing")] * 9],
            {},
            r"9 of 39 rows are unusable, .*; also, too few rows are left: train \d+ \(at least "
            r"30\)",
            "correct the rows, or --set prepare.max_rejected=24%; add rows, or for a try --set "
            "prepare.min_rows.train=",
        ),
        (
            tiny.rows(120),
            {"task": {**CLASSIFY, "descriptions": {"biling": "x"}}},
            "describes 'biling', which is no label; did you mean 'billing'",
            "task.descriptions",
        ),
    ],
)
def test_rows_that_no_model_could_learn_from_are_refused(
    run: Any, pairs: list[tuple[str, str]], settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        run(pairs, **settings)
    assert caught.value.code == 3
    assert hint in caught.value.hint


def test_the_contract_is_written(run: Any) -> None:
    descriptions = {"billing": "Money that was asked or taken."}
    task = Task.read(run(tiny.rows(120), task={**CLASSIFY, "descriptions": descriptions}).out)
    assert (task.kind, task.labels, task.system) == (
        "classify",
        tuple(sorted(tiny.WORDS)),
        tiny.SYSTEM,
    )
    assert (task.chat_template, task.end, task.descriptions) == (
        tiny.TEMPLATE,
        "<|im_end|>",
        descriptions,
    )
    assert "<|im_start|>" in task.special_tokens


def test_the_same_bytes_whatever_hash_seed_zone_locale_folder_and_home(
    tiny_run: Path, desk: Path
) -> None:
    first = next(tiny_run.glob("runs/prepared/*"))
    again = next(desk.glob("runs/prepared/*"))
    for path in sorted(again.iterdir(), reverse=True):
        path.unlink()
    again.rmdir()
    elsewhere = {
        "PYTHONHASHSEED": "4711",
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "LANG": "tr_TR.UTF-8",
    }
    env = tiny.environment(**elsewhere, HOME=str(desk))
    tiny.ok(tiny.slmctl(desk, "prepare", env=env, cwd="/"))
    names = {path.name for path in first.iterdir()} - {"manifest.json"}
    assert {path.name for path in again.iterdir()} - {"manifest.json"} == names
    for name in names:
        assert (again / name).read_bytes() == (first / name).read_bytes()


# What repeats, what contradicts


def test_numbers_make_another_question_and_markup_does_not(run: Any) -> None:
    pairs = [
        *tiny.rows(200),
        ("rate this book 4 of 6", "billing"),
        ("rate this book 5 of 6", "account"),
    ]
    found = run([*pairs, ("<b>Rate</b> this book: 5 of 6!", "account")], clean=["html"])
    assert found.metrics["duplicates"]["exact"] == 1  # equal after cleaning
    assert found.metrics["conflicts"]["pairs"] == 0


# such rows were left out as one question, or counted as a conflict
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("मैं घर जा रहा हूँ", "मैं घर जा रही हूँ"),
        ("มาที่นี่", "มาที่นี้"),
        ("ready at last 😡", "ready at last 😍"),
        ("☑ yes ☐ no", "☐ yes ☑ no"),
    ],
)
def test_a_vowel_sign_or_an_emoji_makes_another_question(run: Any, one: str, other: str) -> None:
    found = run([*tiny.rows(200), (one, "billing"), (other, "account")]).metrics
    assert (found["duplicates"]["exact"], found["conflicts"]["pairs"]) == (0, 0)


def test_signs_that_make_no_difference(run: Any) -> None:
    alike = ["Idée: 20 °C, 5 € ♥\ufe0f 👍🏽", "Ide\u0301e – 20 C … 5 ♥ 👍"]
    assert (
        run([*tiny.rows(200), *((text, "billing") for text in alike)]).metrics["duplicates"][
            "exact"
        ]
        == 1
    )


def test_duplicates_can_be_kept_each_under_its_own_id(run: Any) -> None:
    pairs = tiny.rows(200)
    found = run([*pairs, pairs[0], pairs[0]], duplicates={"exact": "list", "similarity": 1})
    ids = [record.id for records in found.sides.values() for record in records]
    assert len(set(ids)) == len(ids) == 202
    listed = [json.loads(line) for line in (found.out / "repeated.jsonl").read_text().splitlines()]
    first = {"file": "tickets.csv", "row": 2}
    assert [(line["rule"], line["source"]["row"], line["repeats"]) for line in listed] == [
        ("duplicate", 202, first),
        ("duplicate", 203, first),
    ]
    assert len({found.side_of[text] for text, _ in pairs[:1]}) == 1


def test_the_time_for_equal_ids_is_linear() -> None:
    """Each one tried all numbers before its own: 20,000 rows with
    one id took a minute and a half.
    """
    used = Counter[bytes]()
    ids = [data_set_files._unique_id(b"one", used) for _ in range(100_000)]
    assert (ids[:3], ids[-1], len(set(ids))) == (
        [b"one", b"one-2", b"one-3"],
        b"one-100000",
        100_000,
    )


def test_near_duplicates_can_be_dropped(run: Any) -> None:
    pairs = tiny.rows(200)
    variants = [(f"{text} {word}", label) for text, label in pairs[:5] for word in ("ok", "so")]
    listed = run([*pairs, *variants], duplicates={"similarity": 0.9})
    dropped = run([*pairs, *variants], duplicates={"near": "drop", "similarity": 0.9})
    assert listed.metrics["duplicates"]["near"] == dropped.metrics["duplicates"]["near"] >= 10
    assert (
        dropped.metrics["rejected_by_reason"]["near duplicate"]
        == dropped.metrics["duplicates"]["near"]
    )


@pytest.mark.parametrize(("word", "rule"), [("", "duplicate"), (" ok", "near a held-out row")])
def test_a_row_of_a_bound_test_set_stays_and_its_twin_in_training_goes(
    run_on: Any, tmp_path: Path, word: str, rule: str
) -> None:
    pairs = tiny.rows(200)
    train = tiny.write_csv(tmp_path / "train.csv", pairs)
    test = tiny.write_csv(
        tmp_path / "test.csv", [(text + word, label) for text, label in pairs[:20]]
    )
    found = run_on(
        {"path": train, **COLUMNS},
        {"path": test, **COLUMNS, "split": "test"},
        splits={"validation": 0, "calibration": 0, "test": 0},
        duplicates={"near": "drop", "similarity": 0.9},
    )
    assert (found.metrics["test"], found.metrics["rejected_by_reason"]) == (20, {rule: 20})
    assert {row["source"]["file"] for row in found.rejected if row["rule"] == rule} == {"train.csv"}


def test_a_cap_is_what_equal_questions_with_different_answers_leave(run: Any) -> None:
    pairs = tiny.rows(200)
    other = {label: next(name for name in tiny.WORDS if name != label) for label in tiny.WORDS}
    found = run([*pairs, *((text + "!", other[label]) for text, label in pairs[:10])])
    assert found.metrics["conflicts"]["pairs"] == 10
    assert found.metrics["conflicts"]["cap"] == pytest.approx(200 / 210, abs=1e-6)


def test_a_label_that_looks_like_a_slip_is_named(run: Any) -> None:
    slips = [("a row by itself", "biling"), ("another one alone", "Billing")]
    found = run([*tiny.rows(200), *slips], min_rows={"label": 0})
    assert [(t["label"], t["likely"]) for t in found.metrics["label_typos"]] == [
        ("Billing", "billing"),
        ("biling", "billing"),
    ]


# Limits


def test_a_run_of_words_in_common_with_training_is_measured_and_gated(run: Any) -> None:
    pairs = [(f"{text} {text[::-1]} {TAIL}", label) for text, label in tiny.rows(120)]
    sides = run(pairs, max_overlap=1).metrics["overlap"]["sides"]
    assert all(side["overlapping"] == side["measured"] > 0 for side in sides.values())
    with pytest.raises(
        GateError, match=r"share a run of words with training rows, more than max_overlap 25.0 %"
    ):
        run(pairs)


def test_the_share_of_overlap_names_the_rows_that_it_is_of(run: Any) -> None:
    # it read as one of all rows of the split, most of which were too short to measure
    pairs = tiny.rows(120)
    pairs = [
        (f"{text} {text[::-1]} {TAIL}" if k % 2 else text, label)
        for k, (text, label) in enumerate(pairs)
    ]
    with pytest.raises(
        GateError, match=r"of 'test' of 8 words and more \(100.0 %\) share a run of words"
    ):
        run(pairs)
    facts = run(pairs, max_overlap=1).metrics
    count = facts["overlap"]["sides"]["test"]["measured"]
    said = next(
        line for line in report_findings.notices(facts) if "word sequences" in line.text
    ).text
    assert count < facts["test"] and f"100.0 % of the {count} test rows of 8 words and more" in said


def test_a_side_may_be_empty_when_its_share_is_nothing(run: Any) -> None:
    found = run(tiny.rows(100), splits={"calibration": 0})
    assert found.metrics["calibration"] == 0
    assert (found.out / "calibration.jsonl").read_bytes() == b""


# Personal data


def test_personal_data_is_replaced_counted_and_nowhere_in_the_artifact(
    run: Any, tmp_path: Path
) -> None:
    address, card = "kim.doe@" + "brindlecove.test", "4111 1111 " + "1111 1111"
    pairs = [
        *tiny.rows(200),
        (f"write to {address} about it", "billing"),
        (f"my card {card} was charged", "billing"),
    ]
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    found = run(pairs, sensitive={"email": "pseudonymise", "pseudonym_key": key})
    whole = b"".join(path.read_bytes() for path in found.out.iterdir())
    assert address.encode() not in whole
    assert card.encode() not in whole
    assert "my card [CARD] was charged" in found.side_of
    assert found.metrics["sensitive_rows"] == 2
    assert {
        (e["kind"], e["column"], e["action"], e["count"]) for e in found.metrics["sensitive"]
    } == {
        ("email", "text", "pseudonymise", 1),
        ("card", "text", "redact", 1),
    }
    held = row_fingerprints.Fingerprints(found.out / row_fingerprints.FILENAME)
    for text, trained in (
        (f"my card {card} was charged", False),
        ("my card [CARD] was charged", True),
    ):
        (match, *_) = held.look_up([row_fingerprints.query_fingerprint(text)], threshold=1.0)
        # a trace finds the row by both of its texts
        assert (match.exact, match.as_trained) == (True, trained)


def test_the_system_prompt_is_served_as_it_is_learned(run: Any) -> None:
    task = {**CLASSIFY, "system": "Name the queue, or ask kim.doe@" + "brindlecove.test."}
    found = run(tiny.rows(100), task=task, sensitive={"email": "redact"})
    assert {record.messages[0]["content"] for record in found.sides["test"]} == {
        "Name the queue, or ask [EMAIL]."
    }
    assert Task.read(found.out).system == "Name the queue, or ask [EMAIL]."


def test_a_mark_in_answers_is_said_with_the_key_to_change(run: Any) -> None:
    pairs = [
        (f"{text} number {k}", f"see card 4111 1111 {'1111 1111' if k < 3 else 'x'}")
        for k, (text, _) in enumerate(tiny.rows(200))
    ]
    facts = run(pairs, task={"kind": "generate"}).metrics
    (said,) = (notice.text for notice in report_findings.notices(facts) if "mark" in notice.text)
    assert "(card in 3 answers)" in said and "prepare.sensitive.card: keep" in said


def test_a_row_with_personal_data_can_be_kept_with_a_mark_dropped_or_refuse_the_run(
    run: Any,
) -> None:
    text = "write to kim.doe@" + "brindlecove.test about it"
    pairs = [*tiny.rows(200), (text, "billing")]
    records = [record for records in run(pairs).sides.values() for record in records]
    assert [record.input for record in records if record.sensitive] == [text]
    assert run(pairs, sensitive={"email": "drop"}).metrics["rejected_by_reason"] == {"sensitive": 1}
    with pytest.raises(
        DataError, match=r"tickets.csv line 202 holds what the config refuses: email"
    ):
        run(pairs, sensitive={"email": "refuse"})


# Cleaning


def test_texts_are_cleaned_and_counted_and_stay_in_their_splits(run: Any) -> None:
    pairs = tiny.rows(200)
    raw = [
        (f"<p>{text}</p>\n\nBest regards\nKim" if k % 4 else text, label)
        for k, (text, label) in enumerate(pairs)
    ]
    before = run(raw)
    clean = {"clean": ["signatures", "html"], "replace": [{"pattern": "shop", "with": "store"}]}
    found = run(raw, **clean)
    assert set(found.side_of) <= {text.replace("shop", "store") for text, _ in pairs}
    shops = sum("shop" in text for text, _ in pairs)
    assert found.metrics["cleaning"] == [
        {"step": "html", "rows": 150},
        {"step": "signatures", "rows": 150},
        {"step": "replace shop", "rows": shops},
    ]
    sides = {record.id: split for split, records in before.sides.items() for record in records}
    assert {
        record.id: split for split, records in found.sides.items() for record in records
    } == sides
    task = Task.read(found.out)
    assert (task.clean, task.cleaning_steps[-1]) == (("signatures", "html"), "replace shop")
    record = found.sides["train"][0]
    text = raw[record.source["row"] - 2][0]
    assert task.prompt(task.messages(task.cleaned_text(text)[0])) == task.prompt(
        record.prompt_messages
    )
    assert "replace shop" in (found.out / "report.html").read_text()


def test_labels_are_renamed_counted_and_one_that_never_occurs_is_told(run: Any) -> None:
    pairs = tiny.rows(200)
    slips = [
        (text, "biling" if label == "billing" and k < 60 else label)
        for k, (text, label) in enumerate(pairs)
    ]
    task = {**CLASSIFY, "labels": {"map": {"biling": "billing", "delivry": "delivery"}}}
    found = run(slips, task=task)
    assert Task.read(found.out).labels == tuple(sorted(tiny.WORDS))
    assert found.metrics["renamed_labels"] == [
        {"label": "biling", "to": "billing", "rows": sum(label == "biling" for _, label in slips)},
        {"label": "delivry", "to": "delivery", "rows": 0},
    ]
    assert (
        "No row has the label “delivry” that task.labels.map renames"
        in (found.out / "report.html").read_text()
    )
    named = run(
        slips,
        task={**CLASSIFY, "labels": {"names": list(tiny.WORDS), "map": {"biling": "billing"}}},
    )
    assert not named.rejected


# What cannot be trained on or measured


def test_too_few_rows_of_a_split_end_the_stage_with_the_counts(run: Any) -> None:
    with pytest.raises(
        GateError, match=r"too few rows are left: train 2\d \(at least 30\).*; 40 came in"
    ) as caught:
        run(tiny.rows(40))
    assert "--set prepare.min_rows.train=2" in caught.value.hint
    assert caught.value.code == 5
    found = run(tiny.rows(40), min_rows={"train": 20, "validation": 1, "test": 1})
    assert found.metrics["train"] < 30
    with pytest.raises(GateError, match=r"too few rows are left: test \d+ \(at least 100\)"):
        run(tiny.rows(200), min_rows={"test": 100})
    # nobody asked for some
    run(tiny.rows(200), min_rows={"calibration": 100}, splits={"calibration": 0})


def test_a_label_whose_rows_are_nearly_one_text_is_told_where_they_lie(
    run: Any, capsys: Any
) -> None:
    """'Rechnung' 0, and the file held 82 rows of it: they differed in a
    number, so that one split took them all.
    """
    others = tiny.rows(200)

    def alike(word: str) -> list[tuple[str, str]]:
        return [
            (f"please send the invoice {k} of our {word} order again", "receipt")
            for k in range(100, 130)
        ]

    def split_of(word: str) -> str:
        return str(run([*others, *alike(word)], min_rows={"label": 0}).side_of[alike(word)[0][0]])

    word = next(word for word in tiny.FILLER.split() if split_of(word) == "test")
    capsys.readouterr()
    with pytest.raises(
        GateError,
        match=r"'receipt' 0 \(30 rows of nearly one text, or of one group, lie together in t",
    ):
        run([*others, *alike(word)])
    found = run([*others, *alike(word)], min_rows={"label": 0})
    assert list(found.metrics["together"]["receipt"]) == [30, "test"]
    assert (
        "“receipt” (0; 30 rows of nearly one text, or of one group, lie together in test)"
        in capsys.readouterr().err
    )
    assert "together" not in run(others).metrics


def test_a_label_without_training_rows_ends_the_stage_with_its_likely_spelling(run: Any) -> None:
    pairs = [*tiny.rows(200), ("a row by itself", "biling")]
    splits = {"labels": {"biling": {"validation": 0.3, "calibration": 0.2, "test": 0.3}}}
    alone = next(
        text
        for text in (f"a row by itself {word}" for word in tiny.FILLER.split())
        if run([*pairs[:-1], (text, "biling")], splits=splits, min_rows={"label": 0}).side_of[text]
        != "train"
    )
    with pytest.raises(
        GateError, match=r"1 of 4 labels have fewer than 1 training rows: 'biling' 0 \(perhaps 'bil"
    ) as caught:
        run([*pairs[:-1], (alone, "biling")], splits=splits)
    assert (
        caught.value.hint
        == "task: {labels: {map: {biling: billing}}}; or --set prepare.min_rows.label=0"
    )


def test_columns_that_look_swapped_are_the_first_finding(run: Any) -> None:
    exact, alone = {"exact": "keep", "similarity": 1}, dict.fromkeys(SPLITS[1:], 0)
    found = run(SWAPPED, task={"kind": "generate"}, duplicates=exact, splits=alone)
    assert found.metrics["swapped"] == {"inputs": 3, "answers": 100}
    assert report_findings.lines(found.metrics)[0].startswith(
        "! The columns look swapped: 3 different inputs have 100"
    )


def test_a_refused_data_set_leaves_every_pair_and_its_page(stages: Forks, desk: Path) -> None:
    rows = [(f"{text} {text[::-1]} {TAIL}", label) for text, label in tiny.rows(120)]
    tiny.write_csv(desk / "tickets.csv", [*rows, ("", "billing")])
    refused = stages.run(desk, "prepare")
    assert refused.returncode == 5
    (page,) = desk.glob("runs/prepared/.refused-*/report.html")
    assert f"hint: see {page}; is a signature in every text?" in refused.stderr
    pairs = [json.loads(line) for line in (page.parent / "overlap.jsonl").read_text().splitlines()]
    assert len(pairs) > 10
    assert {pair["split"] for pair in pairs} <= set(SPLITS[1:])
    assert '"rule": "empty input"' in (page.parent / "rejected.jsonl").read_text()
    assert {path.name for path in page.parent.iterdir()} == {
        "report.html",
        "overlap.jsonl",
        "rejected.jsonl",
        "repeated.jsonl",
    }
    assert "of words" in refused.stderr
    assert (
        f"{page.parent.relative_to(desk)}  (the report of a stage that refused its input)"
        in stages.run(desk, "gc").stdout
    )
    gates = "gates=[{metric: accuracy, model: Q8_0, against: adapter, max_drop: 0.02}]"
    made = stages.run(desk, "prepare", "--set", "prepare.max_overlap=1", "--set", gates)
    assert made.returncode == 0, made.stderr
    assert (
        "rows are too few for the gate max_drop 0.02 in accuracy of Q8_0 against adapter"
        in made.stderr
    )
    assert f"report: {made.stdout.strip()}/report.html" in made.stderr
    assert not page.parent.exists()  # what was refused is settled


# What is known before training


def test_a_linear_model_says_what_must_be_beaten(fitted: None, run: Any) -> None:
    found = run(tiny.rows(600))
    linear = found.metrics["linear"]
    train, asked = found.sides["train"], found.sides["validation"]
    assert (linear["rows"], linear["trained_on"], linear["train"]) == (
        len(asked),
        len(train),
        len(train),
    )
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    learned, labels = words.fit_transform([r.input for r in train]), [r.answer for r in train]
    given = words.transform([r.input for r in asked])
    right = max(
        sum(
            LogisticRegression(C=c, max_iter=2000).fit(learned, labels).predict(given)
            == [r.answer for r in asked]
        )
        for c in (1.0, 10.0, 100.0)
    )
    assert linear["right"] == right
    assert linear["accuracy"] == pytest.approx(right / len(asked), abs=1e-6)
    assert linear["interval"] == pytest.approx(wilson(right, len(asked)), abs=1e-6)
    (said,) = report_findings.linear_score(found.metrics)
    assert said in " ".join((found.out / "report.html").read_text().split())
    assert report_findings.lines(found.metrics)[-2] == said


def test_a_linear_model_of_many_rows_is_that_of_a_sample(
    fitted: None, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_model, "WORK", 300)
    linear = run(tiny.rows(600)).metrics["linear"]
    assert linear["trained_on"] == 100 < linear["train"]


def test_what_most_rows_were_left_out_for_is_named() -> None:
    reasons = {"duplicate": 13, "near a held-out row": 185}
    facts = reported.bare_prepare_facts(rows_in=475, rejected=198, rejected_by_reason=reasons)
    said = "41.7 % of the rows were left out, most of them as “near a held-out row” (185)."
    assert any(said in line for line in report_findings.lines(facts))


def test_the_terminal_has_six_lines_of_findings_and_the_worst_first(run: Any) -> None:
    facts = reported.prepare_facts()
    lines = report_findings.lines(facts)
    assert len(lines) == 6
    assert lines[0] == "! The columns look swapped: 3 different inputs have 90 different answers."
    assert lines[1].startswith("! 12 findings of personal data")
    assert lines[2].startswith(
        "! A mark stands in place of a value of answers (email in 2 answers)"
    )
    assert lines[3] == "! 9 more things to look at, in the report"
    assert lines[4].startswith(
        "A linear model (TF-IDF), trained on 100 of the 213 training rows, gets 74.1 %"
    )
    assert lines[-1] == "With 30 test rows, a score of 90 % means 74.4 % to 96.5 % (95 % interval)."


# Several files and sheets as one source


def test_a_folder_is_one_source(
    run_on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, exports = tiny.rows(200), tmp_path / "exports"
    (exports / "may").mkdir(parents=True)
    tiny.write_csv(exports / "b.csv", pairs[:100])
    tiny.write_csv(exports / "may" / "a.csv", [*pairs[100:], ("", "billing")])
    (exports / "may" / "c.csv").write_bytes(
        "category;text\r\nbilling;Ihre größte Frage – 5 €\r\n".encode("cp1252")
    )
    (exports / "none.csv").write_text("text,category\n")
    found = run_on({"path": exports, **COLUMNS})
    assert [row["source"] for row in found.rejected] == [{"file": "may/a.csv", "row": 102}]
    plain, guessed = (
        "CSV in UTF-8, separated by commas",
        "CSV in CP1252 (a guess), separated by semicolons",
    )
    assert [(one["file"], one["form"], one["rows_in"]) for one in found.metrics["sources"]] == [
        ("b.csv", plain, 100),
        ("may/a.csv", plain, 101),
        ("may/c.csv", guessed, 1),
        ("none.csv", plain, 0),
    ]
    assert "Ihre größte Frage – 5 €" in found.side_of
    said = capsys.readouterr().err
    assert "may/c.csv is taken for CP1252; to be certain: encoding: cp1252" in said
    (exports / "c.csv").write_text("text,kind\na,b\n")
    with pytest.raises(
        DataError, match=r"c\.csv lacks the column 'category', unlike b\.csv"
    ) as caught:
        run_on({"path": exports, **COLUMNS})
    assert caught.value.hint.endswith("the columns of c.csv: text, kind")
    (exports / "c.csv").write_text("text,category,kind\na,b,c\n")
    with pytest.raises(DataError, match=r"c\.csv has a column 'kind', unlike b\.csv"):
        run_on({"path": exports, **COLUMNS})


@pytest.mark.usefixtures("forked_readers")
def test_rows_of_several_sheets_keep_their_sheet_and_row(
    run_on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tiny.rows(200)

    def sheet(start: int, pairs: list[tuple[str, str]]) -> str:
        cells = [("text", "category"), *pairs]
        return "".join(workbooks.row(start + k, *pair) for k, pair in enumerate(cells))

    sheets = {
        "May": workbooks.row(1, "Tickets of May") + sheet(3, [*pairs[:100], ("", "billing")]),
        "June": sheet(1, [*pairs[100:], ("no category", "")]),
        "Notes": "",
    }
    book = workbooks.write_xlsx(tmp_path / "book.xlsx", sheets)
    found = run_on({"path": book, "sheet": "*", **COLUMNS})
    places = [{"file": "book.xlsx:May", "row": 104}, {"file": "book.xlsx:June", "row": 102}]
    assert [row["source"] for row in found.rejected] == places
    assert (
        "book.xlsx:May has its header in row 3; what is above it is no row"
        in capsys.readouterr().err
    )
    assert [one["rows_in"] for one in found.metrics["sources"]] == [101, 101, 0]
    named = run_on({"path": book, "sheet": ["June"], "name": "crm", "header_row": 1, **COLUMNS})
    assert [row["source"] for row in named.rejected] == [{"file": "crm:June", "row": 102}]
    with pytest.raises(UsageError, match=r"book\.xlsx has no sheet 'July'"):
        run_on({"path": book, "sheet": ["June", "July"], **COLUMNS})


# Conversations


def test_conversations_of_several_turns_with_tools(run_on: Any, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "track", "parameters": {}}}
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": text},
                {"role": "assistant", "content": "Which order?", "weight": 0},
                {"role": "user", "content": f"number {k}"},
                {"role": "assistant", "content": f"Order {k} is {label}."},
            ],
            "tools": [tool],
        }
        for k, (text, label) in enumerate(tiny.rows(80))
    ]
    rows.append({"messages": [rows[0]["messages"][1], {"role": "assistant", "tool_calls": [tool]}]})
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run_on({"path": path}, task={"kind": "generate"})
    assert found.metrics["sources"][0]["shape"] == "messages"
    # the tiny base's template writes none
    assert found.metrics["rejected_by_reason"] == {"tool calls": 1}
    record = found.sides["train"][0]
    assert record.tools == (tool,)
    assert [message.get("weight") for message in record.messages] == [None, None, 0, None, None]
    assert record.input.count("\n") == 2  # every message before the answer but the system's
    assert Task.read(found.out).system == "Be brief."  # every row brought the same


def test_a_tool_call_becomes_the_text_that_the_template_writes() -> None:
    template = (
        "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for m in messages "
        "%}<|im_start|>{{ m.role }}\n"
        "{% if m.tool_calls %}{% for c in m.tool_calls %}CALL {{ c.function | tojson }}{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    task = Task("generate", template, "<|im_end|>", special_tokens=("<|im_end|>",))
    call = {
        "type": "function",
        "function": {"name": "track", "arguments": {"order": "<|im_end|>7"}},
    }
    before = [{"role": "user", "content": "Where?"}]
    said = task.with_calls_as_text(
        before, {"role": "assistant", "content": "", "tool_calls": [call], "weight": 1}, [call]
    )
    assert said == {
        "role": "assistant",
        "weight": 1,
        "content": 'CALL {"name": "track", "arguments": {"order": "<\u200b|im_end|>7"}}',
    }
    assert task.prompt(before, tools=[call]).startswith("TOOLS [{")


# A template that wants user and assistant in turns, as those of Mistral and Gemma do
TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ "
    "raise_exception('roles must "
    "alternate') }}{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def reading(
    artifacts: dict[str, Artifact], source: Source, *rows: dict[str, Any], **task: Any
) -> RecordBatch:
    """The rows of one source, by a base with a template of its own."""
    contract = Task(**{"kind": "generate", "chat_template": TURNS, "end": "<|im_end|>", **task})
    return preparing.read(source, list(rows), contract, artifacts["base"].path / "tokenizer.json")


def test_a_conversation_that_the_template_refuses_is_one_rejected_row(
    artifacts: dict[str, Artifact],
) -> None:
    user, answer = (
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "On its way."},
    )
    rows = ([user, answer], [user, user, answer], [user, answer, user, answer])
    batch = reading(artifacts, Source(path="a.jsonl"), *({"messages": row} for row in rows))
    assert batch.measures.numbers.tolist() == [1, 3]
    assert {len(values) for values in batch.measures} == {2}
    assert [(row.number, row.rule) for row in batch.rejected] == [(2, "chat template")]
    assert "roles must alternate" in batch.rejected[0].reason


def test_a_number_in_a_json_answer_that_is_personal_data_marks_its_row(
    artifacts: dict[str, Artifact],
) -> None:
    # it stays a number, so only the mark keeps the row from an endpoint
    card = int("4111" + "1111" * 3)
    rows = [{"input": "a", "output": json.dumps({"paid": value})} for value in (card, 4)]
    contract = Task(kind="extract", schema={}, chat_template=TURNS, end="<|im_end|>")
    source, tokenizer = (
        Source(path="a.csv", input="input", output="output"),
        artifacts["base"].path / "tokenizer.json",
    )
    batch = preparing.read(source, rows, contract, tokenizer, card="redact")
    assert [json.loads(line).get("sensitive", False) for line in batch.lines] == [True, False]


@pytest.mark.parametrize(
    ("answer", "kept", "is_marked"),
    [
        (
            {"password": "hunter2!x", "note": "hunter2!x"},
            {"password": "[SECRET]", "note": "hunter2!x"},
            False,
        ),
        (
            {"access": {"passwords": ["hunter2!x", "Summer24"]}},
            {"access": {"passwords": ["[SECRET]"] * 2}},
            False,
        ),
        ({"pin": 4711}, {"pin": 4711}, True),
        (
            {"contacts": {"jane@brindlecove.test": "CEO"}},
            {"contacts": {"jane@brindlecove.test": "CEO"}},
            True,
        ),
        ({"total": "4711", "city": "Ulm"}, {"total": "4711", "city": "Ulm"}, False),
    ],
)
def test_a_value_in_a_json_answer_is_searched_behind_its_key_and_a_key_too(
    answer: dict[str, Any], kept: dict[str, Any], is_marked: bool
) -> None:
    contract = Task(kind="extract", schema={}, chat_template=TURNS, end="<|im_end|>")
    source, rows = (
        Source(path="a.csv", input="input", output="output"),
        [{"input": "a", "output": json.dumps(answer)}],
    )
    batch = preparing.read(source, rows, contract, secret="redact", email="redact")
    record = json.loads(batch.lines[0])
    assert (json.loads(record["messages"][-1]["content"]), record.get("sensitive", False)) == (
        kept,
        is_marked,
    )
    if kept != answer or is_marked:
        with pytest.raises(DataError, match="holds what the config refuses"):
            preparing.read(source, rows, contract, secret="refuse", email="refuse")


@pytest.mark.parametrize("depth", [99, 101, 300, 900, 5000])
def test_json_in_a_cell_that_is_nested_deeply_costs_its_row(
    artifacts: dict[str, Artifact], depth: int
) -> None:
    nested = "[" * depth + "]" * depth
    deep = {
        "input": "a",
        "output": nested,
        "messages": f'[{{"role": "user", "content": {nested}}}]',
    }
    source = Source(path="a.csv", input="input", output="output")
    batch = reading(artifacts, source, deep, kind="extract", schema={})
    assert [row.rule for row in batch.rejected] == (["answer is not JSON"] if depth > 100 else [])
    batch = reading(artifacts, Source(path="a.csv"), {"messages": deep["messages"]})
    assert len(batch.rejected) == 1


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"allOf": [' * 900 + "{}" + "]}" * 900, "nested too deeply"),
        ("[]", "not a JSON Schema"),
        ('{"type": 3}', "not a JSON Schema"),
        ("{", "not a readable JSON Schema"),
        (" " * 2_000_000 + "{}", "more than 1 MiB"),
        (
            '{"type": "array", "uniqueItems": true}',
            "schema.json: no grammar can be made .*uniqueItems",
        ),
        ('{"type": "array", "items": {"$ref": "#"}, "minItems": 1}', "schema.json: .*gramma"),
        (
            '{"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object", '
            '"additionalProperties": false}',
            "schema.json: .*gramma",
        ),
    ],
)
def test_a_schema_that_is_none_is_refused(run: Any, tmp_path: Path, schema: str, says: str) -> None:
    (tmp_path / "schema.json").write_text(schema)
    with pytest.raises(DataError, match=says):
        run(tiny.rows(20), task={"kind": "extract", "schema": tmp_path / "schema.json"})


def test_answers_that_the_schema_forbids_are_told(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"fee": {"type": "number"}}
    schema = {
        "type": "object",
        "properties": fields,
        "required": ["fee"],
        "additionalProperties": False,
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    pairs = [
        (text, json.dumps({"fee": k if k % 100 else "30 EUR"}))
        for k, (text, _) in enumerate(tiny.rows(200))
    ]
    run(pairs, task={"kind": "extract", "schema": tmp_path / "schema.json"})
    assert (
        "2 of 200 answers do not satisfy the schema, and no model may write them: tickets"
        in capsys.readouterr().err
    )


# Place, time and workers change nothing


def test_workers_change_nothing(
    run_on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # so that a small data set is read by workers too
    monkeypatch.setattr(record_reader, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(record_reader, "BATCH", 30)
    path = tiny.write_csv(
        tmp_path / "tickets.csv", [*tiny.rows(300), ("", "billing"), ("x@" + "y.test", "billing")]
    )
    made = []
    for workers in (1, 2):
        found = run_on({"path": path, **COLUMNS}, workers=workers)
        made.append((found.metrics, {file.name: file.read_bytes() for file in found.out.iterdir()}))
    assert made[0] == made[1]


def test_explain_prints_mapping_and_records_and_writes_nothing(stages: Forks, desk: Path) -> None:
    before = sorted(desk.rglob("*"))
    shown = tiny.ok(stages.run(desk, "prepare", "--explain"))
    assert sorted(desk.rglob("*")) == before
    assert "tickets.csv: columns, since the config names the columns" in shown
    assert shown.count("<|im_start|>assistant") == 3
    first = tiny.rows()[0]
    assert first[0] in shown
    assert f"  | {first[1]}<|im_end|>" in shown


def test_explain_needs_no_base(stages: Forks, desk: Path) -> None:
    for path in desk.glob("runs/base/*"):
        shutil.rmtree(path)
    text, label = tiny.rows()[0]
    raw = tiny.write_csv(desk / "tickets.csv", [(f"<p>{text}</p>", label)])
    shown = tiny.ok(stages.run(desk, "prepare", "--explain", "--set", "prepare.clean=[html]"))
    assert raw.exists()
    assert "no base is there yet (slmctl pull), so records are shown turn by turn" in shown
    assert f"  | user: {text}\n  | assistant: {label}" in shown


def test_rows_that_are_longer_than_common_limits_are_counted_and_shown(run: Any) -> None:
    found = run(
        [*tiny.rows(200), *((f"{text} " * 60, label) for text, label in tiny.rows(40, seed=5))]
    )
    longer = found.metrics["tokens"]["longer_than"]
    assert longer["256"] > 0
    assert f"{longer['256']} over 256" in (found.out / "report.html").read_text()
