"""`slmctl watch` on files as a server and reviewers leave them: the
figures of a week and the command.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support import ROOT, TESTS
from support.traffic import MadeUp

from slmctl.artifacts.artifact import Manifest
from slmctl.artifacts.json_lines import JsonLines
from slmctl.cli.main import cli
from slmctl.config import MachinePrices
from slmctl.errors import DataError, UsageError
from slmctl.inference.escalation_policy import AnswerCosts, Policy
from slmctl.metrics.statistics import error_bound, exact_interval
from slmctl.production import watch as module
from slmctl.production.measured import MeasuredFigures, measured
from slmctl.production.records import CollectedRow
from slmctl.production.watch import VerifiedRow, Watched, Week, is_right, lines
from slmctl.sources.reviewed import Review
from slmctl.task.contract import Task

NOTHING = MeasuredFigures()
watch = functools.partial(module.watch, rules=Task("classify", "", "").rules)
MADE = MadeUp().days(17)  # two weeks and three days


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of MADE."""
    return MADE.write(tmp_path_factory.mktemp("served"))


def run(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["watch", "-C", str(folder), *words])


def test_a_week_has_its_requests_and_the_rows_drawn_by_chance(served: Path) -> None:
    watched = watch(
        [served / name for name in ("decisions.jsonl", "collected", "reviewed.jsonl")], NOTHING
    )
    assert [(str(week.begin), week.requests) for week in watched.weeks] == [
        ("2026-10-05", 700),
        ("2026-10-12", 700),
        ("2026-10-19", 300),
    ]
    week = watched.weeks[1]
    decisions = MADE.decisions[700:1400]
    assert week.estimated == pytest.approx(sum(line["p_correct"] for line in decisions) / 700)  # type: ignore[misc]
    assert week.kept == sum(line["reason"] == "kept" for line in decisions) == 700 - week.escalated
    uniform = [
        row for row in MADE.collected if row.uniform and "2026-10-12" <= row.time < "2026-10-19"
    ]
    right = sum(MADE.right[row.id] for row in uniform)
    assert (week.accuracy.rows, week.accuracy.right) == (len(uniform), right)
    assert (week.accuracy.low, week.accuracy.high) == exact_interval(right, len(uniform))
    kept = [row.right for row in week.verified if row.kept]
    assert kept == [MADE.right[row.id] for row in uniform if row.reason == "kept"]


def test_without_decisions_the_uniform_share_stands_for_the_traffic(served: Path) -> None:
    result = run(served, str(served / "collected"))
    assert "the requests are the uniform share of the collected rows" in result.output
    assert (
        "no row of the last week that was drawn by chance is reviewed: slmctl review"
        in result.output
    )
    watched = watch([served / "collected"], NOTHING)
    assert sum(week.requests for week in watched.weeks) == sum(
        row.uniform for row in MADE.collected
    )


def test_cost_follows_the_prices(served: Path) -> None:
    prices = MachinePrices(machine_per_hour=0.01, input=1000, output=2000)
    week = watch([served / "decisions.jsonl"], NOTHING, prices=prices).weeks[0]
    assert week.paid == pytest.approx(week.escalated * (20 * 1e-3 + 3 * 2e-3))
    assert week.avoided == pytest.approx((700 - week.escalated) * (20 * 1e-3 + 3 * 2e-3))


def test_the_first_line_is_the_cost_of_a_thousand_questions(served: Path) -> None:
    files = [served / name for name in ("decisions.jsonl", "collected", "reviewed.jsonl")]
    # whose rows are answered wrong, and of whom none is
    for label, price in (("other", 5.0), ("invoice", 1.0)):
        figures = MeasuredFigures(
            costs=AnswerCosts(0.2, 1.0, {label: 5.0}, "CHF"), cost=(50.0, 40.0, 62.0)
        )
        watched = watch(files, figures)
        rows = [row for week in watched.weeks for row in week.verified]
        wrong = sum(row.kept and not row.right for row in rows) / len(rows)
        kept = sum(line["reason"] == "kept" for line in MADE.decisions) / len(MADE.decisions)
        assert watched.cost is not None
        assert watched.cost[0] == pytest.approx(1000 * (0.2 * (1 - kept) + price * wrong))
        assert 0 < watched.cost[1] < watched.cost[0] < watched.cost[2]
        now = "{:.2f} ({:.2f} to {:.2f})".format(*watched.cost)
        assert (
            next(lines(watched))
            == f"CHF a thousand questions: {now}, measured 50.00 (40.00 to 62.00)"
        )
    unseen = watch(files[:1], figures)
    assert unseen.cost is None and "no reviewed row says the cost; measured 50.00" in next(
        lines(unseen)
    )
    assert watch(files[:1], NOTHING).cost is None


