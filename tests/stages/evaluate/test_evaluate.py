"""evaluate: what goes into a report, and what its reader is told
first. Its figures are in test_recompute.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from support import teacher, tiny
from support.forks import Forks

from slmctl.artifacts.artifact import Artifact, FileEntry, Manifest, load
from slmctl.artifacts.json_lines import JsonLines
from slmctl.config import Choose, EvaluateConfig, Gate, MachinePrices, parse, recipe
from slmctl.deduplication import row_fingerprints
from slmctl.errors import DataError, GateError, UsageError
from slmctl.metrics import gates
from slmctl.metrics.statistics import wilson
from slmctl.pipeline.graph import Project
from slmctl.production.review.pairs import PairDecision
from slmctl.reports import scoreboard
from slmctl.stages.evaluate import evaluate
from slmctl.stages.evaluate.model_selection import break_even
from slmctl.task.contract import Task
from slmctl.task.records import Record, write_jsonl

LABELS = ("a", "b", "c", "d")


def task_of(kind: str) -> Task:
    schema = {"type": "object"} if kind == "extract" else None
    return Task(kind, "", "", labels=LABELS if kind == "classify" else (), schema=schema)


def records_of(answers: Sequence[str], inputs: Sequence[str] = (), **more: Any) -> list[Record]:
    return [
        Record(
            id=f"r{k}",
            messages=(
                {"role": "user", "content": inputs[k] if inputs else f"input {k}"},
                {"role": "assistant", "content": answer},
            ),
            source={"file": "x.csv", "row": k + 1},
            sensitive=k in more.get("sensitive", ()),
            group=more["groups"][k] if "groups" in more else None,
        )
        for k, answer in enumerate(answers)
    ]


def line(k: int, expected: str, answer: str | dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"r{k}",
        "expected": expected,
        **(answer if isinstance(answer, dict) else {"answer": answer}),
    }


@pytest.fixture
def report(tmp_path: Path) -> Any:
    """A report on made-up answers of made-up models, and where it lies."""

    def call(
        kind: str,
        wanted: list[str],
        given: dict[str, Sequence[Any]],
        *,
        train: list[str] | None = None,
        config: EvaluateConfig | None = None,
        facts: dict[str, dict[str, Any]] | None = None,
        validation: dict[str, Sequence[Any]] | None = None,
        released: Artifact | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        prepared = tmp_path / "prepared"
        prepared.mkdir(exist_ok=True)
        task_of(kind).write(prepared)
        for split, answers in (
            ("test", wanted),
            ("validation", wanted),
            ("train", train or wanted),
        ):
            write_jsonl(
                prepared / f"{split}.jsonl", (r.to_json() for r in records_of(answers, **more))
            )

        def predictions(split: str, answers: dict[str, Sequence[Any]]) -> list[Artifact]:
            made = []
            for place, (name, texts) in enumerate(answers.items()):
                folder = tmp_path / f"{split}-{name}"
                folder.mkdir(exist_ok=True)
                write_jsonl(
                    folder / "predictions.jsonl",
                    (
                        line(k, expected, answer)
                        for k, (expected, answer) in enumerate(
                            itertools.zip_longest(wanted[: len(texts)], texts)
                        )
                    ),
                )
                known = {
                    "model": name,
                    "kind": "gguf",
                    "split": split,
                    "size": 9 - place,
                    "sha256": name,
                    "latency_ms": {"median": 1.0, "p95": 2.0, "n": 1},
                    "rows_per_s": 2.0,
                    "prompt_lists_labels": False,
                }
                made.append(wrap(folder, "predictions", known | (facts or {}).get(name, {})))
            return made

        (tmp_path / "out").mkdir(exist_ok=True)
        return evaluate.run(
            config or EvaluateConfig(),
            predictions=predictions("test", given),
            prepared=wrap(prepared, "prepared", {}),
            out=tmp_path / "out",
            validation=predictions("validation", validation) if validation else None,
            released=released,
        )

    return call


def wrap(folder: Path, kind: str, facts: dict[str, Any]) -> Artifact:
    files = tuple(
        FileEntry(path.name, path.stat().st_size, "") for path in sorted(folder.iterdir())
    )
    return Artifact(
        folder, Manifest(kind, "test/1", f"sha256:{folder.name}", "", {}, {}, files, facts)
    )


def rows_of(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    head, *rows = [
        json.loads(text) for text in (folder / "out" / "rows.jsonl").read_text().splitlines()
    ]
    return head, rows


WANTED = ["a", "b", "c", "a", "a", "b", "c", "c", "a", "b"]
GIVEN = ["a", "b", "a", "a", " c\n", "b", "c", "nonsense", "a", "a"]


@pytest.mark.parametrize(
    ("said", "others", "remarks"),
    [
        (
            "wwwwwwww",
            0,
            [
                "People preferred Q8_0 to base in 8 of 8 decided pairs, and found 0 alike: it wins "
                "100.0 % "
                "(58.2 % to 100.0 %), more than chance (sign test, p=0.0078)."
            ],
        ),
        (
            "wwls-n",
            1,
            [
                "People preferred Q8_0 to base in 2 of 3 decided pairs, and found 2 alike: it wins "
                "60.0 % "
                "(11.6 % to 96.6 %), which may be chance (sign test, p=1); about 65 more pairs "
                "like these would "
                "decide.",
                "1 decision on pairs is about other answers than those measured here, and does not "
                "count.",
            ],
        ),
        (
            "lwlw",
            0,
            [
                "People preferred Q8_0 to base in 2 of 4 decided pairs, and found 0 alike: it wins "
                "50.0 % "
                "(6.8 % to 93.2 %), which may be chance (sign test, p=1); more such pairs would "
                "not decide."
            ],
        ),
        (
            "",
            2,
            [
                "2 decisions on pairs are about other answers than those measured here, and do not "
                "count."
            ],
        ),
    ],
)
def test_judged_pairs_are_told(
    report: Any, tmp_path: Path, said: str, others: int, remarks: list[str]
) -> None:
    models = ("sha256:test-Q8_0", "sha256:test-base")
    words = {"w": "first", "l": "second", "s": "same", "n": "neither", "-": "skipped"}
    with JsonLines(tmp_path / "pairs.jsonl") as stream:
        for k, word in enumerate(said):
            stream.append(PairDecision(f"r{k}", "12:00", "ann", words[word], models).to_json())  # type: ignore[arg-type]
        for k in range(others):
            stream.append(
                PairDecision(
                    f"r{k}", "12:00", "ann", "first", (models[0], "sha256:older")
                ).to_json()
            )
    answers = [f"{text} it is" for text in WANTED]
    made = report(
        "generate",
        WANTED,
        {"Q8_0": WANTED[:8] + answers[8:], "base": answers},
        facts={"base": {"kind": "base"}},
        config=EvaluateConfig(pairs=tmp_path / "pairs.jsonl"),
    )
    assert [each for each in made["remarks"] if "pairs" in each] == remarks
    assert [entry["equal"] for entry in made["judged"]["entries"]] == [2] * bool(said)
    table = (tmp_path / "out" / "report.md").read_text()
    assert ("| Q8_0 | base | 100.0 % | 58.2 % to 100.0 % | 8 | 0 | 0 | 0 | 0.0078 |" in table) is (
        said == "w" * 8
    )


def test_pairs_that_nobody_has_judged_yet_are_no_part_of_a_recipe(tmp_path: Path) -> None:
    text = "project: desk\nbase: ./base\ntask: {kind: generate}\n"
    stages = [
        Project(tmp_path, parse(text + more, root=tmp_path)).stage("evaluate")
        for more in ("", "evaluate: {pairs: pairs.jsonl}\n")
    ]
    assert recipe(stages[0].completed(stages[0].settings)) == recipe(
        stages[1].completed(stages[1].settings)
    )
    assert (
        "nobody" not in stages[0].checks()["pairs"]()
        and "slmctl review --pairs" in stages[1].checks()["pairs"]()
    )
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    assert recipe(stages[1].completed(stages[1].settings))["pairs"].startswith("sha256:")
    assert stages[1].checks()["pairs"]() == ""


def test_a_model_without_confidences_has_no_calibration(report: Any) -> None:
    sure = [{"answer": text, "confidence": 0.6} for text in GIVEN]
    unsure = [*sure[1:], {"answer": "a", "confidence": None}]
    found = report("classify", WANTED, {"sure": sure, "unsure": unsure})["models"]
    assert found["unsure"]["calibration"] is None
    assert "ece" not in found["unsure"]["metrics"]
    assert found["sure"]["calibration"]["bins"] == [
        {"low": 0.6, "high": 0.666667, "n": 10, "confidence": 0.6, "accuracy": 0.6}
    ]
    assert found["sure"]["metrics"]["ece"] == pytest.approx(0.0, abs=1e-6)
    assert found["sure"]["metrics"]["brier"] == pytest.approx(0.6 * 0.16 + 0.4 * 0.36, abs=1e-6)


def test_the_focus_is_what_would_ship(report: Any) -> None:
    both = {"Q8_0": GIVEN, "Q4_0": GIVEN}
    assert report("classify", WANTED, both)["focus"] == "Q4_0"  # the smallest file
    kinds = {"Q8_0": {"kind": "base"}, "Q4_0": {"kind": "adapter"}}
    assert report("classify", WANTED, both, facts=kinds)["focus"] == "Q4_0"
    kinds = {"Q8_0": {"kind": "base"}, "Q4_0": {"kind": "endpoint", "size": None}}
    assert report("classify", WANTED, both, facts=kinds)["focus"] == "Q8_0"


# What a reader is told first


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("b", "the baseline is the cheaper and better choice."), ("a", "as good, and cheaper.")],
)
def test_a_baseline_that_wins_or_is_as_good_is_said_first(
    report: Any, answer: str, verdict: str
) -> None:
    found = report("classify", ["a"] * 10, {"Q8_0": [answer] * 10}, train=["a"] * 3 + ["b"])
    assert found["remarks"][0].endswith(verdict)
    assert found["remarks"][-1] == "Only 10 rows were measured: the intervals are wide."


def test_the_linear_baseline_that_wins_is_said_first(report: Any) -> None:
    wanted = ["a", "b"] * 20
    words = ["parcel late", "refund invoice"] * 20
    bad = ["b", *wanted[1:30], *["a"] * 10]
    found = report("classify", wanted, {"Q8_0": bad}, inputs=words)
    assert found["baselines"]["tfidf_logistic"]["metrics"]["accuracy"] == 1.0
    assert found["remarks"][0].startswith(
        "The baseline tfidf_logistic scores 100.0 %, the best model (Q8_0) 85.0 %"
    )


def test_no_difference_is_not_over_read(report: Any) -> None:
    wanted = ["a", "b"] * 30
    almost = ["b", *wanted[1:]]
    found = report(
        "classify",
        wanted,
        {"adapter": wanted, "Q8_0": almost},
        facts={"adapter": {"kind": "adapter"}},
    )
    (said,) = [remark for remark in found["remarks"] if "cannot be told apart" in remark]
    detectable = found["pairs"]["adapter|Q8_0"]["metrics"]["accuracy"]["detectable"]
    assert said.startswith("Q8_0 and adapter cannot be told apart: -1.7 points (")
    assert (
        f"60 rows show a true difference from {100 * detectable:.1f} points on (80 % of the time)"
        in said
    )


def test_a_slice_that_got_worse_is_named(report: Any) -> None:
    wanted = ["a"] * 40 + ["b"] * 40
    worse = ["a"] * 40 + ["a"] * 30 + ["b"] * 10
    found = report(
        "classify",
        wanted,
        {"adapter": wanted, "Q8_0": worse},
        facts={"adapter": {"kind": "adapter"}},
    )
    assert any(
        remark.startswith("On the rows with label b (n=40) Q8_0 scores 75.0 points below adapter")
        for remark in found["remarks"]
    )
    assert not any("label a" in remark for remark in found["remarks"])


def test_rows_that_were_not_sent_are_left_out_of_every_comparison(report: Any) -> None:
    wanted = ["a", "b"] * 20
    kept = [
        {"answer": None, "not_sent": "sensitive"} if k < 10 else {"answer": text}
        for k, text in enumerate(wanted)
    ]
    failed = [*kept[:39], {"answer": None, "error": "HTTP 500"}]
    facts = {
        "large": {
            "kind": "endpoint",
            "size": None,
            "sha256": "",
            "not_sent": 10,
            "failed": 1,
            "shots": 3,
        }
    }
    wrong = ["c"] * 10 + wanted[10:]
    found = report("classify", wanted, {"Q8_0": wrong, "large": failed}, facts=facts)
    pair = found["pairs"]["Q8_0|large"]
    assert (pair["n"], pair["both"], pair["only_first"], pair["only_second"]) == (30, 29, 1, 0)
    said = " ".join(found["remarks"])
    assert "10 rows marked sensitive, and not sent to large" in said
    assert "large gave no answer to 1 row: counted as wrong." in said


def test_a_model_that_was_asked_a_sample_is_compared_on_it(report: Any) -> None:
    wanted = ["a", "b"] * 20
    skipped = {
        "answer": None,
        "not_sent": "not of the sample",
        "prompt_tokens": 0,
        "completion_tokens": 0,
    }
    answer = {"answer": "a", "prompt_tokens": 9, "completion_tokens": 2}
    facts = {"base": {"kind": "base", "sample": 16, "rows_per_s": 4.0}}
    found = report(
        "classify", wanted, {"base": [skipped] * 24 + [answer] * 16, "Q8_0": wanted}, facts=facts
    )
    base, pair = found["models"]["base"], found["pairs"]["base|Q8_0"]
    assert (base["n"], base["right"], base["sample"], base["not_sent"]) == (16, 8, 16, 0)
    assert base["interval"] == pytest.approx(wilson(8, 16, 0.95), abs=1e-6)
    assert base["tokens_per_s"] == pytest.approx(8.0)
    assert (pair["n"], pair["both"], pair["only_second"]) == (16, 8, 8)
    assert any(
        remark.startswith("base answered 16 of the 40 rows, drawn by a hash")
        for remark in found["remarks"]
    )
    assert "(n = 16)" in next(row for row in scoreboard.table(found)[1] if row[0] == "base")[3]


# Texts


def test_a_report_holds_no_text_of_the_records(report: Any, tmp_path: Path) -> None:
    report(
        "generate",
        ["Dear Ann"] * 3,
        {"Q8_0": ["hello", "", "Dear Ann"]},
        inputs=["write to Ann Secret"] * 3,
    )
    everything = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert not re.search("Ann|hello|Secret", everything)
    _, rows = rows_of(tmp_path)
    assert rows[2]["answers"][-1] == [None, 1, None, 1.0]


def test_texts_are_shown_where_asked_for_but_never_of_a_sensitive_record(
    report: Any, tmp_path: Path
) -> None:
    inputs = ["write to Ann please", "write to Bob please"]
    report(
        "generate",
        ["Dear Ann", "Dear Bob"],
        {"Q8_0": ["hello Ann", "hello Bob"]},
        inputs=inputs,
        sensitive={1},
        config=EvaluateConfig(shown_characters=12),
    )
    head, rows = rows_of(tmp_path)
    assert head["cut"] == 12
    assert rows[0]["texts"]["input"] == "write to Ann"
    assert rows[0]["texts"]["answers"][-1] == "hello Ann"
    assert "texts" not in rows[1]
    assert not any("Bob" in path.read_text() for path in (tmp_path / "out").iterdir())


def test_faults_of_drafts_are_named_where_texts_are_shown(report: Any, tmp_path: Path) -> None:
    drafts = {
        "Q8_0": [
            "It costs 17 €.",
            "It costs 20 €.",
            {"answer": "It costs 19 €, and", "finish": "length"},
        ]
    }
    for cut, values in ((0, []), (40, ["amount 17"])):
        entry = report(
            "generate",
            ["It costs 20 €."] * 3,
            drafts,
            inputs=["is it 20 €?"] * 3,
            sensitive={2},
            config=EvaluateConfig(shown_characters=cut),
        )["models"]["Q8_0"]
        assert (entry["metrics"]["ungrounded"], entry["metrics"]["unfinished"]) == (
            0.666667,
            0.333333,
        )
        _, rows = rows_of(tmp_path)
        assert rows[0]["faults"] == [{}, {}, {}, {"ungrounded": values}]  # of three baselines first
        assert "faults" not in rows[1]
        assert rows[2]["faults"][-1] == {"ungrounded": [], "unfinished": []}  # of a sensitive row
        page, text = (
            (tmp_path / "out" / name).read_text() for name in ("report.html", "report.md")
        )
        assert (
            "Checks of each draft" in page
            and ("amount 17" in page) == bool(cut)
            and "amount 19" not in page
        )
        assert "| ungrounded | 66.7 % |" in text


def test_rows_say_who_was_right(report: Any, tmp_path: Path) -> None:
    sure = [{"answer": text, "confidence": 0.91234567} for text in GIVEN]
    report("classify", WANTED, {"Q8_0": sure})
    head, rows = rows_of(tmp_path)
    assert head["participants"] == ["majority", "tfidf_logistic", "Q8_0"]
    assert head["labels"] == list(LABELS)
    assert rows[2] | {"answers": 0} == {
        "id": "r2",
        "source": ["x.csv", 3],
        "length": 7,
        "sensitive": False,
        "expected": 2,
        "answers": 0,
    }
    assert rows[2]["answers"][2] == [0, 0, 0.9123, 0.0]
    assert rows[7]["answers"][2][0] == -1  # `nonsense`


# Slices


def test_slices_by_label_source_length_and_group(report: Any) -> None:
    wanted = ["a", "b"] * 30
    inputs = [f"{'x' * (1 + k)}" for k in range(60)]
    groups = ["big" if k < 20 else f"small{k}" for k in range(60)]
    found = report("classify", wanted, {"Q8_0": wanted}, inputs=inputs, groups=groups)["slices"]
    assert [(one["by"], one["name"], one["n"]) for one in found] == [
        ("label", "a", 30),
        ("label", "b", 30),
        ("length", "0 to 15 characters", 15),
        ("length", "16 to 30 characters", 15),
        ("length", "31 to 45 characters", 15),
        ("length", "46 to 60 characters", 15),
        ("group", "#1", 20),  # whose name may be a customer's
    ]
    shown = report(
        "classify",
        wanted,
        {"Q8_0": wanted},
        inputs=inputs,
        groups=groups,
        config=EvaluateConfig(shown_characters=1),
    )["slices"]
    assert [one["name"] for one in shown if one["by"] == "group"] == ["big"]


def test_rows_of_one_group_tell_less(report: Any, tmp_path: Path) -> None:
    wanted = ["a", "b"] * 30
    given = {
        "first": [answer if k // 10 != 3 else "c" for k, answer in enumerate(wanted)],
        "second": wanted,
    }
    alone = report("classify", wanted, given)
    grouped = report("classify", wanted, given, groups=[f"g{k // 10}" for k in range(60)])
    (low, high), (lower, higher) = (one["models"]["first"]["interval"] for one in (alone, grouped))
    few = (stats.t.ppf(0.975, 5) / stats.norm.ppf(0.975)) ** 2
    # 10 rows a group, and 6 / 5
    assert grouped["models"]["first"]["design_effect"] == pytest.approx(12 * few)
    assert lower < low < high < higher
    before, after = (
        one["pairs"]["first|second"]["metrics"]["accuracy"] for one in (alone, grouped)
    )
    assert before["p"] < 0.01 and before["interval"][0] > 0
    assert after["p"] == 1 and after["interval"][0] < 0
    gain = Gate(metric="accuracy", model="second", against="first", min_gain=0)
    assert [gates.check([gain], one)[0].passed for one in (alone, grouped)] == [True, False]
    (low, high), (lower, higher) = (
        one["models"]["first"]["intervals"]["macro_f1"] for one in (alone, grouped)
    )
    assert higher - lower > 1.5 * (high - low)  # whole groups are drawn
    remark = (
        "60 rows are of 6 groups, and rows of one group are alike: they tell as much as 3 "
        "independent rows"
    )
    assert remark in " ".join(grouped["remarks"])
    drop = Gate(metric="accuracy", model="second", against="second_copy", max_drop=0.05)
    twice = report(
        "classify",
        wanted,
        {"second": wanted, "second_copy": wanted},
        groups=[f"g{k // 10}" for k in range(60)],
    )
    with pytest.raises(GateError, match="measured: equal\\), on 60 rows of 6 groups") as caught:
        gates.enforce([drop], twice)
    assert caught.value.hint.startswith(
        "rows of one group are alike, so 6 groups show no small difference"
    )
    assert "design_effect" not in alone["models"]["first"]
    # numbers, no names
    assert [row["group"] for row in rows_of(tmp_path)[1]] == [k // 10 for k in range(60)]
    report("classify", wanted, {"second": wanted})
    assert not any("group" in row for row in rows_of(tmp_path)[1])


# Choosing a file


def files(*wrong: int) -> dict[str, list[dict[str, Any]]]:
    """Three files, the larger first, with so many wrong answers of a hundred."""
    tokens = {"prompt_tokens": 10, "completion_tokens": 5}
    return {
        name: [{"answer": "b" if k < count else "a", **tokens} for k in range(100)]
        for name, count in zip(("F16", "Q8_0", "Q4_0"), wrong, strict=True)
    }


def chosen(
    report: Any, wrong: tuple[int, int, int], facts: dict[str, Any] | None = None, **rule: Any
) -> dict[str, Any]:
    config = EvaluateConfig(choose=Choose(**{"smallest_within": 0.02, **rule}))
    test = {name: ["a"] * 100 for name in ("F16", "Q8_0", "Q4_0")}
    found = report(
        "classify", ["a"] * 100, test, validation=files(*wrong), config=config, facts=facts
    )
    return dict(found["choice"]) | {"focus": found["focus"], "remarks": found["remarks"]}


@pytest.mark.parametrize(
    ("wrong", "rule", "name"),
    [
        ((5, 5, 5), {}, "Q4_0"),
        ((5, 5, 7), {}, "Q4_0"),  # a loss of just 0.02
        ((5, 5, 8), {}, "Q8_0"),
        ((5, 9, 9), {}, "F16"),
        ((5, 9, 4), {}, "Q4_0"),
        ((5, 5, 8), {"smallest_within": 0.03}, "Q4_0"),
    ],
)
def test_the_smallest_file_within_the_loss_is_chosen(
    report: Any, wrong: Any, rule: dict[str, Any], name: str
) -> None:
    found = chosen(report, wrong, **rule)
    assert found["model"] == found["focus"] == name
    assert found["split"] == "validation"
    assert any(
        remark.startswith(f"Chosen: {name}, the smallest file within")
        for remark in found["remarks"]
    )
    assert [one["model"] for one in found["candidates"]] == ["Q4_0", "Q8_0", "F16"]


def test_a_file_that_is_too_slow_is_not_chosen(report: Any) -> None:
    rates = {"Q4_0": {"rows_per_s": 2.0}, "Q8_0": {"rows_per_s": 8.0}, "F16": {"rows_per_s": 4.0}}
    found = chosen(report, (5, 5, 5), rates, min_tokens_per_s=20)
    assert found["model"] == "Q8_0"  # 5 tokens a row
    assert [one["tokens_per_s"] for one in found["candidates"]] == [10.0, 40.0, 20.0]
    found = chosen(report, (5, 5, 5), min_tokens_per_s=1000)
    assert found["model"] is None
    assert any(
        "none is chosen, and none will be published" in remark for remark in found["remarks"]
    )


def test_choosing_looks_at_validation_rows_alone(report: Any) -> None:
    """The smallest file is hopeless on the test rows, and is
    chosen all the same: test only reports.
    """
    config = EvaluateConfig(choose=Choose(smallest_within=0.02))
    test = {"F16": ["a"] * 100, "Q8_0": ["a"] * 100, "Q4_0": ["b"] * 100}
    found = report("classify", ["a"] * 100, test, validation=files(5, 5, 5), config=config)
    assert found["choice"]["model"] == "Q4_0"


@pytest.mark.slow
def test_a_release_holds_the_chosen_file_alone(stages: Forks, desk: Path) -> None:
    with (desk / "slmctl.yaml").open("a") as stream:
        stream.write("gates: [{metric: accuracy, model: chosen, min: 0.1}]\n")
    rule = "evaluate.choose={smallest_within: 0.5}"
    folder = Path(
        tiny.ok(stages.run(desk, "run", "--yes", "--set", rule, "--set", 'version="1.1"'))
    )
    release = load(folder)
    (shipped,) = release.metrics["files"]
    assert shipped == "Q8_0"
    assert [path.name for path in folder.glob("*.gguf")] == [
        path.name for path in folder.glob("*Q8_0.gguf")
    ]
    assert "F16.gguf" not in (folder / "Modelfile").read_text()
    asked = stages.run(desk, "evaluate", "--model", "gguf", "--set", rule)
    assert "gate passed: accuracy of Q8_0 is" in asked.stderr


def test_compare_sets_models_and_reports_side_by_side(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def compared(*names: str) -> Artifact:
        teacher.slmctl(desk, "evaluate", "--compare", *names)
        return load(Path(capsys.readouterr().out.strip()))

    (report,) = [load(path) for path in (desk / "runs" / "report").iterdir()]
    made = compared("gguf", "adapter")
    assert "adapter" in made.metrics["models"]
    assert any(set(pair.split("|")) >= {"adapter"} for pair in made.metrics["pairs"])
    # reports, by id, stand for the models that they measured, each model once
    merged = compared(report.short_id, made.short_id).metrics["models"]
    assert set(merged) == {*report.metrics["models"], *made.metrics["models"]}
    assert (desk / "runs" / "report.html").read_text().count("<h1>") == 1
    with pytest.raises(UsageError) as caught:
        teacher.slmctl(desk, "evaluate", "gguf", "adapter")
    assert caught.value.hint == "slmctl evaluate --compare gguf adapter"


# MachinePrices


def test_break_even_by_hand() -> None:
    prices = MachinePrices(machine_per_hour=0.36, input=2, output=10)
    model = {
        "kind": "gguf",
        "n": 100,
        "tokens": {"prompt": 10_000, "completion": 1000},
        "rows_per_s": 10.0,
    }
    found = break_even(
        prices,
        {"Q8_0": model, "old": model | {"tokens": None}, "large": model | {"kind": "endpoint"}},
    )
    assert found is not None
    # a row: 100 tokens at 2 and 10 at 10 a million, 0.0003; the machine does 36,000 rows an hour
    assert found["models"]["Q8_0"] == pytest.approx(
        {
            "api_per_1000_rows": 0.3,
            "rows_per_hour": 36_000,
            "machine_per_1000_rows": 0.01,
            "break_even_rows_per_hour": 1200,
            "share_of_capacity": 1 / 30,
        }
    )
    assert found["models"]["large"] == pytest.approx({"api_per_1000_rows": 0.3})
    assert set(found["models"]) == {"Q8_0", "large"}
    assert break_even(None, {}) is None


# Rows and names


@pytest.mark.parametrize(
    ("kind", "wanted", "said"),
    [
        ("classify", ["z"], r"x\.csv line 1: the reference answer 'z' is not one of the labels"),
        ("extract", ["{"], "the reference answer is not JSON"),
    ],
)
def test_a_row_whose_answer_cannot_be_wanted(
    report: Any, kind: str, wanted: list[str], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        report(kind, wanted, {"Q8_0": wanted}, train=["a", "b"])


def test_models_are_compared_on_the_same_rows_only(report: Any) -> None:
    with pytest.raises(UsageError, match="answers other rows than the prepared data set holds"):
        report("classify", ["a", "b"], {"Q8_0": ["a"]})


def test_a_model_is_given_once(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    twice = [artifacts["predictions"]] * 2
    with pytest.raises(UsageError, match="two of the models have the name"):
        evaluate.run(
            EvaluateConfig(), predictions=twice, prepared=artifacts["prepared"], out=tmp_path
        )


def test_models_that_share_a_name_are_told_apart_by_their_digests(report: Any) -> None:
    facts = {
        "A": {"model": "Q8_0", "sha256": "1a2b3c4d5e6f"},
        "B": {"model": "Q8_0", "sha256": "998877665544"},
        "C": {"model": "Q4_0", "sha256": "123456789abc"},
    }
    found = report("classify", WANTED, {"A": GIVEN, "B": WANTED, "C": GIVEN}, facts=facts)
    assert list(found["models"]) == ["Q8_0 (1a2b3c4d)", "Q8_0 (99887766)", "Q4_0"]
    assert found["models"]["Q8_0 (99887766)"]["metrics"]["accuracy"] == 1.0
    assert "Q8_0 (1a2b3c4d)|Q8_0 (99887766)" in found["pairs"]


def test_a_file_that_may_be_chosen_keeps_its_name(report: Any) -> None:
    test = {name: ["a"] * 100 for name in ("F16", "Q8_0", "Q4_0", "old")}
    found = report(
        "classify",
        ["a"] * 100,
        test,
        validation=files(5, 5, 5),
        config=EvaluateConfig(choose=Choose(smallest_within=0.02)),
        facts={"old": {"model": "Q4_0", "sha256": "feedbeef0000"}},
    )
    assert found["choice"]["model"] == found["focus"] == "Q4_0"
    assert set(found["models"]) == {"F16", "Q8_0", "Q4_0", "Q4_0 (feedbeef)"}


def test_the_report_is_its_metrics(artifacts: dict[str, Artifact]) -> None:
    made = json.loads(artifacts["report"].file("report.json").read_bytes())
    assert made == artifacts["report"].metrics
    assert sorted(entry.path for entry in artifacts["report"].manifest.files) == [
        "report.html",
        "report.json",
        "report.md",
        "rows.jsonl",
        "task.json",
    ]


def test_the_table_shows_the_figures(artifacts: dict[str, Artifact]) -> None:
    made, text = (
        artifacts["report"].metrics,
        artifacts["report"].file("report.md").read_text(encoding="utf-8"),
    )
    for name, model in made["models"].items():
        row = next(line for line in text.splitlines() if re.match(rf"\|\s*{name}\s*\|", line))
        assert f"{100 * model['metrics']['accuracy']:.1f} %" in row
    for remark in made["remarks"]:
        assert remark in text


# The release that gates compare with


def data_set_of(folder: Path, splits: dict[str, Sequence[str]]) -> Artifact:
    """A data set as its hashes alone."""
    folder.mkdir()
    with row_fingerprints.FingerprintWriter(folder / row_fingerprints.FILENAME) as writer:
        for split, texts in splits.items():
            writer.add_texts(split, [f"{k}" for k in range(len(texts))], texts)
    return wrap(folder, "prepared", {})


RELEASE = {"production": {"kind": "release", "release": "desk 1.0", "size": 1}}


def test_old_and_new_rows_of_a_release_are_reported_apart(report: Any, tmp_path: Path) -> None:
    """A candidate that knows a new label, and forgot an old one:
    better on average, worse on the old rows.
    """
    wanted = ["a"] * 40 + ["b"] * 40 + ["d"] * 40
    candidate = ["c"] * 12 + ["a"] * 28 + ["b"] * 40 + ["d"] * 40
    production = ["a"] * 40 + ["b"] * 38 + ["a"] * 42
    inputs = [
        f"{'old' if k < 80 else 'new'} question {chr(97 + k % 26)}{chr(97 + k // 26)}"
        for k in range(120)
    ]
    seen = data_set_of(
        tmp_path / "seen", {"train": inputs[:2], "test": inputs[2:80], "rejected": inputs[80:82]}
    )
    given = {"Q8_0": candidate, "production": production}
    found = report("classify", wanted, given, facts=RELEASE, released=seen, inputs=inputs)
    release = found["release"]
    assert (release["name"], release["title"], release["trained_on"]) == (
        "production",
        "desk 1.0",
        2,
    )
    assert {title: part["n"] for title, part in release["rows"].items()} == {"old": 80, "new": 40}
    old, new = release["rows"]["old"], release["rows"]["new"]
    assert old["values"]["production"]["accuracy"] == pytest.approx(78 / 80)
    assert old["differences"]["Q8_0"]["accuracy"] | {"interval": [], "p": 0, "detectable": 0} == {
        "difference": -0.125,
        "interval": [],
        "p": 0,
        "detectable": 0,
        "test": "mcnemar",
        "only_first": 12,
        "only_second": 2,
    }
    assert new["values"]["Q8_0"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert found["focus"] == "Q8_0"  # though the release's file is the smaller one
    remark = "On the 80 rows that production already had Q8_0 scores 12.5 points below it"
    (told,) = (line for line in found["remarks"] if line.startswith(remark))
    assert told.endswith("although it is better on average.")
    assert "production was trained on 2 of these rows, which favours it." in found["remarks"]
    gate = {"metric": "accuracy", "model": "Q8_0", "against": "production", "max_drop": 0.01}
    verdicts = gates.check(
        [Gate(**gate), Gate(**gate, rows="old"), Gate(**gate, rows="new")], found
    )
    assert [verdict.passed for verdict in verdicts] == [True, False, True]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Against production" in page
    assert "## Old and new rows" in (tmp_path / "out" / "report.md").read_text()


def test_without_its_data_set_a_release_is_compared_on_all_rows(
    report: Any, tmp_path: Path
) -> None:
    found = report("classify", WANTED, {"Q8_0": GIVEN, "production": WANTED}, facts=RELEASE)
    assert found["release"]["rows"] == {}
    assert any(
        "The data set of production (desk 1.0) is not here" in line for line in found["remarks"]
    )
    assert "Its data set is not below runs/" in (tmp_path / "out" / "report.html").read_text()


def test_a_release_is_no_part_of_the_question_what_a_baseline_beats(report: Any) -> None:
    texts = [f"{word} {k}" for k in range(30) for word in ("alpha", "beta", "gamma")]
    wanted = ["a", "b", "c"] * 30
    found = report(
        "classify", wanted, {"Q8_0": ["a"] * 90, "production": wanted}, facts=RELEASE, inputs=texts
    )
    assert any("the best model (Q8_0)" in line for line in found["remarks"])