@pytest.mark.parametrize(
    ("kind", "answer", "after", "right"),
    [
        # a question that belongs elsewhere is never right to keep
        ("classify", "oos", "oos", False),
        ("classify", "invoice", "invoice ", True),
        # of labels every sign counts, where the row is gone or has no labels too
        ("classify", "C", "C++", False),
        ("tag", '["A"]', '["A+"]', False),
        ("extract", '{"a": 1, "b": 2}', '{"b": 2, "a": 1.0}', True),
        ("extract", '{"a": 1}', '{"a": 2}', False),
        ("call", "none", "none", True),
        ("generate", "Yes, it is.", "yes it is", True),
        ("generate", "yes, on monday", "yes on tuesday", True),  # token F1 of 2/3
        ("generate", "yes", "no", False),
    ],
)
def test_a_right_answer_is_what_calibrate_counts_as_one(
    kind: str, answer: str, after: str, right: bool
) -> None:
    row = CollectedRow("1", "2026-10-01T00:00:00Z", [], answer=answer)
    review = Review("1", row.time, "ada", "corrected", before=answer, after=after)
    figures = MeasuredFigures(out_of_scope="oos", min_token_f1=0.6)
    assert [is_right(review, each, figures, Task(kind, "", "").rules) for each in (row, None)] == [
        right,
        right,
    ]


def test_the_log_of_the_server_is_read_too(tmp_path: Path) -> None:
    events = [{"time": "2026-10-01T00:00:00.000Z", "event": "start"}]
    events += [{**line, "event": "decision"} for line in MADE.decisions[:300]]  # type: ignore[dict-item]
    log = tmp_path / "serve.log"
    torn = '{"time": "2026-11-0'
    log.write_text("".join(f"{json.dumps(event)}\n" for event in events) + torn, encoding="utf-8")
    assert watch([log], NOTHING).weeks[0].requests == 300


@pytest.mark.parametrize(
    "damage",
    [
        {"time": "9999-12-31T23:59:59Z"},
        {"time": "0001-01-01"},
        {"time": "soon"},
        {"time": 7},
        {"p_correct": 1.5},
        {"p_correct": "0.5"},
        {"prompt_tokens": 2**80},
        {"completion_tokens": -1},
        {"route": None},
    ],
    ids=str,
)
def test_a_damaged_line_is_passed_over(tmp_path: Path, damage: dict[str, object]) -> None:
    log = tmp_path / "decisions.jsonl"
    log.write_text(
        "".join(f"{json.dumps({**MADE.decisions[0], **more})}\n" for more in ({}, damage)),
        encoding="utf-8",
    )
    (week,) = watch([log], NOTHING).weeks
    # a number may be written as a text
    assert week.requests == (2 if damage == {"p_correct": "0.5"} else 1)


def test_lines_before_a_day_are_left_out(served: Path) -> None:
    printed = json.loads(run(served, "--json", "--since", "2026-10-14").stdout)
    assert [(week["begin"], week["requests"]) for week in printed["weeks"]] == [
        ("2026-10-12", 500),
        ("2026-10-19", 300),
    ]
    assert not printed["sampled"] and printed["weeks"][0]["verified"]["rows"] > 0
    assert "there is no request since 2027-01-01" in str(
        run(served, "--since", "2027-01-01").exception
    )


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "rows.jsonl"
    other.write_text('{"text": "hello"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="holds neither decisions nor collected rows nor reviews"):
        watch([other], NOTHING)
    with pytest.raises(UsageError, match="does not exist"):
        watch([tmp_path / "none.jsonl"], NOTHING)
    other.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="there is no request to look at"):
        watch([other], NOTHING)


def test_the_command_compares_with_the_policy(served: Path, tmp_path: Path) -> None:
    policy = Policy(
        "0" * 64,
        "1" * 64,
        "classify",
        "the reference label",
        "",
        {"odds": 1.0},
        0.0,
        ((0.0, 0.5),),
        0.0,
        {"p_correct": 0.876, "right": 0.869, "kept": 0.912, "max_error": 0.05, "tested_on": 700},
    )
    policy.write(tmp_path)
    result = run(served, "--set", f"serve.policy={tmp_path / 'policy.json'}")
    assert result.exit_code == 0, result.output
    uniform = [MADE.right[row.id] for row in MADE.collected if row.uniform and row.reason == "kept"]
    wrong, bound = uniform.count(False), error_bound(uniform.count(False), len(uniform))
    assert (
        f"{wrong} of {len(uniform)} reviewed answers that were kept are wrong, so at most "
        f"{bound:.1%}".replace("%", " %")
        in result.output
    )
    assert "of all kept ones, and the policy allows 5.0 %" in result.output
    (row,) = (line.split() for line in result.output.splitlines() if line.startswith("measured"))
    assert row == ["measured", "87.6", "%", "86.9", "%", "91.2", "%"]


def test_kept_answers_are_weighed_and_the_last_week_is_told_by_itself() -> None:
    # a fall in the last week was diluted by all weeks before, and rows of a small share counted
    # like those of a large
    first, last = (
        Week(datetime.date(2026, 11, 2), requests=500),
        Week(datetime.date(2026, 11, 9), requests=500),
    )
    first.verified = [VerifiedRow(right=True, probability=1.0, kept=True)] * 300
    last.verified = [VerifiedRow(right=k >= 20, probability=0.1, kept=True) for k in range(100)]
    said = [
        line
        for line in lines(Watched([first, last], NOTHING, sampled=False))
        if "are wrong" in line
    ]
    assert len(said) == 2 and said[0].startswith("20 of 400 ") and said[1].startswith("20 of 100 ")
    bounds = [float(re.search(r"at most ([\d.]+) %", line)[1]) for line in said]  # type: ignore[index]
    assert bounds[0] > 100 * 20 * 10 / (300 + 100 * 10)  # weighed: 15 % of the traffic, not 5 %
    assert said[1].endswith("of the last week's kept ones") and bounds[1] > bounds[0]


def test_drafts_at_fault_are_counted_by_week_among_those_drawn_by_chance(tmp_path: Path) -> None:
    question = [{"role": "user", "content": "Where is order 4711?"}]
    answers = [
        "Order 4711 left on 3 May 2026.",
        "Order 4711 is on its way.",
        "It costs 12.50 EUR.",
        "Soon. Soon.",
    ]
    rows = [
        CollectedRow(
            f"{n:08x}", f"2026-11-{2 + 7 * (n == 3):02}T09:30:00Z", question, answer, uniform=n != 2
        )
        for n, answer in enumerate(answers)
    ]
    with JsonLines(tmp_path / "2026-11-02.jsonl") as collected:
        for row in rows:
            collected.append(row.to_json())
    (tmp_path / "slmctl.yaml").write_text(
        "project: drafts\nbase: tiny\ntask: {kind: generate, must_not: ['^Soon']}\n"
        "prepare: {sources: [{path: rows.csv, input: question, output: reply}]}\n",
        encoding="utf-8",
    )
    printed = run(tmp_path, str(tmp_path / "2026-11-02.jsonl")).output
    # the third was no uniform row
    assert "drafts at fault, week of 2026-11-02: ungrounded 50.0 % of 2\n" in printed
    assert "drafts at fault, week of 2026-11-09: forbidden_pattern 100.0 % of 1\n" in printed
    weeks = json.loads(run(tmp_path, "--json", str(tmp_path / "2026-11-02.jsonl")).output)["weeks"]
    assert [(week["drafts"], week["faults"]) for week in weeks] == [
        (2, {"ungrounded": 1}),
        (1, {"forbidden_pattern": 1}),
    ]
    figures = MeasuredFigures(faults={"ungrounded": 0.021, "repetition": 0.0})
    week = Week(datetime.date(2026, 11, 2), requests=2, drafts=2)
    assert "drafts at fault, as measured: ungrounded 2.1 %" in lines(
        Watched([week], figures, sampled=False)
    )


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    # the line of the last week was missing
    MadeUp().days(14).write(tmp_path)
    files = [tmp_path / name for name in ("decisions.jsonl", "collected", "reviewed.jsonl")]
    figures = MeasuredFigures(p_correct=0.848, right=0.834, kept=0.926, max_error=0.2)
    printed = [f"    {line}".rstrip() for line in lines(watch(files, figures))]
    assert "\n".join(printed) in (ROOT / "docs" / "wheel.md").read_text(encoding="utf-8")


def test_a_folder_without_files_says_what_writes_them(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "serve.decision_log" in result.exception.hint


def test_the_figures_to_compare_with_are_those_of_the_newest_policy_and_of_the_report_on_its_file(
    tmp_path: Path,
) -> None:
    for kind in ("report", "policy"):
        shutil.copytree(
            TESTS / "fixtures" / "0.1.0" / kind, tmp_path / "runs" / kind / "0123456789ab"
        )
    before = measured(tmp_path)
    # fitted before the figure was kept
    assert (before.p_correct, before.rows, before.max_error) == (None, 259, 0.4)
    assert before.report is None  # it is on another file
    for place, metrics in enumerate(
        ({"model": "encoder_logistic"}, {"remote": True}, {"least_confidence": 0.9})
    ):
        later = tmp_path / "runs" / "policy" / f"{place:012}"
        shutil.copytree(TESTS / "fixtures" / "0.1.0" / "policy", later)
        fields = vars(Manifest.read(later)) | {
            "metrics": metrics,
            "started": f"2030-01-0{place + 1}T00:00:00Z",
        }
        (later / "manifest.json").write_bytes(Manifest(**fields).to_bytes())
        assert measured(tmp_path) == before  # a model that answers no request here
    shutil.rmtree(tmp_path / "runs" / "policy")
    alone = measured(tmp_path)
    assert (alone.report_metric, alone.report, alone.report_rows) == (
        "accuracy",
        pytest.approx(1 / 6, abs=1e-4),
        6,
    )
    assert alone.policy == "" and alone.right is None
    assert measured(tmp_path / "nowhere") == MeasuredFigures()
